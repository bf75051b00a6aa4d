"""A format of collections: a person's own folders of images.

    labeled/CLASS/**/*.jpg     every folder directly below is a class; what is below that is free
    unlabeled/**/*.jpg
    test/CLASS/**/*.jpg

JPEG, PNG, GIF (its first frame) and BMP, by content; a file is taken for an image by its name's ending. Symbolic links are followed, hidden
files left alone. The list of file names is held in memory (about 300 bytes each), the images never are.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from data.sources import Request, entries, ordered_map, printable
from stages.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp")


class File(NamedTuple):
    """An image file.

    Attributes:
      path: where it is.
      key: its path below the root folder, with "/" and in Unicode's form NFC, so that it is the same on every file system.
      label: its class; −1 where unlabelled.
    """

    path: str
    key: str
    label: int


class FolderImages:
    """A `Collection` of files."""

    scattered = True
    problems = ()

    def __init__(self, files: list[File], label_names: tuple[str, ...], ignored: Mapping[str, int]) -> None:
        self._files = files
        self.label_names = label_names
        self.labels = np.array([file.label for file in files], np.int32)
        self.ignored = ignored

    def key(self, index: int) -> str:
        """The path below the root."""
        return self._files[index].key

    def where(self, index: int) -> str:
        """The path."""
        return printable(self._files[index].path)

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """The files' bytes."""
        return ordered_map(self._read, indices)

    def _read(self, index: int) -> bytes | str:
        file = self._files[index]
        if printable(file.key) != file.key:
            return "its name is not plain UTF-8"
        try:
            return Path(file.path).read_bytes()
        except OSError as error:
            return f"it cannot be read: {error.strerror}"


def open_folder(request: Request) -> FolderImages:
    """Lists a folder.

    Raises:
      InputError: it is missing, empty or cannot be read; it has no class folders; one of them is empty.
    """
    root, flag = request.location, f"--{request.role}"
    ignored: Counter[str] = Counter()
    if request.role == "unlabeled":
        entries(root, flag)  # names the folder where it is missing
        files = _sorted((File(path, key, -1) for path, key in _walk(root, "", flag, ignored)), flag)
        label_names: tuple[str, ...] = ()
    else:
        folders = _class_folders(root, flag)
        label_names = tuple(folders)
        if not folders:
            raise InputError(f"{flag}: {printable(root)} has no class folders; sort the images as {printable(root)}/CLASS/IMAGE")
        files = _list_classes(root, flag, folders, ignored)
    if not files:
        raise InputError(f"{flag}: {printable(root)} holds no images ({', '.join(ENDINGS)}){_of_other_types(ignored)}")
    empty = set(range(len(label_names))) - {file.label for file in files}
    if empty:
        raise InputError(
            f"{flag}: the class folder {printable(Path(root) / label_names[min(empty)])} holds no images; add some or remove it"
        )
    if ignored:
        counts = ", ".join(f"{ending} {count:,}" for ending, count in ignored.most_common(5))
        logging.info("%s: files that are no images by name or place, and ignored: %s (%s)", flag, f"{sum(ignored.values()):,}", counts)
    return FolderImages(files, label_names, ignored)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_folder(entry: os.DirEntry[str], flag: str) -> bool:
    """Whether it is a folder or leads to one. Raises InputError where that cannot be told."""
    try:
        return entry.is_dir()
    except OSError as error:  # such as a link that leads in a circle
        raise InputError(f"{flag}: {printable(entry.path)} cannot be read ({error.strerror}); mend or remove it") from error


def _class_folders(root: str, flag: str) -> dict[str, str]:
    """Class name -> folder, sorted by name."""
    folders: dict[str, str] = {}
    for entry in entries(root, flag):
        if _is_folder(entry, flag):
            name = _normal(entry.name)
            if name in folders or printable(name) != name:
                raise InputError(f"{flag}: the folder name {printable(entry.path)} is not plain Unicode, or is there twice; rename it")
            folders[name] = entry.path
    return dict(sorted(folders.items()))


def _walk(
    folder: str, prefix: str, flag: str, ignored: Counter[str], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, str]]:
    """Yields (path, key) of the image files below `folder`, in no order; counts the other files by their ending.

    `above` holds the folders (device, inode) that we are inside of: a symbolic link back to one of them is a loop and is not followed.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        raise InputError(f"{flag}: {printable(folder)} cannot be read ({error.strerror}); check its permissions") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries(folder, flag):
        key = prefix + _normal(entry.name)
        if _is_folder(entry, flag):
            yield from _walk(entry.path, key + "/", flag, ignored, above | {here})
        elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
            yield entry.path, key
        else:
            ignored[printable(os.path.splitext(entry.name)[1].lower()) or "(no ending)"] += 1


def _sorted(files: Iterable[File], flag: str) -> list[File]:
    """`files` by key. Raises InputError where a key comes twice."""
    result = sorted(files, key=lambda file: file.key)
    for one, other in zip(result, result[1:]):
        if one.key == other.key:
            raise InputError(f"{flag}: two files have the name {printable(one.path)} in different Unicode forms; rename one")
    return result


def _list_classes(root: str, flag: str, folders: Mapping[str, str], ignored: Counter[str]) -> list[File]:
    outside = sum(1 for entry in entries(root, flag) if not _is_folder(entry, flag))
    if outside:
        ignored["(outside the class folders)"] = outside
    return _sorted(
        (
            File(path, key, label)
            for label, (name, folder) in enumerate(folders.items())
            for path, key in _walk(folder, name + "/", flag, ignored)
        ),
        flag,
    )


def _of_other_types(others: Counter[str]) -> str:
    counts = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(5))
    return f", only other files ({counts}); convert images of other types" if counts else "; put some there"
