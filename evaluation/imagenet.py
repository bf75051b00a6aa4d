"""Opens ImageNet's robustness sets as they are released: their classes and their examples.

    A      DIR/<wnid>/*.jpg                   200 classes
    C      DIR/[noise|blur|weather|digital|extra/]<corruption>/<1..5>/<wnid>/*.JPEG
                                              each tar, or any part of them
    P      DIR/<perturbation>/<wnid>/*.mp4    31 frames (translate 41)
    ReaL   real.json: 50,000 lists of classes, for ILSVRC2012_val_00000001 … 50000

Classes are counted from 0 in the order of the sorted WordNet ids, as in every TensorFlow release.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cli.errors import InputError, one_line
from cli.json_files import read_json
from evaluation.examples import Examples, from_files, from_videos, read_video
from evaluation.robustness import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    EXTRA_PERTURBATIONS,
    PERTURBATIONS,
    SEVERITIES,
)

NUM_CLASSES = 1000
_GROUPS = ("", "noise", "blur", "weather", "digital", "extra")
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")

# fmt: off
A_CLASSES = np.array(
    [
        6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96,
        97, 99, 105, 107, 108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254,
        277, 283, 287, 291, 295, 298, 301, 306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319,
        323, 324, 326, 327, 330, 334, 335, 336, 347, 361, 363, 372, 378, 386, 397, 400, 401, 402,
        404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461, 462, 470, 472,
        483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557, 561, 562, 569,
        572, 573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677,
        682, 684, 687, 701, 704, 719, 736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779,
        780, 786, 792, 797, 802, 803, 804, 813, 815, 820, 823, 831, 833, 835, 839, 845, 847, 850,
        859, 862, 870, 879, 880, 888, 890, 897, 900, 907, 913, 924, 932, 933, 934, 937, 943, 945,
        947, 951, 954, 956, 957, 959, 971, 972, 980, 981, 984, 986, 987, 988,
    ],
    np.int64,
)
# fmt: on
"""The 200 classes of ImageNet-A."""


def wnids() -> tuple[str, ...]:
    """Returns the WordNet id of each of the 1,000 classes."""
    import tensorflow_datasets as tfds  # here: no other evaluation needs it

    names = (
        Path(str(tfds.core.tfds_path("datasets/imagenet2012/labels.txt")))
        .read_text(encoding="utf-8")
        .split()
    )
    if len(names) != NUM_CLASSES or names != sorted(names):
        raise AssertionError(
            "tensorflow-datasets' list of ImageNet's classes is not the sorted 1,000 WordNet ids"
        )
    return tuple(names)


def _class_folders(directory: Path) -> list[tuple[str, int]]:
    """Returns the folders of `directory` with their classes; their names are WordNet ids.

    Raises:
      InputError: a folder has any other name, or there are no folders.
    """
    classes = {name: i for i, name in enumerate(wnids())}
    folders = sorted(
        path.name for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    strange = [name for name in folders if name not in classes]
    if strange or not folders:
        found = f"the folder {strange[0]}" if strange else "no folders"
        raise InputError(
            f"{directory} holds {found}; its folders must be WordNet ids of ImageNet's classes"
        )
    return [(name, classes[name]) for name in folders]


def _directory(path: str | Path, what: str) -> Path:
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(
            f"{what}: {directory} does not exist; give the directory that was unpacked"
        )
    return directory


def imagenet_a(path: str | Path) -> Examples:
    """Returns ImageNet-A. Raises InputError where a folder is not one of its 200 classes."""
    directory = _directory(path, "--data_a")
    folders = _class_folders(directory)
    other = [name for name, label in folders if label not in set(A_CLASSES.tolist())]
    if other:
        raise InputError(f"--data_a: {directory / other[0]} is not one of ImageNet-A's 200 classes")
    return from_files(directory, "a", folders, NUM_CLASSES)


def class_folders(path: str | Path) -> Examples:
    """Returns photographs of ImageNet's classes. Raises InputError for a folder of no class."""
    directory = _directory(path, "--check")
    return from_files(directory, "photographs", _class_folders(directory), NUM_CLASSES)


def imagenet_c(path: str | Path) -> dict[str, dict[int, Examples]]:
    """Returns ImageNet-C, as far as it is there: corruption -> severity -> examples.

    Each corruption has all five severities.

    Raises:
      InputError: no corruption is there, or one lacks a severity.
    """
    directory = _directory(path, "--data_c")
    found: dict[str, dict[int, Examples]] = {}
    for corruption in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
        places = [
            directory / group / corruption
            for group in _GROUPS
            if (directory / group / corruption).is_dir()
        ]
        if not places:
            continue
        missing = [severity for severity in SEVERITIES if not (places[0] / str(severity)).is_dir()]
        if missing:
            raise InputError(f"--data_c: {places[0]} lacks severity {missing[0]}; unpack it again")
        found[corruption] = {
            severity: from_files(
                places[0] / str(severity),
                f"{corruption}-{severity}",
                _class_folders(places[0] / str(severity)),
                NUM_CLASSES,
            )
            for severity in SEVERITIES
        }
    if not found:
        raise InputError(
            f"--data_c: {directory} holds none of ImageNet-C's corruptions ({CORRUPTIONS[0]}, …)"
        )
    return found


def imagenet_p(path: str | Path, difficulty: int) -> dict[str, tuple[Examples, int]]:
    """Returns ImageNet-P, as far as it is there: perturbation -> (examples, frames of a sequence).

    Args:
      path: directory of ImageNet-P.
      difficulty: 1 to 3. Noise of difficulty 2 and 3 is in separate folders, such as
        gaussian_noise_2.

    Raises:
      InputError: no perturbation is there, or sequences differ in length.
    """
    directory = _directory(path, "--data_p")
    found = {}
    for perturbation in (*PERTURBATIONS, *EXTRA_PERTURBATIONS):
        separate = "noise" in perturbation and difficulty > 1
        folder = directory / (f"{perturbation}_{difficulty}" if separate else perturbation)
        if not folder.is_dir():
            continue
        videos = [
            (file, f"{name}/{file.stem}", label)
            for name, label in _class_folders(folder)
            for file in sorted((folder / name).glob("*.mp4"))
        ]
        if not videos:
            raise InputError(f"--data_p: {folder} holds no .mp4 files")
        frames = len(read_video(videos[0][0]))
        found[perturbation] = (
            from_videos(videos, perturbation, str(folder), frames, NUM_CLASSES),
            frames,
        )
    if not found:
        raise InputError(
            f"--data_p: {directory} holds none of ImageNet-P's perturbations"
            f" ({PERTURBATIONS[0]}, …)"
        )
    return found


def real_labels(path: str | Path, keys: Sequence[str]) -> list[list[int]]:
    """Returns ReaL's labels for images with these keys.

    They are joined by the ILSVRC2012_val_… in the key, never by position.

    Raises:
      InputError: an unreadable file, or a key without such a name.
    """
    try:
        lists = read_json(path, [[int]])
    except (FileNotFoundError, InputError) as error:
        reason = one_line(error)
        raise InputError(
            f"--data_real: {path} cannot be read, or is not a list of lists of classes ({reason}); "
            "give the authors' file"
        ) from error
    labels = []
    for key in keys:
        match = _VALIDATION_NAME.search(key)
        number = int(match.group(1)) if match else 0
        if not 1 <= number <= len(lists):
            raise InputError(
                f"--data_real: the image {key} has no name like ILSVRC2012_val_00000001 of"
                f" 1..{len(lists)}; it cannot be joined"
            )
        labels.append(lists[number - 1])
    return labels
