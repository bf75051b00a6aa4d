"""What a data set offers to `data.prepare`: label names, and splits of images.

To add a source, write a module with a function `config -> Source` and name it in `open_source`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import ml_collections
import numpy as np

from stages.errors import InputError

SPLITS = ("labeled", "unlabeled", "test", "validation")

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
      key: its stable name, unique within its split.
      encoded: the image file, in a format that TensorFlow decodes (JPEG, PNG, GIF, BMP).
      label: its class, from 0; None in the unlabelled split.
    """

    key: str
    encoded: bytes
    label: int | None


class Split(Protocol):
    """Images in the order in which they are to be written: mixed by the seed, so that no shard is all one class or one domain.

    They are read while one iterates, in bounded memory, and the same ones come in the same order every time.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image]: ...


class Source(Protocol):
    """A data set that is known to be usable: whatever can be wrong with the input was found when it was opened.

    Its images and their splits are a function of the input and of `config.seed`; the test split of `config.data.test_seed` alone, so that
    results of several seeds are about the same images.
    """

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class, in order."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the source wants in the data directory's `summary.json` (JSON): `skipped`, the files that it left out and why, and such."""
        ...

    def splits(self) -> Mapping[str, Split]:
        """The splits by name, out of `SPLITS`; none is empty."""
        ...


def open_source(config: ml_collections.ConfigDict) -> Source:
    """Opens the source named by `config.data.source`.

    Raises:
      InputError: there is no such source, or its input is not usable.
    """
    from data import digits, image_folder  # here, since they build on this module

    sources: dict[str, Callable[[ml_collections.ConfigDict], Source]] = {"digits": digits.digits, "image_folder": image_folder.image_folder}
    if config.data.source not in sources:
        raise InputError(f"config.data.source is {config.data.source!r}; it can be {', '.join(sources)}")
    return sources[config.data.source](config)


# Random choices. `purpose` keeps the draws of one seed apart, so that a change of one split leaves the others alone.


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """A random generator that is a function of its arguments."""
    return np.random.Generator(np.random.PCG64([seed, *purpose.encode(), *numbers]))


def mixed(items: Iterable[T], seed: int, purpose: str) -> list[T]:
    """`items` in an order that is a function of `seed` and `purpose`."""
    items = list(items)
    return [items[i] for i in generator(seed, purpose).permutation(len(items))]


def even_counts(total: int, num_classes: int, rng: np.random.Generator) -> list[int]:
    """`total` shared out over classes as evenly as possible; `rng` draws the classes that get one more."""
    counts = np.full([num_classes], total // num_classes)
    counts[rng.permutation(num_classes)[: total % num_classes]] += 1
    return [int(count) for count in counts]


def by_class(labels: Iterable[int], num_classes: int) -> list[list[int]]:
    """The indices of `labels`' items, class by class."""
    indices: list[list[int]] = [[] for _ in range(num_classes)]
    for index, label in enumerate(labels):
        indices[label].append(index)
    return indices


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map(function, items)` in `threads` threads, in order, with at most 4·`threads` results waiting (`Executor.map` holds them all)."""
    iterator = iter(items)
    executor = ThreadPoolExecutor(threads)
    waiting: collections.deque[Future[R]] = collections.deque()
    try:
        waiting.extend(executor.submit(function, item) for item in itertools.islice(iterator, 4 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(executor.submit(function, item) for item in itertools.islice(iterator, 1))
            yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
