"""Draws labeled images for the test, the validation and the labeled subset.

Images that repeat each other are drawn together or not at all, so they are on one side of every
split. A draw takes images one by one in random order. Without repeated images it takes exactly as
many of each class as are wanted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import ml_collections
import numpy as np

from cli.errors import InputError
from data.examine import Examined
from data.sources import Collection, by_class, generator

FEWEST = 200
"""Fewest validation images for choosing a model: fewer decide nothing."""
SHARE = 0.2
"""Share of the labeled images that is held out if `config.data.validation_size` is None."""


@dataclasses.dataclass(frozen=True)
class Usable:
    """The images of a collection that can be decoded.

    Attributes:
      collection: the collection.
      indices: indices of the images in it, ascending.
      examined: what is known of each image.
      groups: int64 [n]; images with the same number repeat each other.
    """

    collection: Collection
    indices: list[int]
    examined: list[Examined]
    groups: np.ndarray

    def labels(self) -> np.ndarray:
        """Returns the class of each image, int32 [n]."""
        return self.collection.labels[self.indices]

    def pick(self, places: Sequence[int]) -> Usable:
        """Returns the images at `places` of this list."""
        return Usable(
            self.collection,
            [self.indices[i] for i in places],
            [self.examined[i] for i in places],
            self.groups[np.asarray(places, int)],
        )

    def without(self, others: Usable) -> Usable:
        """Returns the images that are not in `others`, which has the same collection."""
        out = set(others.indices)
        return self.pick([place for place, index in enumerate(self.indices) if index not in out])


def hold_out_test(
    labeled: Usable, label_names: Sequence[str], data: ml_collections.ConfigDict
) -> tuple[Usable, Usable]:
    """Draws the test images of each class: `test_per_class` of them, or `test_fraction`.

    Args:
      labeled: all labeled images.
      label_names: names of the classes.
      data: `config.data`.

    Returns:
      The test images and the rest.

    Raises:
      InputError: a class has too few images, or its images repeat each other.
    """
    counts = []
    for name, indices in zip(label_names, by_class(labeled.labels(), len(label_names))):
        if len(indices) < 2:
            raise InputError(
                f"--labeled: class {name} has one usable image, so none can be held out for "
                "testing; add images or give --test"
            )
        if data.test_per_class is None:
            counts.append(min(max(1, round(data.test_fraction * len(indices))), len(indices) - 1))
        elif data.test_per_class >= len(indices):
            raise InputError(
                f"--labeled: class {name} has {len(indices)} usable images, too few for "
                f"config.data.test_per_class={data.test_per_class} and one to learn from; add "
                "images or lower the setting"
            )
        else:
            counts.append(data.test_per_class)
    test, rest = draw(labeled, counts, data.test_seed, "test", label_names)
    for label, name in enumerate(label_names):
        if not ((test.labels() == label).any() and (rest.labels() == label).any()):
            raise InputError(
                f"--labeled: the images of class {name} repeat each other, so none can be held out "
                "for testing. Add other images or give --test. If they only look alike, pass "
                "--config.data.near_duplicates=False"
            )
    return test, rest


def validation_size(labeled: int, data: ml_collections.ConfigDict) -> int:
    """Returns how many of `labeled` images are for validation.

    If `config.data.validation_size` is None: a fifth, or 0 if a fifth is less than `FEWEST`.
    """
    if data.validation_size is not None:
        return int(data.validation_size)
    size = int(SHARE * labeled)
    return size if size >= FEWEST else 0


def fold_numbers(
    labels: np.ndarray, groups: np.ndarray, num_classes: int, folds: int, seed: int
) -> np.ndarray:
    """Cuts labeled images into folds for cross-fitting.

    Each class is spread over the folds as evenly as whole groups allow.

    Args:
      labels: the class of each image, int [n].
      groups: int [n]; images with the same number repeat each other and come into one fold.
      num_classes: K.
      folds: number of folds, at least 2.
      seed: seed of the draw.

    Returns:
      The fold of each image from 1 to `folds`, int64 [n]; 0 for an image in no fold. A group is in
      no fold if some class would have no image left outside the fold.
    """
    counts, totals = np.zeros([num_classes, folds], int), np.zeros(folds, int)
    of_class = np.bincount(labels, minlength=num_classes)  # (K,)
    found = np.zeros(len(labels), np.int64)
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(place)
    for label, places in enumerate(by_class(labels.tolist(), num_classes)):
        for i in generator(seed, "folds", label).permutation(len(places)):
            its = members.pop(int(groups[places[i]]), None)
            if its is None:  # an earlier image brought its group in
                continue
            sizes = np.bincount(labels[its], minlength=num_classes)  # (K,)
            room = (counts + sizes[:, np.newaxis] < of_class[:, np.newaxis])[sizes > 0].all(
                axis=0
            )  # (folds,)
            if room.any():
                fold = min(np.flatnonzero(room), key=lambda f: (counts[label, f], totals[f]))
                counts[:, fold] += sizes
                totals[fold] += len(its)
                found[its] = fold + 1
    return found


def hold_out_fold(
    labeled: Usable, num_classes: int, data: ml_collections.ConfigDict, seed: int
) -> tuple[Usable, Usable, int]:
    """Takes fold `config.data.fold` out of the labeled images.

    Returns:
      The images of the fold; the others; and how many images are in no fold.

    Raises:
      InputError: the fold has no image.
    """
    numbers = fold_numbers(labeled.labels(), labeled.groups, num_classes, data.folds, seed)
    inside = numbers == data.fold
    if not inside.any():
        raise InputError(
            f"config.data.folds is {data.folds}, more than the labeled images allow; choose fewer, "
            "or turn cross-fitting off with --config.crossfit.folds=0"
        )
    fold, rest = (labeled.pick(np.flatnonzero(these).tolist()) for these in (inside, ~inside))
    return fold, rest, int((numbers == 0).sum())


def hold_out_validation(
    labeled: Usable, num_classes: int, total: int, seed: int
) -> tuple[Usable, Usable]:
    """Draws `total` images in proportion to the classes; returns the validation and the rest.

    Raises:
      InputError: there are too few images, or their groups are too large.
    """
    spare = np.bincount(labeled.labels(), minlength=num_classes) - 1  # (K,); one stays
    if total > spare.sum():
        raise InputError(
            f"config.data.validation_size is {total}, but only {spare.sum()} labeled images can be "
            "held out (one of each class stays)"
        )
    exact = total * spare / max(1, spare.sum())
    counts = np.floor(exact).astype(int)
    # Largest remainders.
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    drawn, rest = draw(labeled, counts.tolist(), seed, "validation", [""] * num_classes)
    if total and not drawn.indices:
        raise InputError(
            f"config.data.validation_size is {total}, but the labeled images repeat each other in "
            "larger groups. Ask for more images. If they only look alike, pass "
            "--config.data.near_duplicates=False"
        )
    return drawn, rest


def long_tail_counts(sizes: Sequence[int], largest: int, ratio: float) -> list[int]:
    """Returns how many images each class keeps in a long-tailed cut.

    The classes are ordered by size, the largest first; equal ones keep their order. Class number i
    of K in this order keeps `largest` * ratio ** (-i / (K - 1)) images, rounded down, and at least
    one (Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, Section
    5.1).

    Args:
      sizes: number of images of each class, K numbers.
      largest: number of images that the largest class keeps.
      ratio: how many times more that is than the smallest class keeps, at least 1.
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")
    counts = np.zeros(len(sizes), int)
    exact = largest * float(ratio) ** (-np.arange(len(sizes)) / (len(sizes) - 1))
    # A tiny part of an image is a rounding error of the power.
    counts[order] = np.maximum(1, np.floor(exact + 1e-9)).astype(int)
    return counts.tolist()


