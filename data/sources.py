"""The interface of a data set to `data.prepare`: label names, and splits of images.

There are two layers. A *collection* is the images of one role as some format keeps them: a folder,
TFRecords, tar archives, a TFDS data set. Locations of collections are written `[FORMAT:]PATH`, one
each for `--labeled`, `--unlabeled` and `--test`, and may mix formats. A *source* is the result once
the collections are checked and split (`data.splits`).

To add a format, write a function `Request -> Collection` and name it in `data.settings.FORMATS`.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import hashlib
import importlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import ml_collections
import numpy as np

from cli.errors import InputError
from data import formats
from data.manifest import INDEX_ENDING
from data.settings import FORMATS

if TYPE_CHECKING:
    from data.duplicates import KnownImages  # which needs TensorFlow

TFRECORD_FILES = r"^[^.]+(\.tfrecords?)?(-\d+-of-\d+)?$|\.tfrecords?(-\d+-of-\d+)?$"
"""Names of TFRecord files: `train-00000-of-01024`, `x.tfrecord-00000-of-00001`, `pool.tfrecord`,
`pool`; not `manifest.json`."""

SPLITS = ("labeled", "unlabeled", "test", "validation")

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
      key: its stable name, unique within its split.
      encoded: the image file, in a format that TensorFlow decodes (JPEG, PNG, GIF, BMP).
      label: its class, from 0; None in the unlabeled split.
    """

    key: str
    encoded: bytes
    label: int | None


