"""Tells whether the images are still the prepared images.

`sources.json` in a data directory says, for each location, which files were read: how many, their
sizes and times, and what was in them. A later start lists the files anew, about 3 system calls
each, and reads none. If only times differ, it reads the images again and compares their contents.

The digests are sums, so the order of the files does not matter and no file is held in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from cli.errors import InputError
from cli.json_files import read_json, write_json
from cli.progress import progress
from data import archives, corrections
from data.sources import TFRECORD_FILES, Collection, Request, find_files, split_location

FILE = "sources.json"
ROLES = ("labeled", "unlabeled", "test", "pseudo_labeled")

_FIXED = {
    ("imagenet", "train"): r"train-\d{5}-of-\d{5}|ILSVRC2012_img_train\.tar",
    (
        "imagenet",
        "test",
    ): r"validation-\d{5}-of-\d{5}|ILSVRC2012_img_val\.tar|ILSVRC2012_devkit_t12\.tar\.gz",
    ("cifar10", "train"): r"cifar-10-python\.tar\.gz",
    ("cifar10", "test"): r"cifar-10-python\.tar\.gz",
    ("svhn", "train"): r"(train|extra)_32x32\.mat",
    ("svhn", "test"): r"test_32x32\.mat",
}
"""Files of the formats with fixed names."""


_SCHEMA = {str: {"files": {str: int}, "bytes": int, "names": str, "times": str, "content": str}}


class Sum:
    """Digest of items in any order: 128 bits."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, *parts: str | bytes | int) -> None:
        """Adds an item."""
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
            digest.update(b"%d:" % len(data) + data)
        self._total = (self._total + int.from_bytes(digest.digest(), "little")) % 2**128

    def __str__(self) -> str:
        return f"{self._total:032x}"


def listed(
    role: str, data: ml_collections.ConfigDict, collection: Collection | None = None
) -> dict[str, Any] | None:
    """Describes the files of a location.

    The description has counts by class folder, a digest of names with sizes, and a digest of times.

    Args:
      role: one of `ROLES`.
      data: `config.data`, which names the location.
      collection: the location, if it is open already.

    Returns:
      The description; None for formats without their own files.

    Raises:
      InputError: the location cannot be listed.
    """
    names, times, size, counts = Sum(), Sum(), 0, Counter[str]()
    files = _files(role, data, collection)
    if files is None:
        return None
    for group, name, path in files:
        try:
            status = os.stat(path)
        except OSError:  # such as a link that leads nowhere
            names.add(name, "missing")
        else:
            names.add(name, status.st_size)
            times.add(name, status.st_mtime_ns)
            size += status.st_size
        counts[group] += 1
    return {
        "files": dict(sorted(counts.items())),
        "bytes": size,
        "names": str(names),
        "times": str(times),
    }


def _files(
    role: str, data: ml_collections.ConfigDict, collection: Collection | None
) -> Iterable[tuple[str, str, str]] | None:
    """Returns (class folder or "", name, path) of each file that is read; None without files."""
    format_, location = split_location(
        data[role], "tfrecord" if role == "pseudo_labeled" else data.source
    )
    request = Request(location, role, data.label_offset, data.on_error)
    if format_ in ("image_folder", "manifest"):
        folder: Any = collection if collection is not None else corrections.open_role(role, data)
        return folder.listing()
    if format_ in ("tar", "tfrecord"):
        pattern = archives.FILES if format_ == "tar" else TFRECORD_FILES
        return (
            ("", os.path.basename(path), path)
            for path in find_files(request, pattern, "files any more")
        )
    fixed = _FIXED.get((format_, "test" if role == "test" else "train"))
    return None if fixed is None else _named(location, fixed)


def _named(folder: str, pattern: str) -> Iterator[tuple[str, str, str]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        names = []
    return (("", name, os.path.join(folder, name)) for name in names if re.fullmatch(pattern, name))


def content(
    total: Sum, collection: Collection, encoded: Iterable[bytes | str]
) -> Iterator[bytes | str]:
    """Yields each image that was read, after adding it to the digest `total`."""
    for index, image in enumerate(encoded):
        total.add(
            collection.key(index),
            (
                hashlib.blake2b(image, digest_size=16).digest()
                if isinstance(image, bytes)
                else "unreadable"
            ),
        )
        yield image


def write(directory: Path, sources: Mapping[str, Any]) -> None:
    """Writes `sources.json`; writes nothing for data without files."""
    if sources:
        write_json(directory / FILE, dict(sources))


def require_unchanged(directory: Path, data: ml_collections.ConfigDict) -> None:
    """Checks that `directory` was prepared from the files of `data`.

    A directory without `sources.json`, from before that file existed, is taken as it is.

    Raises:
      InputError: the files differ.
    """
    if data.get("use_as_prepared", False) or not (directory / FILE).exists():
        return
    before = read_json(directory / FILE, _SCHEMA)
    changes: list[str] = []
    touched: dict[str, Any] = {}
    for role, then in before.items():
        try:
            now = listed(role, data)
        except InputError as error:
            changes.append(str(error))
            continue
        if now is None or any(now[key] != then[key] for key in ("files", "names")):
            changes.append(f"--{role}: {_difference(then, now or {'files': {}, 'bytes': 0})}")
        elif now["times"] != then["times"]:
            if _content(role, data) != then["content"]:
                changes.append(
                    f"--{role}: the files have the same names and sizes as before, but other "
                    "contents"
                )
            touched[role] = {**then, **now}
    if changes:
        raise InputError(
            f"{directory} was prepared from other images than there are now ({'; '.join(changes)});"
            " name another --workdir, or use the prepared data as they are with"
            " --config.data.use_as_prepared=True"
        )
    if touched:
        write(directory, {**before, **touched})


def unchanged(directory: Path, data: ml_collections.ConfigDict) -> bool:
    """Tells whether `directory` was prepared from the files of `data`.

    Compares names, sizes and times; reads no image and imports no TensorFlow. If the answer is no,
    `require_unchanged` says why, or that only times differ.
    """
    if not (directory / FILE).exists():
        return True
    before = read_json(directory / FILE, _SCHEMA)
    now = {role: listed(role, data) for role in before}
    return all(
        found is not None and found.items() <= before[role].items() for role, found in now.items()
    )


def _content(role: str, data: ml_collections.ConfigDict) -> str:
    """Returns the digest of all images of a location, read again."""
    if role == "pseudo_labeled":
        from data import tfrecords  # here, since it imports TensorFlow

        collection: Collection = tfrecords.open_records(
            Request(data[role], "unlabeled", on_error=data.on_error)
        )
    else:
        collection = corrections.open_role(role, data)
    count = len(collection.labels)
    total = Sum()
    for _ in content(
        total,
        collection,
        progress(
            collection.read(range(count)),
            count,
            f"reads {role} again, because files have new times",
        ),
    ):
        pass
    return str(total)


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describes in words how two listings differ: numbers of files, then the classes."""
    old, new = then["files"], now["files"]
    words = [f"{sum(old.values()):,} -> {sum(new.values()):,} files"]
    if old == new:
        return f"{sum(old.values()):,} files as before, but with other names or sizes"
    for known, others, what in ((new, old, "new"), (old, new, "gone")):
        names = [name for name in known if name and name not in others]
        if names:
            words.append(
                f"class {names[0]} is {what}"
                if len(names) == 1
                else f"classes {', '.join(names[:3])}, ... are {what}"
            )
    return ", ".join(words)
