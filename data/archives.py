"""Collection format: tar archives of images, WebDataset's shards among them.

    tar:DIR, tar:FILE.tar, 'tar:DIR/pool-*.tar'

Nothing is ever extracted. An archive is listed once, and images are read from their places in it,
so no name in it can lead anywhere. The class of a labeled image is the number in NAME.cls beside
NAME.jpg (WebDataset), or else its folder (CLASS/NAME.jpg).

The listing skips and counts links, devices and hidden files (macOS adds a `._NAME.jpg` to every
file). It also skips files in folders that computers make by themselves (`__MACOSX`), and images of
other kinds, see `data.formats`. Memory holds the list of names, never the images. Compressed
archives cannot be read at a place: unpack them with gunzip.
"""

from __future__ import annotations

import array
import contextlib
import gzip
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from cli.files import read_file
from cli.progress import progress
from data import split_names
from data.convert import converting
from data.formats import CONVERTIBLE, ENDINGS, HEAD, READABLE, kind_by_name, kind_of, passed_over
from data.sources import (
    Request,
    check_numbers,
    find_files,
    ignored_name,
    ordered_map,
    printable,
    read_at,
)

FILES = r"\.tar$"
"""Names of archives in a folder."""


class Member(NamedTuple):
    """A file in an archive: its name, and its place in the archive's file."""

    name: str
    offset: int
    size: int


class ArchiveImages:
    """A `Collection` of places in files."""

    scattered = True

    def __init__(
        self,
        paths: Sequence[str],
        ignored: Counter[str],
        problems: list[dict[str, str]],
        convert: bool = False,
    ) -> None:
        self._paths, self._convert = paths, convert
        self._file, self._offset, self._size = (array.array(kind) for kind in "iqq")
        self._names: list[str] = []
        self.label_names: tuple[str, ...] = ()
        self.labels = np.zeros(0, np.int32)
        self.ignored = ignored
        self.problems = problems

    def append(self, file: int, member: Member) -> None:
        """Adds an image."""
        self._file.append(file)
        self._offset.append(member.offset)
        self._size.append(member.size)
        self._names.append(member.name)

    def __len__(self) -> int:
        return len(self._names)

    def file_bytes(self) -> int:
        """Returns the size of the image files in bytes, without the archives' own bytes."""
        return sum(self._size)

    def name(self, index: int) -> str:
        """Returns an image's name in its archive."""
        return self._names[index]

    def key(self, index: int) -> str:
        """Returns ARCHIVE/NAME, without the archive's folder."""
        return f"{os.path.basename(self._paths[self._file[index]])}/{self._names[index]}"

    def describe(self, index: int) -> str:
        """Returns archive and name."""
        return f"{printable(self._paths[self._file[index]])}: {printable(self._names[index])}"

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """Yields the bytes of the images, or why one cannot be read."""
        return ordered_map(converting(self._read) if self._convert else self._read, indices)

    def _read(self, index: int) -> bytes | str:
        if printable(self._names[index]) != self._names[index]:
            return "its name is not plain UTF-8"
        try:
            encoded = read_at(
                self._paths[self._file[index]], self._offset[index], self._size[index]
            )
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        return (
            encoded if len(encoded) == self._size[index] else "the archive ends in the middle of it"
        )


