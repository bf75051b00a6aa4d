"""Turns collections into a source: examines every image, and draws the splits.

1. `test` is its own collection, or `test_fraction` of each labeled class. `test_seed` draws it, so
   it is the same for every `seed`.
2. `validation_size` of the remaining labeled images, in proportion to their classes' sizes, drawn
   by `seed` (Meta Pseudo Labels holds out 25,000 of ImageNet).
3. `labeled_per_class` of what then remains, drawn by `seed`: CIFAR-10-4K is 400, SVHN-1K 100,
   ImageNet-10 % 128. None takes all. With `long_tail`, the classes' numbers fall exponentially, and
   the images that step 5 takes fall in the same way; the others are in no split.
4. With `fold`, one of `folds` parts of the images of step 3 takes the place of the validation
   split: cross-fitting (`workflow/crossfit.py`). The images of step 2 are then in no split.
5. The unlabeled images are their own collection, and some labeled ones, as `labeled_as_unlabeled`
   says: `nothing`, the `rest` that step 3 left, or `all` but the held-out ones. Images that steps
   1, 2 and 4 hold out are left out of them, by content: both papers keep the evaluation's images
   out of the unlabeled ones.

Labels that a person corrected count from the beginning (`data.corrections`).

Images that repeat each other stand on one side of steps 1 to 4 (`data.draws`). `data.repeats`
decides about labeled images that are in the test, or under two classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging

from cli.errors import InputError
from cli.progress import progress
from data import corrections, fingerprint, repeats
from data.draws import Usable, draw_labeled, hold_out_fold, hold_out_validation, validation_size
from data.duplicates import KnownImages
from data.examination import Examination
from data.repeats import HeldOutFilter, none_left
from data.sources import (
    WITH_TEST,
    WITHOUT_PATH,
    Collection,
    Image,
    by_class,
    generator,
    key_hash,
    printable,
    repeated,
    split_location,
)
from data.tfrecords import RecordImages


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of one collection, as a part of a split."""

    collection: Collection
    indices: Sequence[int] | np.ndarray
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, with_labels: bool) -> Iterator[Image]:
        """Yields the images, read now. Raises InputError if one has become unreadable."""
        for index, encoded in zip(self.indices, self.collection.read(self.indices)):
            if isinstance(encoded, str):
                raise InputError(
                    f"{self.collection.describe(index)} was readable before and is not now "
                    f"({encoded}); run the command again"
                )
            label = int(self.collection.labels[index]) if with_labels else None
            yield Image(self.prefix + self.collection.key(index), encoded, label)


