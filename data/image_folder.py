"""A source: a person's own folders of images.

    labeled/CLASS/**/*.jpg     every folder directly below is a class; what is below that is free
    unlabeled/**/*.jpg
    test/CLASS/**/*.jpg        optional; without it, part of the labelled images is held out

JPEG, PNG, GIF (its first frame) and BMP, by content; a file is taken for an image by its name's ending. Symbolic links are followed, hidden
files left alone. Every image is decoded once before anything is written, by the decoder that training uses: what passes here does not stop
a run hours later. The list of file names is held in memory (about 300 bytes each), the images never are.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import tensorflow as tf
from absl import logging

from data.preprocessing import decode
from data.sources import Image, by_class, generator, mixed, ordered_map
from stages.errors import InputError
from stages.progress import progress

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
THREADS = min(16, max(2, os.cpu_count() or 2))


@dataclasses.dataclass(frozen=True)
class File:
    """An image file.

    Attributes:
      path: where it is.
      key: its path below the root folder, with "/" and in Unicode's form NFC, so that it is the same on every file system.
      label: its class; None where unlabelled.
    """

    path: str
    key: str
    label: int | None


@dataclasses.dataclass(frozen=True)
class FileSplit:
    """A `Split` of files, read while one iterates."""

    files: tuple[File, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Image]:
        return ordered_map(_read, self.files, THREADS)


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """See `image_folder`."""

    label_names: tuple[str, ...]
    facts: Mapping[str, Any]
    files: Mapping[str, tuple[File, ...]]

    def splits(self) -> Mapping[str, FileSplit]:
        """The splits by name."""
        return {name: FileSplit(files) for name, files in self.files.items()}


def image_folder(config: ml_collections.ConfigDict) -> ImageFolder:
    """Lists and checks the folders of `config.data`, and splits the labelled images.

    Without `test`, `test_fraction` of each class is held out, by `test_seed` so that every `config.seed` is tested on the same images; at
    least one image of a class goes to the test and at least one stays. Of the rest, `validation_size` images go to validation, drawn by
    `config.seed` in proportion to the classes' sizes, again leaving at least one.

    Raises:
      InputError: a folder is missing, empty or cannot be read; fewer than two classes; a class too small; an image that cannot be decoded
        (with `config.data.on_error` = "skip" it is left out and listed in `facts`).
    """
    data = config.data
    _check_config(data)
    label_names = _class_names(data.labeled, "--labeled")
    if len(label_names) < 2:
        raise InputError(
            f"--labeled: {_printable(data.labeled)} has one class folder only ({label_names[0]}); at least two classes are needed"
        )
    ignored: dict[str, Counter[str]] = {}
    labeled = _list_classes(data.labeled, "--labeled", label_names, ignored)
    _check_classes(labeled, label_names, data.labeled, "holds no images")
    unlabeled = _list_unlabeled(data.unlabeled, ignored)
    test = _list_test(data.test, label_names, ignored) if data.test else []
    _report_ignored(ignored)

    skipped: list[dict[str, str]] = []
    labeled, sizes = _decodable(labeled, data.on_error, skipped, "check labeled")
    _check_classes(labeled, label_names, data.labeled, "has no image that can be decoded")
    test, _ = _decodable(test, data.on_error, skipped, "check test")
    unlabeled, _ = _decodable(unlabeled, data.on_error, skipped, "check unlabeled")
    if data.test and not test:
        raise InputError(
            f"--test: {_printable(data.test)} has no image that can be decoded; leave the flag out to hold out labelled images"
        )
    if not data.test:
        test, labeled = _hold_out_test(labeled, label_names, data)
    validation, labeled = _hold_out_validation(labeled, len(label_names), data.validation_size, config.seed)
    unlabeled, left_out = _without(unlabeled, test + validation, data)
    if not unlabeled:
        raise InputError(f"--unlabeled: {_printable(data.unlabeled)} has no usable image; Noisy Student needs unlabelled ones")

    facts = {
        "median_height": int(np.median(sizes[:, 0])),
        "median_width": int(np.median(sizes[:, 1])),
        "skipped": skipped,
        "ignored": {flag: dict(sorted(counts.items())) for flag, counts in ignored.items()},
        "test_images_left_out_of_unlabeled": left_out,
    }
    splits = {"labeled": labeled, "unlabeled": unlabeled, "test": test, "validation": validation}
    return ImageFolder(
        label_names=label_names,
        facts=facts,
        files={
            name: tuple(mixed(files, data.test_seed if name == "test" else config.seed, f"image folder order {name}"))
            for name, files in splits.items()
            if files
        },
    )


def _check_config(data: ml_collections.ConfigDict) -> None:
    for name in ("labeled", "unlabeled"):
        if not data.get(name):
            raise InputError(f"--{name} is missing; name the folder of {name} images")
    if not data.test and not 0 < data.test_fraction < 1:
        raise InputError(f"config.data.test_fraction is {data.test_fraction}; it must be between 0 and 1")
    if data.validation_size < 0:
        raise InputError(f"config.data.validation_size is {data.validation_size}; it must be at least 0")
    if data.labeled_per_class is not None:
        raise InputError("config.data.labeled_per_class goes with the digits; in folders, every labelled image is used: leave it None")
    if data.test and os.path.realpath(data.test) == os.path.realpath(data.labeled):
        raise InputError(f"--test: {_printable(data.test)} is the folder of --labeled; leave the flag out to hold out labelled images")


# Listing


def _printable(path: str | os.PathLike[str]) -> str:
    """A path for a one-line message or JSON: bytes that are no UTF-8 and line breaks are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r")