def draw_labeled(
    labeled: Usable, label_names: Sequence[str], data: ml_collections.ConfigDict, seed: int
) -> tuple[Usable, Usable]:
    """Draws the labeled subset: `labeled_per_class` images of each class, or a long-tailed cut.

    With `long_tail` above 1, the other images are cut to the same proportions, and as large as
    that allows.

    Returns:
      The labeled images, and the others. All images and none without `labeled_per_class`.

    Raises:
      InputError: a class has too few images.
    """
    if data.labeled_per_class is None:
        return labeled, labeled.pick([])
    counts = [data.labeled_per_class] * len(label_names)
    ratio = data.get("long_tail", 1.0)
    if ratio == 1:
        return draw(labeled, counts, seed, "labeled", label_names)
    sizes = np.bincount(labeled.labels(), minlength=len(label_names)).tolist()
    counts = long_tail_counts(sizes, data.labeled_per_class, ratio)
    chosen, rest = draw(labeled, counts, seed, "labeled", label_names)
    left = np.bincount(rest.labels(), minlength=len(label_names))
    # The largest cut of the rest in which no class needs more images than there are.
    least, most = 0, int(left.max())
    while least < most:
        middle = (least + most + 1) // 2
        fits = (np.array(long_tail_counts(sizes, middle, ratio)) <= left).all()
        least, most = (middle, most) if fits else (least, middle - 1)
    wanted = long_tail_counts(sizes, least, ratio) if least else [0] * len(label_names)
    kept, _ = draw(rest, wanted, seed, "long_tail", label_names)
    return chosen, kept