class Split(Protocol):
    """Images in the order in which they are to be written.

    The seed mixes them, so that no shard is all one class or one domain. They are read while one
    iterates, in bounded memory. The same images come in the same order every time.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image]: ...


class Source(Protocol):
    """A data set that is known to be usable.

    Whatever can be wrong with the input was found when it was opened.

    Its images and their splits are a function of the input and of `config.seed`. The test split is
    a function of `config.data.test_seed` alone, so that results of several seeds are about the same
    images.
    """

    @property
    def label_names(self) -> tuple[str, ...]:
        """Returns the name of each class, in order."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Returns facts for the data directory's `summary.json` (JSON).

        An example is `skipped`, the files that the source left out and why.
        """
        ...

    @property
    def read_from(self) -> Mapping[str, Any]:
        """Returns the files that were read, by role; see `data.fingerprint`."""
        ...

    def splits(self) -> Mapping[str, Split]:
        """Returns the splits by name, out of `SPLITS`; none is empty."""
        ...

    def held_out(self) -> KnownImages:
        """Returns the images of the test and the validation split.

        They are to be recognized among images of other origin.
        """
        ...


class Collection(Protocol):
    """The images of one role (labeled, unlabeled, test): listed, but not read yet.

    Memory is a few dozen bytes an image besides its key, never its pixels.

    Attributes:
      label_names: name of each class, in order; () if unknown.
      labels: int32 [n], −1 if unknown.
      scattered: whether the images may be read in any order at no great cost; otherwise they are
        read in ascending order.
      ignored: number of files that are not images, by kind.
      problems: what could not even be listed (`file`, `why`), if `config.data.on_error` is "skip".
    """

    label_names: tuple[str, ...]
    labels: np.ndarray
    scattered: bool
    ignored: Mapping[str, int]
    problems: Sequence[Mapping[str, str]]

    def key(self, index: int) -> str:
        """Returns a stable name of an image, unique within the collection."""
        ...

    def describe(self, index: int) -> str:
        """Says where an image is, for people."""
        ...

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """Yields the image files, or why one cannot be read.

        `indices` ascend if the collection is not `scattered`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to a format: one location to open.

    Attributes:
      location: what the flag says after `FORMAT:`.
      role: "labeled", "unlabeled" or "test", or "pseudo_labeled" of TFRecords; its flag is
        `--ROLE`.
      label_offset: stored label minus class, if the format stores the user's labels.
      on_error: "fail" or "skip"; see `Collection.problems`.
      num_classes: number of classes that a pseudo-label must be over.
      convert: whether images of other kinds are turned into PNG; see `data.convert`.
    """

    location: str
    role: str
    label_offset: int = 0
    on_error: str = "fail"
    num_classes: int = 0
    convert: bool = False

    def error(self, message: str) -> InputError:
        """Returns an InputError about this location."""
        return InputError(f"--{self.role}: {printable(self.location)} {message}")


MANIFEST_ENDINGS = (".csv", ".json", ".jsonl")
"""Endings of the names of lists of images."""

WITHOUT_PATH = ("tfds",)
"""Formats with locations that are not paths."""

WITH_TEST = ("imagenet", "cifar10", "svhn")
"""Formats with their own test images, which are the test if no other is named."""


PUBLISHED = ("imagenet", "cifar10", "svhn", "tfds")
"""Formats of named benchmarks. Their labeled and test images stay as they were published."""


def split_location(location: str, default: str) -> tuple[str, str]:
    """Returns format and rest of `FORMAT:REST`.

    If no known format stands before a colon, returns `default` and the whole. If `default` is tfds,
    so is `cifar10:3.0.2/train`: a data set of that name, and its version. If `default` is
    image_folder, a name that ends as a list of images is a manifest.
    """
    name, colon, rest = location.partition(":")
    if default in WITHOUT_PATH and re.match(r"(\d+|\*)\.(\d+|\*)\.(\d+|\*)/", rest):
        return default, location
    if colon and name in FORMATS:
        return name, rest
    is_list = default == "image_folder" and location.lower().endswith(MANIFEST_ENDINGS)
    return ("manifest" if is_list else default), location


def absolute(location: str, default: str) -> str:
    """Returns a location that means the same in every directory.

    Raises:
      InputError: it is the address of a server, or a path is not UTF-8.
    """
    name, rest = split_location(location, default)
    if name not in WITHOUT_PATH and "://" in rest:
        raise InputError(
            f"{printable(location)} is an address; mount or copy it, and give the local path"
        )
    if name not in WITHOUT_PATH:
        rest = os.path.abspath(os.path.expanduser(rest))
    if any(
        0xDC80 <= ord(character) <= 0xDCFF for character in rest
    ):  # Python's stand-ins for bytes that are not UTF-8
        raise InputError(f"{printable(rest)}: the path is not UTF-8; rename it, or link to it")
    return rest if name == default else f"{name}:{rest}"


def open_collection(location: str, role: str, data: ml_collections.ConfigDict) -> Collection:
    """Lists the images of `config.data.ROLE`. Raises InputError where they cannot be listed."""
    name, rest = split_location(location, data.source)
    module, function = FORMATS[name].split(".")
    return getattr(importlib.import_module(f"data.{module}"), function)(
        Request(rest, role, data.label_offset, data.on_error, convert=data.get("convert", False))
    )


def printable(path: str | os.PathLike[str]) -> str:
    """Returns a path for a one-line message or JSON.

    Line breaks and bytes that are not UTF-8 are escaped.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\n").replace("\r", "\\r")


def entries(
    folder: str, flag: str, ignored: collections.Counter[str] | None = None
) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder, without hidden ones and folders that computers make.

    The entries left out are counted in `ignored`.

    Raises:
      InputError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            listed = list(found)
        kinds = [ignored_name(entry.name) for entry in listed]
        if ignored is not None:
            ignored.update(filter(None, kinds))
        return [entry for entry, kind in zip(listed, kinds) if not kind]
    except FileNotFoundError as error:
        raise InputError(f"{flag}: there is no folder {printable(folder)}") from error
    except NotADirectoryError as error:
        raise InputError(f"{flag}: {printable(folder)} is a file; name a folder") from error
    except OSError as error:
        raise InputError(
            f"{flag}: {printable(folder)} cannot be read ({error.strerror}); check its permissions"
        ) from error


def ignored_name(name: str) -> str:
    """Returns why a file or folder of this name is skipped; "" if it is not.

    The reasons are "(hidden)", and "(NAME)" for a folder such as `@eaDir`.
    """
    if name.startswith("."):
        return "(hidden)"
    return f"({printable(name)})" if formats.is_system(name) else ""