def _entries(folder: str, flag: str) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden. Raises InputError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError as error:
        raise InputError(f"{flag}: no folder {_printable(folder)}") from error
    except NotADirectoryError as error:
        raise InputError(f"{flag}: {_printable(folder)} is a file; name a folder") from error
    except OSError as error:
        raise InputError(f"{flag}: {_printable(folder)} cannot be read ({error.strerror}); check its permissions") from error


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _class_folders(root: str, flag: str) -> dict[str, str]:
    """Class name -> folder, sorted by name."""
    folders: dict[str, str] = {}
    for entry in _entries(root, flag):
        if entry.is_dir():
            name = _normal(entry.name)
            if name in folders or _printable(name) != name:
                raise InputError(f"{flag}: the folder name {_printable(entry.path)} is not plain Unicode, or is there twice; rename it")
            folders[name] = entry.path
    return dict(sorted(folders.items()))


def _class_names(root: str, flag: str) -> tuple[str, ...]:
    names = tuple(_class_folders(root, flag))
    if not names:
        raise InputError(f"{flag}: {_printable(root)} has no class folders; sort the images as {_printable(root)}/CLASS/IMAGE")
    return names


def _walk(
    folder: str, prefix: str, flag: str, ignored: Counter[str], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yields (path, key) of the image files below `folder`, in no order; counts the other files by their ending.

    `above` holds the folders (device, inode) that we are inside of: a symbolic link back to one of them is a loop and is not followed.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in _entries(folder, flag):
        key = prefix + _normal(entry.name)
        if entry.is_dir():
            yield from _walk(entry.path, key + "/", flag, ignored, above | {here})
        elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
            yield entry.path, key
        else:
            ignored[_printable(os.path.splitext(entry.name)[1].lower()) or "(no ending)"] += 1


def _sorted(files: Iterable[File], flag: str) -> list[File]:
    """`files` by key. Raises InputError where a key comes twice."""
    result = sorted(files, key=lambda file: file.key)
    for one, other in zip(result, result[1:]):
        if one.key == other.key:
            raise InputError(f"{flag}: two files have the name {_printable(one.path)} in different Unicode forms; rename one")
    return result


def _list_classes(root: str, flag: str, label_names: Sequence[str], ignored: dict[str, Counter[str]]) -> list[File]:
    others = ignored.setdefault(flag, Counter())
    outside = sum(1 for entry in _entries(root, flag) if not entry.is_dir())
    if outside:
        others["(outside the class folders)"] = outside
    folders = _class_folders(root, flag)
    return _sorted(
        (
            File(path, key, label)
            for label, name in enumerate(label_names)
            if name in folders
            for path, key in _walk(folders[name], name + "/", flag, others)
        ),
        flag,
    )


def _list_test(root: str, label_names: Sequence[str], ignored: dict[str, Counter[str]]) -> list[File]:
    unknown = [name for name in _class_names(root, "--test") if name not in label_names]
    if unknown:
        raise InputError(f"--test: {_printable(root)} has a class folder {unknown[0]} that --labeled lacks; remove it or rename it")
    files = _list_classes(root, "--test", label_names, ignored)
    if not files:
        raise InputError(f"--test: {_printable(root)} holds no images; leave the flag out to hold out labelled images")
    return files


def _list_unlabeled(root: str, ignored: dict[str, Counter[str]]) -> list[File]:
    others = ignored.setdefault("--unlabeled", Counter())
    _entries(root, "--unlabeled")  # names the folder where it is missing
    files = _sorted((File(path, key, None) for path, key in _walk(root, "", "--unlabeled", others)), "--unlabeled")
    if not files:
        raise InputError(f"--unlabeled: {_printable(root)} holds no images ({', '.join(ENDINGS)}){_of_other_types(others)}")
    return files


def _of_other_types(others: Counter[str]) -> str:
    counts = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(5))
    return f", only other files ({counts}); convert images of other types" if counts else "; put some there"


def _report_ignored(ignored: Mapping[str, Counter[str]]) -> None:
    for flag, others in ignored.items():
        if others:
            counts = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(5))
            logging.info("%s: files that are no images by name or place, and ignored: %s (%s)", flag, f"{sum(others.values()):,}", counts)


def _check_classes(files: Iterable[File], label_names: Sequence[str], root: str, what: str) -> None:
    present = {file.label for file in files}
    for label, name in enumerate(label_names):
        if label not in present:
            raise InputError(f"--labeled: the class folder {_printable(Path(root) / name)} {what}; add some or remove it")


