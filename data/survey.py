"""Looks at the images before a run: how many each split will get, how large they are.

It lists what `data.splits` would read and splits it with the same draws. Up to 100 MiB of files are
all examined. So the numbers are those of the run, and it refuses what the run would refuse, in the
same words. Of a larger set, only files at even steps are examined. Damaged files and repeated
images among the others then stay unknown.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from data import prepare, splits
from data.archives import ArchiveImages
from data.draws import (
    Usable,
    draw_labeled,
    hold_out_test,
    hold_out_validation,
    validation_size,
)
from data.examination import Examination
from data.examine import Examined
from data.image_folder import FolderImages
from data.sources import Collection, Source

LISTED = ("image_folder", "manifest", "tar", "tfds")
"""Formats that are looked at: listing them costs little compared with reading the images."""

WHOLE = 100 * 2**20
"""Bytes of image files up to which all are examined: some 10 seconds on 2 cores."""

SAMPLE = 300
"""Number of labeled files that are examined of a larger set."""

KEPT = 32
"""Number of images that are kept to measure a training step with."""


class Survey(NamedTuple):
    """Findings of a survey.

    Attributes:
      images: split ("labeled", "unlabeled", "test", "validation") -> number of images.
      classes: K.
      median_height: median height of the labeled images, pixels.
      median_width: median width of the labeled images, pixels.
      file_bytes: size of all image files; 0: not known.
      seconds: time that the first stage will take to examine all files, measured here.
      sample: some of the image files, as bytes.
      examined: how many labeled files were examined; None: all files were.
    """

    images: Mapping[str, int]
    classes: int
    median_height: float
    median_width: float
    file_bytes: int
    seconds: float
    sample: tuple[bytes, ...]
    examined: int | None = None


class _Some:
    """A `Collection` of some images of another one."""

    problems: Sequence[Mapping[str, str]] = ()

    def __init__(self, whole: Collection, indices: np.ndarray) -> None:
        self._whole, self._indices = whole, indices
        self.label_names, self.labels = whole.label_names, whole.labels[indices]
        self.scattered, self.ignored = whole.scattered, whole.ignored

    def key(self, index: int) -> str:
        """See `Collection`."""
        return self._whole.key(self._indices[index])

    def describe(self, index: int) -> str:
        """See `Collection`."""
        return self._whole.describe(self._indices[index])

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """See `Collection`."""
        return self._whole.read(int(self._indices[index]) for index in indices)


def of_digits(config: ml_collections.ConfigDict) -> Survey:
    """Looks at the embedded digits. Raises InputError where `config.data` asks for too many."""
    return _of_source(prepare.open_source(config), 0, 0.0)


def of_images(
    config: ml_collections.ConfigDict, most: int = SAMPLE, whole_below: int = WHOLE
) -> Survey:
    """Looks at folders, lists, archives or data sets of TFDS.

    Args:
      config: a recipe as `prepare.with_locations` returns it; its locations are of the formats
      `LISTED`.
      most: number of labeled files that are examined, if not all files are.
      whole_below: bytes of files up to which all files are examined.

    Raises:
      InputError: what `splits.split` would raise, for the files that were looked at.
    """
    listed = splits.listed(config)
    counts = {role: len(collection.labels) for role, collection in listed.items()}
    sizes = {role: _file_bytes(collection) for role, collection in listed.items()}
    known = {role: size for role, size in sizes.items() if size is not None}
    all_known = len(known) == len(sizes)
    size = sum(known.values()) if all_known else _estimate(listed["labeled"]) * sum(counts.values())
    began = time.perf_counter()
    if size <= whole_below:
        source = splits.split_listed(config, listed)
        return _of_source(source, size, time.perf_counter() - began)
    labeled = listed["labeled"]
    some = _Some(labeled, np.unique(np.linspace(0, len(labeled.labels) - 1, most).astype(int)))
    found = Examination(config.data.on_error, {}).usable(some, "labeled")
    shares = known if all_known else counts
    part = sum(shares.values()) / max(1, shares["labeled"]) * len(labeled.labels) / len(some.labels)
    return Survey(
        images=_counts(config, listed),
        classes=len(labeled.label_names),
        median_height=float(np.median([image.height for image in found.examined])),
        median_width=float(np.median([image.width for image in found.examined])),
        file_bytes=size,
        seconds=part * (time.perf_counter() - began),
        sample=tuple(
            image for image in some.read(found.indices[:KEPT]) if isinstance(image, bytes)
        ),
        examined=len(some.labels),
    )


def _of_source(source: Source, size: int, seconds: float) -> Survey:
    parts = source.splits()
    images = {
        name: len(parts[name]) if name in parts else 0
        for name in ("labeled", "unlabeled", "test", "validation")
    }
    sample = tuple(image.encoded for image in itertools.islice(parts["labeled"], KEPT))
    height, width = (float(source.facts[name]) for name in ("median_height", "median_width"))
    return Survey(images, len(source.label_names), height, width, size, seconds, sample)


def _file_bytes(collection: Collection) -> int | None:
    """Returns the size of the image files in bytes; None if the format does not tell.

    Links that lead nowhere count 0.
    """
    if isinstance(collection, FolderImages):
        return sum(
            os.path.getsize(file.path) for file in collection.files() if os.path.exists(file.path)
        )
    return collection.file_bytes() if isinstance(collection, ArchiveImages) else None


def _estimate(labeled: Collection) -> int:
    """Returns the mean size in bytes of the first image files."""
    read = [
        len(image)
        for image in labeled.read(range(min(KEPT, len(labeled.labels))))
        if isinstance(image, bytes)
    ]
    return int(np.mean(read)) if read else 0


def _counts(config: ml_collections.ConfigDict, listed: Mapping[str, Collection]) -> dict[str, int]:
    """Splits the listed images and returns the splits' sizes.

    It does so as if all images could be used and none repeated another.
    """
    data, names = config.data, listed["labeled"].label_names
    total = len(listed["labeled"].labels)
    unknown = Examined(0, 0, b"", b"", b"")
    labeled = Usable(listed["labeled"], list(range(total)), [unknown] * total, np.arange(total))
    if "test" in listed:
        test = len(listed["test"].labels)
    else:
        held_out, labeled = hold_out_test(labeled, names, data)
        test = len(held_out.indices)
    validation, labeled = hold_out_validation(
        labeled, len(names), validation_size(len(labeled.indices), data), config.seed
    )
    chosen, unused = draw_labeled(labeled, names, data, config.seed)
    left = len(unused.indices)
    as_unlabeled = {"nothing": 0, "rest": left, "all": len(chosen.indices) + left}[
        data.labeled_as_unlabeled
    ]
    return {
        "labeled": len(chosen.indices),
        "unlabeled": as_unlabeled
        + (len(listed["unlabeled"].labels) if "unlabeled" in listed else 0),
        "test": test,
        "validation": len(validation.indices),
    }
