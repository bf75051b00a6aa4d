"""Finds repeated pictures: held-out images among others, and groups of repeats in one set.

Two images are *identical* if their files are the same bytes, or decode to the same pixels. They
*look alike* if `data.likeness` says so. An image is compared finely with its `NEAREST` candidates
only. So the cost of an image is bounded even if all of them show one scene.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from cli.progress import progress
from data.examine import DIM, Examined
from data.likeness import THUMBNAIL, details_alike, thumbnails_alike

HASH_WORDS = 8
NEAR = 15
"""Largest number of the 128 bits in which the hashes of one picture may differ; the next steps
decide. Up to 15 different bits, one of the 8 words differs in at most one bit, so the images are
found."""
NEAREST = 8
"""Number of candidates of one image that are compared finely: those with the highest correlation of
thumbnails."""
LOOK_UP = 64
"""Number of images looked up at a time."""

_CHANGES = np.array([0, *(1 << bit for bit in range(16))], np.uint16)

_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


class KnownImages:
    """Images to look up by file, by pixels and by looks, such as the held-out images.

    Memory is about 6 kB an image.

    Args:
      keys: keys of the images.
      examined: what is known of the same images.
      near: whether images that look the same count, or only identical ones.
    """

    def __init__(self, keys: Sequence[str], examined: Sequence[Examined], near: bool) -> None:
        self._keys = keys
        self._identical = {mark: i for i, image in enumerate(examined) for mark in _marks(image)}
        self._large = _large(examined) if near else []
        large = [examined[i] for i in self._large]
        self._words = _words(large)  # (m, 8)
        # Each image is filed, column by column, under its word and under all words that differ from
        # it in one bit.
        filed = (self._words[:, np.newaxis] ^ _CHANGES[:, np.newaxis]).reshape(
            -1, HASH_WORDS
        )  # (17 m, 8)
        self._order = np.argsort(filed, axis=0, kind="stable")
        self._sorted = np.take_along_axis(filed, self._order, axis=0)
        self._thumbnails = _thumbnails(large)  # (m, 256)
        self._details = [image.detail for image in large]

    def find(self, images: Sequence[Examined]) -> dict[int, dict[str, str | int]]:
        """Finds the `images` that were seen.

        Returns:
          Index of each such image -> `of`, the key of the image seen, and `bits`, the number of
          bits in which the hashes differ (−1: identical).
        """
        return {
            i: {"of": self._keys[place], "bits": bits}
            for i, (place, bits) in self.places(images).items()
        }

    def places(self, images: Sequence[Examined]) -> dict[int, tuple[int, int]]:
        """Finds the `images` that were seen.

        Returns:
          Index of each such image -> index of the image seen, and the bits, as in `find`.
        """
        found: dict[int, tuple[int, int]] = {}
        for i, place, bits in zip(*(column.tolist() for column in self.look_alikes(images))):
            if bits < found.get(i, (0, NEAR + 1))[1]:
                found[i] = (place, bits)
        for i, candidate in enumerate(images):
            for mark in _marks(candidate):
                if mark in self._identical:
                    found[i] = (self._identical[mark], -1)
        return found

    def look_alikes(
        self,
        images: Sequence[Examined],
        wanted: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the pairs that look alike.

        Args:
          images: the images to look up.
          wanted: (image, image seen) of candidates, int64 [p] each -> which pairs are worth a
            comparison, bool [p].

        Returns:
          Image, image seen, and number of bits in which their hashes differ; int64 [p] each.
        """
        large = np.array(_large(images), np.int64)
        candidates = [images[i] for i in large]
        image, seen, bits = self._near(_words(candidates))
        alike, correlation = thumbnails_alike(
            _thumbnails(candidates), self._thumbnails, image, seen
        )
        of = np.array(self._large, np.int64)
        if wanted is not None:
            alike &= wanted(large[image], of[seen])
        pairs = np.flatnonzero(alike)
        # For each image the most similar first.
        pairs = pairs[np.lexsort((-correlation[pairs], image[pairs]))]
        _, first, count = np.unique(image[pairs], return_index=True, return_counts=True)
        pairs = pairs[np.arange(len(pairs)) - np.repeat(first, count) < NEAREST]
        image, seen, bits = image[pairs], seen[pairs], bits[pairs]
        same = np.array(
            [not (candidates[i].detail and self._details[j]) for i, j in zip(image, seen)], bool
        )
        finer = np.flatnonzero(~same)
        same[finer] = details_alike(
            [candidates[i].detail for i in image[finer]], [self._details[j] for j in seen[finer]]
        )
        return large[image[same]], of[seen[same]], bits[same]

    def _near(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the pairs with hashes that differ in at most `NEAR` bits.

        Returns:
          Image, image seen, and number of bits; int64 [p] each.
        """
        near = np.zeros([len(words), len(self._words)], bool)  # (n, m)
        for column in range(HASH_WORDS if near.size else 0):
            first = np.searchsorted(self._sorted[:, column], words[:, column])
            last = np.searchsorted(self._sorted[:, column], words[:, column], side="right")
            count = last - first  # (n,)
            image = np.repeat(np.arange(len(words)), count)  # each pair with this word; (p,)
            place = np.arange(len(image)) + np.repeat(first - (np.cumsum(count) - count), count)
            seen = self._order[place, column] // len(_CHANGES)  # (p,)
            new = ~near[image, seen]
            image, seen = image[new], seen[new]
            near[image, seen] = self._bits(words, image, seen) <= NEAR
        image, seen = np.nonzero(near)
        return image, seen, self._bits(words, image, seen)

    def _bits(self, words: np.ndarray, image: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return _BITS[(words[image] ^ self._words[seen]).view(np.uint8)].sum(axis=1, dtype=np.int64)


class Groups:
    """Images 0..n-1 in groups, which `join` makes larger.

    Attributes:
      first: int64 [n], the smallest index in each image's group.
    """

    def __init__(self, first: Iterable[int]) -> None:
        self.first = np.array(list(first), np.int64)

    def join(self, one: int, other: int) -> None:
        """Joins the groups of two images."""
        low, high = sorted((self.first[one], self.first[other]))
        if low != high:
            self.first[self.first == high] = low

    def repeated(self) -> int:
        """Returns how many images repeat an earlier one."""
        return int((self.first != np.arange(len(self.first))).sum())


def identical(examined: Sequence[Examined]) -> Groups:
    """Returns the groups of identical images."""
    groups = Groups(range(len(examined)))
    place: dict[Hashable, int] = {}
    for i, image in enumerate(examined):
        for mark in _marks(image):
            if (first := place.setdefault(mark, i)) != i:
                groups.join(first, i)
    return groups


def join_look_alikes(
    examined: Sequence[Examined], groups: Groups
) -> tuple[Groups, list[tuple[int, int]]]:
    """Groups the images that are in one of `groups` or look alike.

    Returns:
      The groups, and the pairs that joined them.
    """
    joined, pairs = Groups(groups.first), []
    seen = KnownImages([""] * len(examined), examined, near=True)
    for start in progress(
        range(0, len(examined), LOOK_UP), -(-len(examined) // LOOK_UP), "compare labeled"
    ):
        first = joined.first[start : start + LOOK_UP]
        image, other, _ = seen.look_alikes(
            examined[start : start + LOOK_UP], _apart(first, joined.first)
        )
        for i, j in zip(image.tolist(), other.tolist()):
            if joined.first[start + i] != joined.first[j]:
                pairs.append((min(j, start + i), max(j, start + i)))
                joined.join(j, start + i)
    return joined, pairs


def _apart(
    first: np.ndarray, first_of_others: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a filter that keeps the candidates that are not yet in one group.

    Comparing the others would not be worth its cost.
    """
    first, first_of_others = first.copy(), first_of_others.copy()
    return lambda image, other: first[image] != first_of_others[other]


def _marks(image: Examined) -> list[Hashable]:
    """Returns what identical images share.

    That is the digest of the file, and of the pixels if it is known.
    """
    return [image.digest, *([("pixels", image.pixels)] if image.pixels else [])]


def _large(images: Sequence[Examined]) -> list[int]:
    """Returns the indices of the images that can be compared by their looks.

    These are large images, except images that are read almost black.
    """
    return [i for i, image in enumerate(images) if image.thumbnail and DIM not in image.remarks]


def _words(images: Sequence[Examined]) -> np.ndarray:
    return np.frombuffer(b"".join(image.hash for image in images), np.uint16).reshape(
        -1, HASH_WORDS
    )


def _thumbnails(images: Sequence[Examined]) -> np.ndarray:
    return np.frombuffer(b"".join(image.thumbnail for image in images), np.uint8).reshape(
        -1, THUMBNAIL**2
    )
