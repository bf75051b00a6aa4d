"""Collection format: a person's own folders of images.

    labeled/CLASS/**/*.jpg     every folder directly below is a class; what is below that is free
    unlabeled/**/*.jpg
    test/CLASS/**/*.jpg

Files are JPEG, PNG, GIF (its first frame) and BMP; with `convert` also what `data.convert` turns
into PNG. A file is taken for an image by its name's ending, or by its first bytes if the ending is
unknown, see `data.formats`. Symbolic links are followed.

Skipped and counted: hidden files, folders that computers make by themselves (`@eaDir`, `__MACOSX`),
named pipes and the like, images of other kinds, and earlier runs' work directories. Memory holds
the list of file names (about 300 bytes each), never the images.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from cli.errors import InputError
from cli.files import read_file, what_is
from cli.work_dirs import is_work_directory
from data import split_names
from data.convert import converting
from data.formats import (
    CONVERTIBLE,
    ENDINGS,
    HEAD,
    READABLE,
    ending_of,
    kind_by_name,
    kind_of,
    passed_over,
)
from data.sources import Request, entries, ordered_map, printable


class File(NamedTuple):
    """An image file.

    Attributes:
      path: path of the file.
      key: its path below the root folder, with "/" and in Unicode's form NFC, so that it is the
        same on every file system.
      label: its class; −1 if unlabeled.
      place: the place in the list that names it; "" without a list.
    """

    path: str
    key: str
    label: int
    place: str = ""


class FolderImages:
    """A `Collection` of files."""

    scattered = True
    problems: Sequence[Mapping[str, str]] = ()

    def __init__(
        self,
        files: list[File],
        label_names: tuple[str, ...],
        ignored: Mapping[str, int],
        convert: bool = False,
    ) -> None:
        self._files, self.convert = files, convert
        self.label_names = label_names
        self.labels = np.array([file.label for file in files], np.int32)
        self.ignored = ignored

    def key(self, index: int) -> str:
        """Returns the path below the root."""
        return self._files[index].key

    def describe(self, index: int) -> str:
        """Returns the path, and the place in the list that names it."""
        file = self._files[index]
        return printable(file.path) + (f" ({file.place})" if file.place else "")

    def files(self) -> list[File]:
        """Returns the files, in order."""
        return self._files

    def listing(self) -> Iterator[tuple[str, str, str]]:
        """Yields (class or "", key with the class before it, path) of each file."""
        for file in self._files:
            name = self.label_names[file.label] if self.label_names else ""
            inside = not name or file.key.startswith(f"{name}/")
            yield name, file.key if inside else f"{name}/{file.key}", file.path

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """Yields the bytes of the files, or why one cannot be read."""
        return ordered_map(converting(self._read) if self.convert else self._read, indices)

    def _read(self, index: int) -> bytes | str:
        file = self._files[index]
        if printable(file.key) != file.key:
            return "its name is not plain UTF-8"
        try:
            return read_file(file.path)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"


def open_folder(request: Request) -> FolderImages:
    """Lists a folder.

    Raises:
      InputError: the folder is missing, empty or cannot be read; it has no class folders; a class
        folder is empty.
    """
    root, flag = request.location, f"--{request.role}"
    listing = _Listing(root, flag, request.convert)
    if request.role == "unlabeled":
        entries(root, flag)  # fails with the folder's name if it is missing
        files = _sorted((File(path, key, -1) for path, key in listing.walk(root)), flag)
        label_names: tuple[str, ...] = ()
    else:
        folders = listing.class_folders()
        label_names = tuple(folders)
        if not folders:
            raise InputError(
                f"{flag}: {printable(root)} has no class folders; sort the images into "
                f"{printable(root)}/CLASS/IMAGE"
            )
        files = _sorted(
            (
                File(path, key, label)
                for label, (name, folder) in enumerate(folders.items())
                for path, key in listing.walk(folder, name + "/")
            ),
            flag,
        )
    ignored = listing.ignored
    if label_names:
        subfolders = _subfolders(files)
        split_names.check_folder_names(request, label_names, subfolders)
        if len(label_names) == 1 and len(subfolders.get(label_names[0], ())) > 1:
            inside = ", ".join(map(printable, sorted(subfolders[label_names[0]])[:5]))
            folder = printable(Path(root) / label_names[0])
            raise InputError(
                f"{flag}: {printable(root)} has only one class ({label_names[0]}); if the classes "
                f"are {inside}, name {folder} instead"
            )
    if not files:
        raise InputError(
            f"{flag}: {printable(root)} holds no images"
            f" ({', '.join(ENDINGS)}){_of_other_types(ignored)}"
        )
    empty = set(range(len(label_names))) - {file.label for file in files}
    if empty:
        name = label_names[min(empty)]
        held = _Listing(root, flag, request.convert)
        list(held.walk(folders[name]))
        what = _of_other_types(held.ignored) if held.ignored else "; add some or remove it"
        raise InputError(
            f"{flag}: the class folder {printable(Path(root) / name)} holds no images{what}"
        )
    listing.tell()
    return FolderImages(files, label_names, ignored, request.convert)


def images_below(root: str) -> list[str]:
    """Lists the image files below a folder, sorted, and reports what is skipped.

    What counts as an image, and what is skipped, is as in `open_folder` with images to convert.

    Raises:
      InputError: the folder cannot be read.
    """
    listing = _Listing(root, printable(root), convert=True)
    paths = [path for _, path in sorted((key, path) for path, key in listing.walk(root))]
    listing.tell()
    return paths


def _subfolders(files: Iterable[File]) -> dict[str, set[str]]:
    """Maps each class folder that has subfolders with images to those subfolders."""
    found: dict[str, set[str]] = {}
    for file in files:
        parts = file.key.split("/", 2)
        if len(parts) == 3:
            found.setdefault(parts[0], set()).add(parts[1])
    return found


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_folder(entry: os.DirEntry[str], flag: str) -> bool:
    """Tells whether an entry is a folder or leads to one. Raises InputError if that is unknown."""
    try:
        return entry.is_dir()
    except OSError as error:  # such as a link that leads in a circle
        raise InputError(
            f"{flag}: {printable(entry.path)} cannot be read ({error.strerror}); mend or remove it"
        ) from error


class _Listing:
    """Finds the images below a root folder, and counts what is skipped.

    Attributes:
      ignored: number of files skipped, by ending or reason; a skipped folder counts once.
      kinds: number of images that cannot be read, by kind.
    """

    def __init__(self, root: str, flag: str, convert: bool) -> None:
        self._root, self._flag, self._convert = root, flag, convert
        self.ignored: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def class_folders(self) -> dict[str, str]:
        """Maps class names to folders, sorted by name. Raises InputError for an unreadable root."""
        folders: dict[str, str] = {}
        for entry in entries(self._root, self._flag, self.ignored):
            if not _is_folder(entry, self._flag):
                self.ignored["(outside the class folders)"] += 1
            elif is_work_directory(entry.path):
                self._pass_over_work_directory(entry.path)
            else:
                name = _normal(entry.name)
                if name in folders or printable(name) != name:
                    raise InputError(
                        f"{self._flag}: the folder name {printable(entry.path)} is not plain"
                        " Unicode, or is there twice; rename it"
                    )
                folders[name] = entry.path
        return dict(sorted(folders.items()))

    def walk(
        self, folder: str, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()
    ) -> Iterator[tuple[str, str]]:
        """Yields (path, key) of the image files below `folder`, in no order; counts the others.

        `above` holds the folders (device, inode) that contain `folder`. A symbolic link back to one
        of them is a loop and is not followed.
        """
        try:
            status = os.stat(folder)
        except OSError as error:
            raise InputError(
                f"{self._flag}: {printable(folder)} cannot be read ({error.strerror}); check its"
                " permissions"
            ) from error
        here = (status.st_dev, status.st_ino)
        if here in above:
            self.ignored["(link in a circle)"] += 1
            return
        for entry in entries(folder, self._flag, self.ignored):
            key = prefix + _normal(entry.name)
            if _is_folder(entry, self._flag):
                if is_work_directory(entry.path):
                    self._pass_over_work_directory(entry.path)
                else:
                    yield from self.walk(entry.path, key + "/", above | {here})
            elif self._is_image(entry):
                yield entry.path, key

    def tell(self) -> None:
        """Logs what has been skipped."""
        if self.ignored:
            shown = self.ignored.most_common(5)
            total = sum(self.ignored.values())
            others = total - sum(count for _, count in shown)
            counts = ", ".join(
                f"{ending} {count:,}"
                for ending, count in [*shown, *([("others", others)] if others else [])]
            )
            text = "%s: ignored files that are not images by name or place: %s (%s)"
            logging.info(text, self._flag, f"{total:,}", counts)
        if self.kinds:
            logging.warning(
                "%s: %s", self._flag, passed_over(self.kinds, setting=not self._convert)
            )

    def _pass_over_work_directory(self, path: str) -> None:
        self.ignored["(work directory)"] += 1
        logging.warning(
            "%s: %s is the work directory of a run, so it is skipped", self._flag, printable(path)
        )

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        """Tells by its name or first bytes whether a file is an image; counts it if it is not."""
        kind = kind_by_name(entry.name)
        broken = entry.is_symlink() and not os.path.exists(entry.path)
        # A broken link that is named as an image is a missing image.
        if broken and kind != "image":
            self.ignored["(broken link)"] += 1
            return False
        if not broken and not entry.is_file():
            self.ignored[f"({what_is(entry.stat().st_mode)})"] += 1
            return False
        if kind is None:
            try:
                kind = kind_of(read_file(entry.path, HEAD))
            except OSError:
                # Not worth an error: nothing says that it is an image.
                kind = ""
        if kind == "image" or kind in READABLE or (self._convert and kind in CONVERTIBLE):
            return True
        self.ignored[printable(ending_of(entry.name)) or "(no ending)"] += 1
        if kind:
            self.kinds[kind] += 1
        return False


def _sorted(files: Iterable[File], flag: str) -> list[File]:
    """Sorts `files` by key. Raises InputError if a key comes twice."""
    result = sorted(files, key=lambda file: file.key)
    for one, other in zip(result, result[1:]):
        if one.key == other.key:
            raise InputError(
                f"{flag}: two files have the name {printable(one.path)} in different Unicode forms;"
                " rename one"
            )
    return result


def _of_other_types(others: Counter[str]) -> str:
    counts = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(5))
    return (
        f", only other files ({counts}); convert images of other types"
        if counts
        else "; put some there"
    )
