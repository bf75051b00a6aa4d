"""Collection format: ImageNet 2012, from its usual TFRecord shards or its official tar files.

    DIR/train-%05d-of-01024, DIR/validation-%05d-of-00128          labels from 1
or
    DIR/ILSVRC2012_img_train.tar       a tar of a tar for each class
    DIR/ILSVRC2012_img_val.tar         images named by number
    DIR/ILSVRC2012_devkit_t12.tar.gz   the classes of the validation images

`--labeled=DIR` and `--unlabeled=DIR` read the training images. `--test=DIR` reads the validation
images, which are the papers' test set. The classes are the WordNet numbers in order, as in every
released checkpoint. Image files stay as they are. The few CMYK JPEGs, and the PNG that is called
.JPEG, are decoded by their content.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
import scipy.io

from cli.errors import one_line
from cli.progress import progress
from data import tfrecords
from data.archives import ArchiveImages, compressed_files, members
from data.sources import Request, entries, printable

_SHARD = r"-\d{5}-of-\d{5}"
TRAIN_TAR, VALIDATION_TAR, DEVKIT = (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    "ILSVRC2012_devkit_t12.tar.gz",
)


def open_imagenet(request: Request) -> ArchiveImages | tfrecords.RecordImages:
    """Lists ImageNet's training or validation images.

    Raises:
      InputError: the files are missing, or are not what they should be.
    """
    if not os.path.isdir(request.location):
        raise request.error(
            "is not a folder; name the folder with ImageNet's TFRecords or tar files"
        )
    folder = Path(request.location)
    prefix = "validation" if request.role == "test" else "train"
    shards = [
        entry.name
        for entry in entries(request.location, f"--{request.role}")
        if re.fullmatch(prefix + _SHARD, entry.name)
    ]
    if shards:
        whole = _whole_set(request, prefix, shards)
        return tfrecords.RecordImages(
            dataclasses.replace(request, label_offset=1), [str(folder / name) for name in whole]
        )
    needed = (VALIDATION_TAR, DEVKIT) if request.role == "test" else (TRAIN_TAR,)
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise request.error(
            f"has neither {prefix}-00000-of-... nor {missing[0]}; put ImageNet's TFRecords or"
            " official tar files there"
        )
    try:
        return (
            _validation(request, folder)
            if request.role == "test"
            else _train(request, str(folder / TRAIN_TAR))
        )
    except tarfile.TarError as error:
        raise request.error(f"has a damaged {needed[0]} ({error}); get it again") from error
    except OSError as error:
        raise request.error(
            f"has a {needed[0]} that cannot be read ({error.strerror}); check its permissions and"
            " its disk"
        ) from error


def _whole_set(request: Request, prefix: str, shards: Collection[str]) -> list[str]:
    """Returns the names of all n shards of the one set `PREFIX-*-of-n`.

    Raises:
      InputError: some shards are missing, or there are two sets.
    """
    sizes = sorted({int(name[-5:]) for name in shards})
    names = [f"{prefix}-{shard:05d}-of-{sizes[-1]:05d}" for shard in range(sizes[-1])]
    if len(sizes) > 1:
        raise request.error(
            f"has {prefix} shards of several sets, of {' and '.join(map(str, sizes))}; keep those "
            "of one set"
        )
    missing = sorted(set(names) - set(shards))
    if missing:
        raise request.error(
            f"lacks {len(missing):,} of {len(names):,} {prefix} shards (first: {missing[0]}); get"
            f" them, or name the shards to read: --{request.role}='tfrecord:DIR/{prefix}-*'"
            " --config.data.label_offset=1"
        )
    return names


def _train(request: Request, path: str) -> ArchiveImages:
    images = ArchiveImages([path], Counter(), [])
    synsets: list[str] = []
    sizes: list[int] = []
    for inner in progress(members(path, images.ignored), 1000, f"list {request.role}"):
        synset, ending = os.path.splitext(os.path.basename(inner.name))
        if ending != ".tar":
            continue
        if printable(synset) != synset:
            raise request.error(
                f"{printable(path)}: {printable(inner.name)} is not a class of ImageNet, so this "
                "is not the official file"
            )
        before = len(images)
        for member in members(path, images.ignored, inner.offset):
            images.append(0, member)
        synsets.append(synset)
        sizes.append(len(images) - before)
    if not len(images):
        raise request.error(
            f"{printable(path)} holds no archives of classes, so it is not the official file"
        )
    if request.role == "unlabeled":
        images.labels = np.full(len(images), -1, np.int32)
        return images
    images.label_names = tuple(sorted(synsets))
    order = {synset: label for label, synset in enumerate(images.label_names)}
    images.labels = np.repeat(np.array([order[synset] for synset in synsets], np.int32), sizes)
    return images


def _validation(request: Request, folder: Path) -> ArchiveImages:
    try:
        synset_of, truth = _devkit(folder / DEVKIT)
    except Exception as error:
        # Any exception of the readers of its formats.
        raise request.error(f"has a damaged {DEVKIT} ({one_line(error)}); get it again") from error
    path = str(folder / VALIDATION_TAR)
    images = ArchiveImages([path], Counter(), [])
    images.label_names = tuple(sorted(synset_of.values()))
    order = {synset: label for label, synset in enumerate(images.label_names)}
    labels: list[int] = []
    for member in members(path, images.ignored):
        number = re.search(r"_(\d{8})\.", member.name)
        if number is None or not 1 <= int(number.group(1)) <= len(truth):
            raise request.error(
                f"{printable(path)}: {printable(member.name)} is not one of the {len(truth):,} "
                f"images that {DEVKIT} lists"
            )
        images.append(0, member)
        labels.append(order[synset_of[truth[int(number.group(1)) - 1]]])
    if len(images) != len(truth):
        raise request.error(
            f"{printable(path)} holds {len(images):,} images, but {DEVKIT} lists {len(truth):,}; "
            "get it again"
        )
    images.labels = np.array(labels, np.int32)
    return images


def _devkit(path: Path) -> tuple[dict[int, str], list[int]]:
    """Reads ImageNet's development kit.

    Returns:
      The competition's number of each of the 1,000 classes -> WordNet number; and the competition's
      class number of each validation image.
    """
    found = compressed_files(path, ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"))
    meta = scipy.io.loadmat(io.BytesIO(found["meta.mat"]), squeeze_me=True, struct_as_record=True)[
        "synsets"
    ]
    truth = [int(line) for line in found["ILSVRC2012_validation_ground_truth.txt"].split()]
    used = {*truth, *range(1, 1001)}  # higher numbers are groups of classes
    synset_of = {
        int(row["ILSVRC2012_ID"]): str(row["WNID"])
        for row in meta
        if int(row["ILSVRC2012_ID"]) in used
    }
    if not set(truth) <= set(synset_of):
        raise ValueError(f"class {min(set(truth) - set(synset_of))} has no name")
    return synset_of, truth
