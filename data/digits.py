"""The embedded data set: scikit-learn's 1,797 handwritten digits (8×8 pixels).

    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998.

Crops of scikit-learn's two photographs are the out-of-domain images. The data set is small enough
for a full run in minutes on two cores, yet real. The labeled split is a handful of images per
class. The unlabeled pool has images of no class, which filtering by confidence has to remove.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
import PIL.Image

from cli.errors import InputError
from data.draws import fold_numbers, validation_size
from data.duplicates import KnownImages
from data.examine import Examined, examine
from data.sources import Image, by_class, even_counts, generator, mixed

NUM_CLASSES = 10
SIZE = 8
"""Side of an image in pixels."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """The embedded digits as a `Source`; see `digits`."""

    label_names: tuple[str, ...]
    facts: Mapping[str, Any]
    images: Mapping[str, tuple[Image, ...]]

    @property
    def read_from(self) -> Mapping[str, Any]:
        """Returns no files."""
        return {}

    def splits(self) -> Mapping[str, tuple[Image, ...]]:
        """Returns the splits by name."""
        return self.images

    def held_out(self) -> KnownImages:
        """Returns the images of the test and the validation split."""
        images = [image for name in ("test", "validation") for image in self.images.get(name, ())]
        known = [
            (image.key, result)
            for image in images
            if isinstance(result := examine(image.encoded), Examined)
        ]
        return KnownImages(
            [key for key, _ in known], [result for _, result in known], near=False
        )  # 8 pixels a side


def digits(config: ml_collections.ConfigDict) -> Digits:
    """Splits the digits.

    `config.data.test_seed` draws the test images, so they are the same for every `config.seed`.
    Whoever tunes on the validation images of other seeds never sees them.

    `config.seed` draws the rest. `labeled_per_class` labeled images of each class; None takes all
    that are not for validation. `validation_size` validation images. The unlabeled images; their
    labels are dropped here. The labeled images don't depend on the number of validation images.

    Raises:
      InputError: there are too few digits for what `config.data` asks for.
    """
    data = config.data
    _check(data)
    # Imported here, so that commands that read other images start sooner.
    from sklearn import datasets

    loaded = datasets.load_digits()
    labels = [int(label) for label in loaded.target]
    everything = by_class(labels, NUM_CLASSES)  # indices of each class
    wanted = even_counts(
        data.test_size, NUM_CLASSES, generator(data.test_seed, "digits test counts")
    )
    test, rest = _draw(everything, wanted, data.test_seed, "digits test", "test_size")
    if data.labeled_per_class is None:
        size = validation_size(sum(map(len, rest)), data)
        wanted = even_counts(size, NUM_CLASSES, generator(config.seed, "digits validation counts"))
        validation, labeled = _draw(
            rest, wanted, config.seed, "digits validation", "validation_size"
        )
        rest = [[] for _ in labeled]
    else:
        labeled, rest = _draw(
            rest,
            [data.labeled_per_class] * NUM_CLASSES,
            config.seed,
            "digits labeled",
            "labeled_per_class",
        )
        size = validation_size(sum(map(len, labeled)), data)
        wanted = even_counts(size, NUM_CLASSES, generator(config.seed, "digits validation counts"))
        validation, rest = _draw(rest, wanted, config.seed, "digits validation", "validation_size")

    facts: dict[str, Any] = {}
    if data.fold:
        chosen = np.array(sorted(index for of_class in labeled for index in of_class))
        numbers = fold_numbers(
            np.array(labels)[chosen], chosen, NUM_CLASSES, data.folds, config.seed
        )
        facts["in_no_fold"] = int((numbers == 0).sum())
        parts = (chosen[numbers == data.fold].tolist(), chosen[numbers != data.fold].tolist())
        validation, labeled = ([part] for part in parts)

    def images(indices: list[list[int]], with_labels: bool) -> list[Image]:
        return [
            Image(
                f"digits/{i:05d}",
                _png(_to_uint8(loaded.images[i])),
                labels[i] if with_labels else None,
            )
            for i in sorted(index for of_class in indices for index in of_class)
        ]

    splits = {
        "labeled": images(labeled, True),
        "unlabeled": images(rest, False) + photograph_crops(data.out_of_domain, config.seed),
        "test": images(test, True),
        "validation": images(validation, True),
    }
    return Digits(
        label_names=tuple(str(digit) for digit in range(NUM_CLASSES)),
        facts={
            "median_height": SIZE,
            "median_width": SIZE,
            "out_of_domain": data.out_of_domain,
            "skipped": [],
            **facts,
        },
        images={
            name: tuple(
                mixed(
                    split, data.test_seed if name == "test" else config.seed, f"digits order {name}"
                )
            )
            for name, split in splits.items()
            if split
        },
    )


def _check(data: ml_collections.ConfigDict) -> None:
    for name in ("labeled", "unlabeled", "test"):
        if data.get(name) is not None:
            raise InputError(
                f"--{name} needs your own images, with a source such as --source=image_folder. "
                "config.data.source=digits and config.smoke=True use the embedded digits; leave "
                "the flag out"
            )
    if data.get("long_tail", 1.0) != 1:
        raise InputError(
            f"config.data.long_tail is {data.long_tail:g}, which has no effect on the digits; "
            "remove it"
        )


def _draw(
    pool: list[list[int]], counts: list[int], seed: int, purpose: str, name: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Draws `counts[c]` indices of each class c; returns them and what is left.

    Raises:
      InputError: a class has too few; the message blames the config key `name`.
    """
    drawn, left = [], []
    for label, (indices, count) in enumerate(zip(pool, counts)):
        if count > len(indices):
            raise InputError(
                f"config.data.{name} asks for {count} images of digit {label}, but only "
                f"{len(indices)} are left; choose fewer"
            )
        order = generator(seed, purpose, label).permutation(len(indices))
        drawn.append([indices[i] for i in order[:count]])
        left.append([indices[i] for i in order[count:]])
    return drawn, left


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Maps a digit's 17 gray levels 0–16 to the scale 0–255."""
    return np.rint(image * (255 / 16)).astype(np.uint8)


def _png(gray: np.ndarray) -> bytes:
    """Encodes a uint8 image [H, W] as PNG with one channel; decoding gives three equal ones."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(gray).save(buffer, "PNG")
    return buffer.getvalue()


def photograph_crops(count: int, seed: int) -> list[Image]:
    """Returns `count` random square regions of scikit-learn's photographs, scaled down to 8×8.

    The photographs are china.jpg and flower.jpg. Crop i is a function of (seed, i). The side is
    log-uniform between 8 pixels and the whole height, so crops range from plain texture to a tiny
    picture of the scene.
    """
    from sklearn import datasets

    photographs = datasets.load_sample_images()
    crops = []
    for i in range(count):
        which = i % len(photographs.images)
        # Gray like the digits: color alone would identify the crops and make filtering too easy
        # for the teacher.
        photograph = PIL.Image.fromarray(photographs.images[which]).convert("L")
        rng = generator(seed, "photograph crop", i)
        largest = min(photograph.size)
        side = int(
            np.clip(round(np.exp(rng.uniform(np.log(SIZE), np.log(largest)))), SIZE, largest)
        )
        left, top = (int(rng.integers(extent - side + 1)) for extent in photograph.size)
        crop = photograph.resize(
            (SIZE, SIZE), PIL.Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        name = photographs.filenames[which].replace("\\", "/").rsplit("/", 1)[-1]
        crops.append(Image(f"{name}/{i:06d}", _png(np.asarray(crop)), None))
    return crops