def members(path: str, ignored: Counter[str], offset: int = 0) -> Iterator[Member]:
    """Yields the regular files of the tar archive that begins at byte `offset` of a file.

    Counts in `ignored`: links, devices, hidden files, and files in folders that computers make by
    themselves.

    Raises:
      tarfile.TarError: the file is not an archive, or is damaged.
      OSError: the file cannot be read.
    """
    with open(path, "rb") as f:
        f.seek(offset)
        # Offsets count from the beginning of the file.
        with tarfile.open(fileobj=f, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.islnk() or member.issym():
                    ignored["(link)"] += 1
                elif member.isreg() and (why := _ignored(member.name)):
                    ignored[why] += 1
                elif not member.isreg() and not member.isdir():
                    ignored["(named pipe)" if member.isfifo() else "(device)"] += 1
                elif member.isreg():
                    yield Member(member.name, member.offset_data, member.size)
                # Otherwise tarfile would keep every member in memory.
                archive.members.clear()  # type: ignore[attr-defined]
            f.seek(archive.offset)
            # tarfile takes a damaged header for the end of the archive, too.
            if f.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it does not end like a tar archive")


def _ignored(name: str) -> str:
    """Returns why a file of this name, with its folders, is skipped; "" if it is not."""
    return next(
        (
            why
            for part in name.split("/")
            if part not in (".", "..") and (why := ignored_name(part))
        ),
        "",
    )


def compressed_files(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, bytes]:
    """Reads the files of these names from a .tar.gz, in whatever folder they are.

    The files are read into memory; nothing is written.

    Raises:
      ValueError: a file is missing.
      Exception: of many kinds, if the archive is damaged.
    """
    found: dict[str, bytes] = {}
    with gzip.open(path) as f:
        with tarfile.open(fileobj=f, mode="r:") as archive:
            for member in archive:
                name = os.path.basename(member.name)
                if member.isreg() and name in names:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    found[name] = stream.read()
        # Read on to the checksum, which comes after the end of the archive.
        while f.read(1 << 20):
            pass
    missing = sorted(set(names) - set(found))
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return found


def open_archives(request: Request) -> ArchiveImages:
    """Lists archives.

    Raises:
      InputError: there are none; one is damaged (with "skip", what follows the damage is left out);
        a labeled image has no class.
    """
    paths = find_files(request, FILES, "tar archives (*.tar, not compressed)")
    ignored: Counter[str] = Counter()
    problems: list[dict[str, str]] = []
    images = ArchiveImages(paths, ignored, problems, request.convert)
    kinds: Counter[str] = Counter()
    classes: dict[str, str] = {}  # ARCHIVE/NAME without ending -> what its .cls says
    for file, path in enumerate(progress(paths, len(paths), f"list {request.role}")):
        try:
            for member in members(path, ignored):
                stem, ending = _split_name(member.name)
                kind = kind_by_name(member.name)
                if kind is None:
                    kind = kind_of(read_at(path, member.offset, min(member.size, HEAD)))
                if kind == "image" or kind in READABLE or (request.convert and kind in CONVERTIBLE):
                    images.append(file, member)
                elif ending == ".cls" and request.role != "unlabeled":
                    classes[f"{file}/{stem}"] = (
                        read_at(path, member.offset, min(member.size, 100))
                        .decode("ascii", "replace")
                        .strip()
                    )
                else:
                    ignored[printable(ending) or "(no ending)"] += 1
                    kinds.update([kind] if kind else [])
        except (tarfile.TarError, OSError) as error:
            what = (
                "cannot be read"
                if isinstance(error, OSError)
                else "is damaged or is not a tar archive"
            )
            if request.on_error == "fail":
                mend = (
                    "unpack it to .tar first" if _compressed(path) else "mend it or make it again"
                )
                raise request.error(f"{printable(path)} {what} ({_why(error)}); {mend}") from error
            problems.append(
                {
                    "file": printable(path),
                    "why": f"it {what} ({_why(error)}); what follows is left out",
                }
            )
    if not len(images):
        raise request.error(
            f"holds no images ({', '.join(ENDINGS)}){'; ' if kinds else ''}{passed_over(kinds)}"
        )
    if kinds:
        logging.warning("--%s: %s", request.role, passed_over(kinds, setting=not request.convert))
    images.labels = np.full(len(images), -1, np.int32)
    if request.role != "unlabeled":
        _label(images, classes, request)
    return images


def _compressed(path: str) -> bool:
    """Tells by the first bytes whether a file is compressed by gzip, bzip2, xz or zstd."""
    with contextlib.suppress(OSError):
        return read_file(path, 6).startswith(
            (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
        )
    return False


def _why(error: tarfile.TarError | OSError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _split_name(name: str) -> tuple[str, str]:
    """Splits a name by WebDataset's rule.

    Files that belong together have the same name up to the first dot of the last part.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, _ = last.partition(".")
    return folder + slash + stem, (dot + last.rpartition(".")[2]) if dot else ""


def _label(images: ArchiveImages, classes: dict[str, str], request: Request) -> None:
    """Sets labels and names: numbers if there are .cls files, else folders."""
    if classes:
        stored = [
            classes.get(f"{images._file[i]}/{_split_name(images.name(i))[0]}", "")
            for i in range(len(images))
        ]
        for i, text in enumerate(stored):
            if not text.isdigit() or not 0 <= int(text) - request.label_offset < 2**31:
                raise request.error(
                    f"{images.describe(i)} has class {text or '(no .cls)'}; a number of at least "
                    f"{request.label_offset} is needed"
                )
        images.labels = np.array([int(text) - request.label_offset for text in stored], np.int32)
        check_numbers(images.labels, images.describe, request)
        images.label_names = tuple(str(label) for label in range(int(images.labels.max()) + 1))
        return
    folders = [os.path.basename(os.path.dirname(images.name(i))) for i in range(len(images))]
    if not all(folders):
        raise request.error(
            f"{images.describe(folders.index(''))} has no class: it has no .cls file, and it is "
            "not in a folder"
        )
    for name in sorted(set(folders)):
        if printable(name) != name:
            raise request.error(
                f"has a class folder {printable(name)}, which is not plain UTF-8; rename it and"
                " make the archive again"
            )
    images.label_names = tuple(sorted(set(folders)))
    split_names.check_folder_names(request, images.label_names, {})
    above = {part for i in range(len(images)) for part in images.name(i).split("/")[:-2]}
    if len(split_names.splits_among(above)) > 1:
        split_names.warn_of_inner_splits(request, above)
    number = {name: label for label, name in enumerate(images.label_names)}
    images.labels = np.array([number[folder] for folder in folders], np.int32)