def draw(
    images: Usable, counts: Sequence[int], seed: int, purpose: str, label_names: Sequence[str]
) -> tuple[Usable, Usable]:
    """Draws about `counts[c]` images of each class c, in whole groups.

    A group that is too large for what is still wanted is skipped. The smallest group left makes up
    for what is then missing, if that comes closer to the number wanted. If a class is not wanted
    whole, some image of it stays.

    Returns:
      The images drawn and the others, both in their own order.

    Raises:
      InputError: a class has fewer images than are wanted.
    """
    labels = images.labels()
    classes = by_class(labels, len(counts))
    for label, places in enumerate(classes):
        if counts[label] > len(places):
            raise InputError(
                f"config.data.labeled_per_class asks for {counts[label]} images of class "
                f"{label_names[label]}, but only {len(places)} are left"
            )
    members: dict[int, list[int]] = {}
    for place, group in enumerate(images.groups.tolist()):
        members.setdefault(group, []).append(place)
    limit = np.array(
        [len(places) - (count < len(places)) for places, count in zip(classes, counts)]
    )
    wanted, taken = np.array(counts, int), np.zeros(len(counts), int)
    drawn: set[int] = set()

    def take(group: int, most: np.ndarray) -> None:
        """Draws a group, unless a class would then have more than `most`."""
        its, sizes = np.unique(labels[members[group]], return_counts=True)
        if members[group][0] not in drawn and (taken[its] + sizes <= most[its]).all():
            taken[its] += sizes
            drawn.update(members[group])

    for label, places in enumerate(classes):
        order = generator(seed, purpose, label).permutation(len(places))
        for i in order:
            if taken[label] >= counts[label]:
                break
            take(int(images.groups[places[i]]), wanted)
        lacking = counts[label] - taken[label]
        # Number of images of the class in each group.
        left = Counter(int(images.groups[places[i]]) for i in order if places[i] not in drawn)
        if lacking > 0 and left:
            group, size = min(left.items(), key=lambda item: item[1])
            if size - lacking < lacking or not taken[label]:
                take(group, limit)
    return images.pick(sorted(drawn)), images.pick(
        [i for i in range(len(images.indices)) if i not in drawn]
    )
