"""Decides about repeated images: among the labeled ones, under another class, in the test.

Of users' own labeled images:
1. One picture under two classes is an error, or all its images are left out. Identical images
   decide. Images that only look alike may differ in what matters, so they are counted and reported.
2. Labeled images that are also test images, or look like one, are left out of training.
3. Repeats among the labeled images are grouped, so that `data.draws` keeps them on one side.

Named benchmarks keep their published images: identical ones are counted and reported, and stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from cli.errors import InputError
from data import duplicates
from data.draws import Usable
from data.duplicates import LOOK_UP, KnownImages
from data.examine import Examined
from data.sources import PUBLISHED, Collection, printable, split_location

LEFT_OUT = "held_out_images_left_out_of_"
"""Prefix of the keys of `summary.json` that have lists; a role follows."""
SHARE, FEW = 0.05, 20
"""Share, and number, of a set's images that may be left out by their looks alone; the larger limit
counts. No limit applies if there are at most two such images for each held-out image that they look
like, as with copies."""


def settle(
    labeled: Usable,
    test: Usable | None,
    label_names: Sequence[str],
    data: ml_collections.ConfigDict,
) -> tuple[Usable, Usable | None, dict[str, Any]]:
    """Settles what becomes of repeated images.

    Args:
      labeled: the labeled images.
      test: the test images if they are given.
      label_names: names of the classes of both.
      data: `config.data`.

    Returns:
      The labeled images to train on, grouped; the test images; and facts for `summary.json`.

    Raises:
      InputError: one picture has two classes, and `data.on_error` is "fail"; or too many labeled
        images look like test images.
    """
    if published(data.labeled, data):
        return labeled, test, {"repeated_in_benchmark": _counted(labeled, test)}
    facts: dict[str, Any] = {
        "images_of_several_classes_left_out": [],
        f"{LEFT_OUT}labeled": [],
        "look_alikes_of_several_classes": [],
    }
    parts = [labeled] if test is None or published(data.test, data) else [labeled, test]
    parts = _without_contradictions(
        parts, label_names, data.on_error, facts["images_of_several_classes_left_out"]
    )
    labeled, test = parts[0], parts[1] if len(parts) > 1 else test
    if test is not None:
        seen = KnownImages(
            [test.collection.key(index) for index in test.indices],
            test.examined,
            data.near_duplicates,
        )
        unseen = HeldOutFilter(seen, "labeled", len(labeled.indices), facts[f"{LEFT_OUT}labeled"])
        labeled = labeled.pick(unseen.places(labeled.collection, labeled.indices, labeled.examined))
    groups = duplicates.identical(labeled.examined)
    identical = groups.repeated()
    if data.near_duplicates:
        groups, pairs = duplicates.join_look_alikes(labeled.examined, groups)
        facts["look_alikes_of_several_classes"] = _of_several_classes(labeled, pairs, label_names)
    facts["repeated_labeled_images"] = {
        "identical": identical,
        "look_alike": groups.repeated() - identical,
    }
    return Usable(labeled.collection, labeled.indices, labeled.examined, groups.first), test, facts


def published(location: str, data: ml_collections.ConfigDict) -> bool:
    """Tells whether a location is a named benchmark: its splits are published."""
    return split_location(location, data.source)[0] in PUBLISHED


def _counted(labeled: Usable, test: Usable | None) -> dict[str, int]:
    """Counts identical images among the labeled ones.

    Counted are those identical to another, to a test image, and to one of another class.
    """
    examined, labels = labeled.examined, labeled.labels()
    if test is not None:
        examined, labels = [*examined, *test.examined], np.concatenate([labels, test.labels()])
    groups = duplicates.identical(examined).first
    labeled_groups = groups[: len(labeled.indices)]
    return {
        "labeled": int((labeled_groups != np.arange(len(labeled_groups))).sum()),
        "labeled_in_test": int(np.isin(labeled_groups, groups[len(labeled_groups) :]).sum()),
        "of_several_classes": int(np.isin(labeled_groups, groups[labels != labels[groups]]).sum()),
    }


def _without_contradictions(
    parts: Sequence[Usable],
    label_names: Sequence[str],
    on_error: str,
    left_out: list[dict[str, str]],
) -> list[Usable]:
    """Returns `parts` without the identical images that have several classes.

    Those images are appended to `left_out`.

    Raises:
      InputError: there are some, and `on_error` is "fail".
    """
    groups = duplicates.identical([image for part in parts for image in part.examined]).first
    labels = np.concatenate([part.labels() for part in parts])
    pictures = np.unique(groups[labels != labels[groups]])
    wrong = np.isin(groups, pictures)
    places = [(part, index) for part in parts for index in part.indices]

    def where(place: int) -> str:
        part, index = places[place]
        return part.collection.describe(index)

    if len(pictures) and on_error == "fail":
        one = int(pictures[0])
        other = int(np.flatnonzero((groups == one) & (labels != labels[one]))[0])
        raise InputError(
            f"{_number(len(pictures), 'picture stands', 'pictures stand')} under several classes "
            f"(first: {where(one)} is {label_names[labels[one]]}, {where(other)} is "
            f"{label_names[labels[other]]}). Mend the labels, or leave all images of such pictures "
            "out with --config.data.on_error=skip"
        )
    for place in np.flatnonzero(wrong).tolist():
        left_out.append(
            {
                "file": where(place),
                "class": label_names[labels[place]],
                "of": where(int(groups[place])),
            }
        )
    ends = np.cumsum([len(part.indices) for part in parts])[:-1]
    return [
        part.pick(np.flatnonzero(~its).tolist()) for part, its in zip(parts, np.split(wrong, ends))
    ]


def _of_several_classes(
    labeled: Usable, pairs: Sequence[tuple[int, int]], label_names: Sequence[str]
) -> list[dict[str, str]]:
    """Returns the pairs that look alike and have different classes."""
    labels = labeled.labels()
    return [
        {
            "file": labeled.collection.describe(labeled.indices[one]),
            "class": label_names[labels[one]],
            "looks_like": labeled.collection.describe(labeled.indices[other]),
            "class_of_that": label_names[labels[other]],
        }
        for one, other in pairs
        if labels[one] != labels[other]
    ]


class HeldOutFilter:
    """Leaves held-out images out of another set of images.

    Args:
      seen: the images held out.
      role: role of the other set, such as "unlabeled".
      total: how many images the other set has.
      left_out: list to which the images left out are appended: `file`, `of` which image held out,
        `bits`.
    """

    def __init__(
        self, seen: KnownImages, role: str, total: int, left_out: list[dict[str, Any]]
    ) -> None:
        self._seen, self._role, self._most, self._total, self._left_out = (
            seen,
            role,
            max(FEW, SHARE * total),
            total,
            left_out,
        )
        self._by_looks = 0
        self._originals: set[str] = set()

    def places(
        self, collection: Collection, indices: Sequence[int], examined: Sequence[Examined]
    ) -> list[int]:
        """Returns the places in `indices` of the images that are not held out.

        Raises:
          InputError: more images than copies explain would be left out by their looks alone.
        """
        kept: list[int] = []
        for start in range(0, len(indices), LOOK_UP):
            found = self._seen.find(examined[start : start + LOOK_UP])
            for place, index in enumerate(indices[start : start + LOOK_UP]):
                if place in found:
                    self._leave_out({"file": collection.describe(index), **found[place]})
                else:
                    kept.append(start + place)
        return kept

    def _leave_out(self, image: dict[str, Any]) -> None:
        self._left_out.append(image)
        if image["bits"] < 0:
            return
        self._by_looks += 1
        self._originals.add(image["of"])
        if self._by_looks > self._most and self._by_looks > 2 * len(self._originals):
            raise InputError(
                f"--{self._role}: {self._by_looks:,} or more of {self._total:,} images look like "
                f"{len(self._originals):,} images held out for testing (such as {image['file']}, "
                f"like {printable(image['of'])}). If they are different pictures, pass "
                "--config.data.near_duplicates=False. If they are copies, remove them"
            )


def none_left(left_out: Sequence[Mapping[str, Any]], otherwise: str) -> str:
    """Says why a pool has no image left: how many images were held out; else says `otherwise`."""
    if not left_out:
        return otherwise
    first = max(left_out, key=lambda image: int(image["bits"] >= 0))
    mend = (
        "if it only looks alike, pass --config.data.near_duplicates=False"
        if first["bits"] >= 0
        else "name other images"
    )
    return (
        f"{len(left_out):,} were left out because held-out images repeat them (such as "
        f"{first['file']}, for {printable(first['of'])}); {mend}"
    )


def in_words(summary: Mapping[str, Any]) -> list[str]:
    """Returns what a person must know of repeated images, a line each."""
    lines = []
    if left_out := summary.get(f"{LEFT_OUT}labeled"):
        lines.append(
            f"{_number(len(left_out), 'labeled image was', 'labeled images were')} left out of "
            "training, because test images are equal or look alike (such as "
            f"{left_out[0]['file']}; all are in summary.json)"
        )
    if wrong := summary.get("images_of_several_classes_left_out"):
        lines.append(
            f"{_number(len(wrong), 'image was', 'images were')} left out, because the same picture "
            f"stands under several classes (such as {wrong[0]['file']}; all are in summary.json)"
        )
    repeated = summary.get("repeated_labeled_images", {"identical": 0, "look_alike": 0})
    if any(repeated.values()):
        lines.append(
            f"labeled images that repeat another: {repeated['identical']:,} identical, "
            f"{repeated['look_alike']:,} that look alike; each is on the same side of every split "
            "as the image that it repeats"
        )
    if alike := summary.get("look_alikes_of_several_classes"):
        first = alike[0]
        lines.append(
            f"warning: {_number(len(alike), 'pair', 'pairs')} of labeled images under two classes"
            f" look alike (first: {first['file']} is {first['class']}, {first['looks_like']} is"
            f" {first['class_of_that']}; all are in summary.json)"
        )
    counted = summary.get("repeated_in_benchmark", {})
    if any(counted.values()):
        lines.append(
            "labeled images of the benchmark that are identical to another:"
            f" {counted['labeled']:,}, to a test image: {counted['labeled_in_test']:,}, to an image"
            f" of another class: {counted['of_several_classes']:,}; all stay, as published"
        )
    return lines


def _number(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"