@dataclasses.dataclass(frozen=True)
class PartsSplit:
    """A `Split`: one part after another."""

    parts: tuple[Part, ...]
    with_labels: bool

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Image]:
        return itertools.chain.from_iterable(part.images(self.with_labels) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class SplitCollections:
    """The `Source` that `split` returns."""

    label_names: tuple[str, ...]
    facts: Mapping[str, Any]
    parts: Mapping[str, tuple[Part, ...]]
    seen: KnownImages
    read_from: Mapping[str, Any]

    def held_out(self) -> KnownImages:
        """Returns the images of the test and the validation split."""
        return self.seen

    def splits(self) -> Mapping[str, PartsSplit]:
        """Returns the splits by name."""
        return {name: PartsSplit(parts, name != "unlabeled") for name, parts in self.parts.items()}


def listed(config: ml_collections.ConfigDict) -> dict[str, Collection]:
    """Lists the collections of `config.data` by role, and reads no image.

    The test's labels are numbered as the labeled ones.

    Raises:
      InputError: a collection cannot be listed; fewer than two classes; labels or keys that cannot
        be right.
    """
    data = config.data
    _check_config(data)
    found = corrections.open_collections(data)
    label_names = found["labeled"].label_names
    if len(label_names) < 2:
        raise InputError(
            f"--labeled: {printable(data.labeled)} has only one class ({label_names[0]}); at least "
            "two are needed"
        )
    for role, collection in found.items():
        _check_keys(collection, role)
        if role != "unlabeled":
            _check_labels(collection, role)
    if "test" in found:
        found["test"].labels = _labels_as(label_names, found["test"], data.test)
    return found


def split(config: ml_collections.ConfigDict) -> SplitCollections:
    """Opens, examines and splits the collections of `config.data`; see the module's text.

    Raises:
      InputError: a collection cannot be read; fewer than two classes; impossible labels or keys; a
        class too small; an image that cannot be decoded (with `config.data.on_error` =
        "skip" it is left out and listed in `facts`).
    """
    return split_listed(config, listed(config))


def split_listed(
    config: ml_collections.ConfigDict, listed: Mapping[str, Collection]
) -> SplitCollections:
    """Does what `split` does, with collections that are listed already."""
    data = config.data
    label_names = listed["labeled"].label_names
    found = Examination(
        data.on_error,
        {role: fingerprint.listed(role, data, collection) for role, collection in listed.items()},
    )
    # The labeled images of a published benchmark can be millions, and its splits stay as they are.
    labeled = found.usable(
        listed["labeled"], "labeled", detail=not repeats.published(data.labeled, data)
    )
    sizes = np.array([(image.height, image.width) for image in labeled.examined], np.int32).reshape(
        -1, 2
    )
    _check_classes(labeled, label_names, "no image that can be decoded")
    if "test" in listed:
        test = found.usable(listed["test"], "test")
        if not test.indices:
            raise InputError(
                f"--test: {printable(data.test)} has no image that can be decoded; leave the flag"
                " out to hold out labeled images"
            )
    else:
        test = None
    labeled, test, repeated = repeats.settle(labeled, test, label_names, data)
    if test is not None and not test.indices:
        raise InputError(
            f"--test: {printable(data.test)} has no image left: each stands under several classes; "
            "mend the labels"
        )
    _check_classes(
        labeled, label_names, "no image left that is not in the test or under another class, too"
    )
    if test is None:
        test, labeled = corrections.hold_out(labeled, label_names, data)
        _check_classes(labeled, label_names, "no image left for training")
    size = validation_size(len(labeled.indices), data)
    validation, labeled = hold_out_validation(labeled, len(label_names), size, config.seed)
    chosen, unused = draw_labeled(labeled, label_names, data, config.seed)
    left_out = labeled.without(chosen).without(unused)
    if left_out.indices:
        labeled, repeated["out_of_long_tail"] = labeled.without(left_out), len(left_out.indices)
    held_out = [test, validation]
    if data.fold:
        validation, chosen, repeated["in_no_fold"] = hold_out_fold(
            chosen, len(label_names), data, config.seed
        )
        held_out.append(validation)
        labeled = labeled.without(validation)
    as_unlabeled = {"nothing": labeled.pick([]), "rest": unused, "all": labeled}[
        data.labeled_as_unlabeled
    ]

    seen = KnownImages(
        [part.collection.key(index) for part in held_out for index in part.indices],
        [image for part in held_out for image in part.examined],
        data.near_duplicates,
    )
    unseen = HeldOutFilter(seen, "labeled", len(as_unlabeled.indices), found.duplicates)
    places = unseen.places(as_unlabeled.collection, as_unlabeled.indices, as_unlabeled.examined)
    pools: list[Sequence[int]] = [as_unlabeled.pick(places).indices]
    if "unlabeled" in listed:
        pools.append(found.unseen(listed["unlabeled"], "unlabeled", seen))
    if not pools[-1] and (data.unlabeled or found.duplicates):
        pool = (
            f"--unlabeled: {printable(data.unlabeled)}"
            if data.unlabeled
            else "config.data.labeled_as_unlabeled: the pool"
        )
        raise InputError(
            f"{pool} has no usable image;"
            f" {none_left(found.duplicates, 'Noisy Student needs unlabeled ones')}"
        )
    used = sum(map(bool, pools))

    def part(
        collection: Collection, indices: Sequence[int], purpose: str, prefix: str = ""
    ) -> tuple[Part, ...]:
        seed = data.test_seed if purpose == "test" else config.seed
        order = np.asarray(indices, np.int64)
        if collection.scattered:
            order = order[generator(seed, f"order {purpose}").permutation(len(order))]
        return (Part(collection, order, prefix),)

    collections = [as_unlabeled.collection, listed.get("unlabeled", as_unlabeled.collection)]
    prefixes = ["labeled/", "unlabeled/"] if used > 1 else ["", ""]
    parts = {
        name: part(of.collection, of.indices, name)
        for name, of in (("labeled", chosen), ("test", test), ("validation", validation))
    }
    parts["unlabeled"] = tuple(
        p
        for pool, of, prefix in zip(pools, collections, prefixes)
        if pool
        for p in part(of, pool, "unlabeled", prefix)
    )
    order = ("labeled", "unlabeled", "test", "validation")
    return SplitCollections(
        label_names=label_names,
        facts={
            "median_height": int(np.median(sizes[:, 0])),
            "median_width": int(np.median(sizes[:, 1])),
            "skipped": found.skipped,
            "ignored": {
                f"--{role}": dict(sorted(collection.ignored.items()))
                for role, collection in listed.items()
            },
            "remarks": {f"--{role}": found.remarks[role] for role in listed},
            "held_out_images_left_out_of_unlabeled": found.duplicates,
            **repeated,
        },
        parts={name: parts[name] for name in order if sum(map(len, parts[name]))},
        seen=seen,
        read_from={role: value for role, value in found.read_from.items() if value},
    )


def _check_config(data: ml_collections.ConfigDict) -> None:
    if not data.labeled:
        raise InputError("--labeled is missing; name the labeled images")
    if not data.unlabeled and (
        data.labeled_as_unlabeled == "nothing"
        or (data.labeled_as_unlabeled, data.labeled_per_class) == ("rest", None)
    ):
        raise InputError(
            "--unlabeled is missing; name the unlabeled images, or take them from the labeled"
            " ones with config.data.labeled_as_unlabeled"
        )
    locations = [
        split_location(location, data.source) for location in (data.labeled, data.test) if location
    ]
    places = {
        (name, rest if name in WITHOUT_PATH else os.path.realpath(rest)) for name, rest in locations
    }
    if len(locations) == 2 and len(places) == 1 and locations[0][0] not in WITH_TEST:
        raise InputError(
            f"--test names the same images as --labeled ({printable(data.test)}); leave the flag "
            "out to hold out labeled images"
        )


def _check_keys(collection: Collection, role: str) -> None:
    """Checks that no key comes twice, by 8 bytes of each."""
    total = len(collection.labels)
    doubled = repeated(
        map(collection.key, progress(range(total), total, f"check keys of {role}")), total
    )
    first: dict[str, int] = {}
    for index in range(total) if doubled else ():
        key = collection.key(index)
        if key_hash(key) in doubled and first.setdefault(key, index) != index:
            one, other = collection.describe(first[key]), collection.describe(index)
            mend = "rename one of them"
            if isinstance(collection, RecordImages) and (balanced := collection.balanced()):
                mend = (
                    "a balanced set holds copies, so it cannot be the pool; name it as "
                    f"--selection={printable(balanced)} of run_pseudo_label.sh, run_balance.sh or "
                    "a training"
                )
            raise InputError(
                f"--{role}: two images have the key {printable(key)} ({one}; {other}); {mend}"
            )


def _check_labels(collection: Collection, role: str) -> None:
    num_classes = len(collection.label_names)
    wrong = np.flatnonzero((collection.labels < 0) | (collection.labels >= num_classes))
    if len(wrong):
        location, label = collection.describe(int(wrong[0])), collection.labels[wrong[0]]
        raise InputError(
            f"--{role}: {location} has class {label}; the {num_classes} classes are"
            f" 0..{num_classes - 1}"
        )


def _labels_as(label_names: Sequence[str], collection: Collection, location: str) -> np.ndarray:
    """Returns the collection's labels in the numbering of `label_names`, int32 [n]."""
    number = {name: label for label, name in enumerate(label_names)}
    unknown = [name for name in collection.label_names if name not in number]
    if unknown:
        raise InputError(
            f"--test: {printable(location)} has class {unknown[0]}, which --labeled lacks; remove "
            "it or rename it"
        )
    missing = [name for name in label_names if name not in collection.label_names]
    if missing:
        logging.warning(
            "--test: %s has no image of %d classes of --labeled (%s)",
            printable(location),
            len(missing),
            missing[0],
        )
    return np.array([number[name] for name in collection.label_names], np.int32)[collection.labels]


def _check_classes(labeled: Usable, label_names: Sequence[str], what: str) -> None:
    for label, indices in enumerate(by_class(labeled.labels(), len(label_names))):
        if not indices:
            raise InputError(
                f"--labeled: class {label_names[label]} has {what}; add some or remove it"
            )