# Reading and decoding


def _read(file: File) -> Image:
    try:
        return Image(file.key, Path(file.path).read_bytes(), file.label)
    except OSError as error:
        raise InputError(
            f"{_printable(file.path)} could be read before and now cannot ({error.strerror}); run the command again"
        ) from error


def _check(file: File) -> tuple[int, int] | str:
    """Height and width of an image, or why it is of no use.

    The decoder refuses a JPEG that ends early rather than filling the rest with gray: a person who copied half a folder wants to know.
    """
    if _printable(file.key) != file.key:
        return "its name is not plain UTF-8"
    try:
        height, width, _ = decode(tf.constant(Path(file.path).read_bytes())).shape
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError) as error:
        return _why_not_decoded(error.message)
    return height, width


def _why_not_decoded(message: str) -> str:
    """The decoder's message in a user's words."""
    if "Unknown image file format" in message:
        return "it is no JPEG, PNG, GIF or BMP, whatever its name says; TensorFlow decodes no other format"
    if "Input is empty" in message:
        return "the file is empty"
    if "Invalid JPEG data" in message or "Invalid PNG data" in message or "Invalid GIF data" in message:
        return "the image is damaged or cut off"
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|name:\s*$", "", message)
    return f"TensorFlow cannot decode it ({' '.join(text.split()).rstrip('. ')})"


def _decodable(files: list[File], on_error: str, skipped: list[dict[str, str]], what: str) -> tuple[list[File], np.ndarray]:
    """Decodes every file once.

    Returns:
      The files that are images, and their heights and widths, int32 [n, 2]. The others are appended to `skipped`.

    Raises:
      InputError: `on_error` is "fail" and a file is no image.
    """
    usable, sizes = [], []
    for file, result in progress(zip(files, ordered_map(_check, files, THREADS)), len(files), what):
        if not isinstance(result, str):
            usable.append(file)
            sizes.append(result)
        elif on_error == "skip":
            skipped.append({"file": _printable(file.path), "why": result})
            logging.info("skipped %s: %s", _printable(file.path), result)
        else:
            raise InputError(
                f"{_printable(file.path)}: {result}; mend or remove it, or leave such files out with --config.data.on_error=skip"
            )
    return usable, np.array(sizes, np.int32).reshape(-1, 2)


# Splitting


def _hold_out_test(labeled: list[File], label_names: Sequence[str], data: ml_collections.ConfigDict) -> tuple[list[File], list[File]]:
    counts = []
    for name, indices in zip(label_names, by_class((file.label for file in labeled if file.label is not None), len(label_names))):
        if len(indices) < 2:
            where = _printable(Path(data.labeled) / name)
            raise InputError(f"--labeled: {where} has one usable image, none to spare for testing; add images or give --test=DIR")
        counts.append(min(max(1, round(data.test_fraction * len(indices))), len(indices) - 1))
    return _draw(labeled, counts, data.test_seed, "image folder test")


def _hold_out_validation(labeled: list[File], num_classes: int, total: int, seed: int) -> tuple[list[File], list[File]]:
    spare = np.bincount([file.label for file in labeled if file.label is not None], minlength=num_classes) - 1  # (K,); one stays
    if total > spare.sum():
        raise InputError(f"config.data.validation_size is {total}; {spare.sum()} labelled images can be spared (one of each class stays)")
    exact = total * spare / max(1, spare.sum())
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1  # largest remainders
    return _draw(labeled, counts.tolist(), seed, "image folder validation")


def _draw(files: list[File], counts: Sequence[int], seed: int, purpose: str) -> tuple[list[File], list[File]]:
    """Draws `counts[c]` files of each class c; returns them and the others, both in the order of `files`."""
    drawn: set[int] = set()
    for label, indices in enumerate(by_class((file.label for file in files if file.label is not None), len(counts))):
        order = generator(seed, purpose, label).permutation(len(indices))
        drawn.update(indices[i] for i in order[: counts[label]])
    return [file for i, file in enumerate(files) if i in drawn], [file for i, file in enumerate(files) if i not in drawn]


def _without(unlabeled: list[File], held_out: list[File], data: ml_collections.ConfigDict) -> tuple[list[File], int]:
    """`unlabeled` without the images that are held out, where the folders overlap: training must not see them, not even unlabelled."""
    roots = [os.path.realpath(root) + os.sep for root in (data.unlabeled, data.test or data.labeled, data.labeled)]
    if not any(root.startswith(roots[0]) or roots[0].startswith(root) for root in roots[1:]):
        return unlabeled, 0
    ours = {os.path.realpath(file.path) for file in held_out}
    kept = [file for file in unlabeled if os.path.realpath(file.path) not in ours]
    left_out = len(unlabeled) - len(kept)
    if left_out:
        logging.info("--unlabeled: left out %s images that are held out for testing", f"{left_out:,}")
    return kept, left_out