def find_files(request: Request, endings: str, what: str) -> list[str]:
    """Returns the files of a location, sorted.

    They are the location itself, the files that match it as a pattern, or the files in the folder
    with names that match `endings`.

    Raises:
      InputError: there are none; the folder cannot be read; a file's name is not UTF-8.
    """
    location = request.location
    if os.path.isdir(location):
        pattern = re.compile(endings)
        paths = [
            entry.path
            for entry in entries(location, f"--{request.role}")
            if pattern.search(entry.name)
        ]
    else:
        folder, name = os.path.split(location)
        folder = glob.escape(folder) if os.path.isdir(folder) else folder
        paths = [location] if os.path.exists(location) else glob.glob(os.path.join(folder, name))
    # A pattern for our own shards matches their indexes, too.
    shards = set(paths)
    paths = [
        path
        for path in paths
        if not (path.endswith(INDEX_ENDING) and path[: -len(INDEX_ENDING)] in shards)
    ]
    paths = sorted(path for path in paths if os.path.isfile(path))
    if not paths:
        raise request.error(f"has no {what}; name a folder of them, one file, or a quoted pattern")
    for path in paths:
        if printable(path) != path:
            raise request.error(
                f"has a file {printable(path)} whose name is not plain UTF-8; rename it"
            )
    return paths


def key_hash(key: str) -> int:
    """Hashes a key to 64 bits, any bytes in it included."""
    return int.from_bytes(
        hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little"
    )


def repeated(keys: Iterable[str], total: int) -> set[int]:
    """Returns the hashes that `total` keys have more than once, in 8 bytes a key."""
    hashes = np.fromiter(map(key_hash, keys), np.uint64, total)
    hashes.sort()
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def check_numbers(labels: np.ndarray, where: Callable[[int], str], request: Request) -> None:
    """Checks that labels that are numbers leave none out: a huge one would make as many classes.

    Args:
      labels: int [n], from 0.
      where: an image's index -> where it is.
      request: for the error.

    Raises:
      InputError: a number is missing; either the largest label is wrong, or a class has no images.
    """
    present = np.unique(labels)
    if present[-1] == len(present) - 1:
        return
    missing = int(np.argmax(present != np.arange(len(present))))
    largest, offset = int(np.argmax(labels)), request.label_offset
    from_one = (
        ", or pass --config.data.label_offset=1 if they count from 1"
        if missing + offset == 0
        else ""
    )
    raise request.error(
        f"has no image of class {missing + offset}, but one of class"
        f" {labels[largest] + offset} ({where(largest)}); mend that label, or see that every class"
        f" has images{from_one}"
    )


def read_at(path: str, offset: int, size: int) -> bytes:
    """Reads `size` bytes of a file. Raises OSError."""
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read(size)


# Random choices. `purpose` keeps the draws of one seed apart, so that a change of one split does
# not change the others.


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Returns a random generator that is a function of its arguments."""
    return np.random.Generator(np.random.PCG64([seed, *purpose.encode(), *numbers]))


def mixed(items: Iterable[T], seed: int, purpose: str) -> list[T]:
    """Returns `items` in an order that is a function of `seed` and `purpose`."""
    items = list(items)
    return [items[i] for i in generator(seed, purpose).permutation(len(items))]


def even_counts(total: int, num_classes: int, rng: np.random.Generator) -> list[int]:
    """Shares `total` out over classes as evenly as possible.

    `rng` draws the classes that get one more.
    """
    counts = np.full([num_classes], total // num_classes)
    counts[rng.permutation(num_classes)[: total % num_classes]] += 1
    return [int(count) for count in counts]


def by_class(labels: Iterable[int], num_classes: int) -> list[list[int]]:
    """Returns the indices of `labels`' items, class by class."""
    indices: list[list[int]] = [[] for _ in range(num_classes)]
    for index, label in enumerate(labels):
        indices[label].append(index)
    return indices


THREADS = min(16, max(2, os.cpu_count() or 2))


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int = THREADS
) -> Iterator[R]:
    """Computes `map(function, items)` in `threads` threads, in order.

    At most 4·`threads` results are waiting; `Executor.map` would hold all of them.
    """
    iterator = iter(items)
    executor = ThreadPoolExecutor(threads)
    waiting: collections.deque[Future[R]] = collections.deque()
    try:
        waiting.extend(
            executor.submit(function, item) for item in itertools.islice(iterator, 4 * threads)
        )
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(
                executor.submit(function, item) for item in itertools.islice(iterator, 1)
            )
            yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
