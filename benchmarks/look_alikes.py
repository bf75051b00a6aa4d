"""Measures how well look-alikes are decided.

    ./run_benchmarks.sh look_alikes [--photos=DIR|FILE.tar] [--images=200]

Copies must be found, and different frames of one scene kept apart. Copies: compressed anew, scaled,
cropped by up to 5 % of each side. Frames: a photograph as the background, the noise of a sensor,
and a handwritten digit of 1/16 to 1/4 of the side that differs, or none. Besides,
all pairs of different photographs. Each share stands beside that of hash and thumbnail alone.
Without `--photos`, parts of scikit-learn's two photographs are used.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
import PIL.Image
from sklearn import datasets

from benchmarks import report
from data.duplicates import KnownImages
from data.examine import Examined, examine
from data.sources import generator, open_collection

SIZE = 256
"""Pixels, the shorter side of a photograph at most."""


def photographs(photos: str | None, count: int) -> list[PIL.Image.Image]:
    """Returns `count` photographs, drawn from a folder or a tar archive."""
    if photos is None:
        known = datasets.load_sample_images().images
        rng = generator(0, "photographs")
        corners = [(rng.integers(0, 427 - 200), rng.integers(0, 640 - 200)) for _ in range(count)]
        return [
            PIL.Image.fromarray(known[i % 2][top : top + 200, left : left + 200])
            for i, (top, left) in enumerate(corners)
        ]
    location = f"tar:{photos}" if photos.endswith(".tar") else photos
    data = ml_collections.ConfigDict(
        {"source": "image_folder", "unlabeled": location, "label_offset": 0, "on_error": "skip"}
    )
    collection = open_collection(location, "unlabeled", data)
    drawn = np.sort(generator(0, "photographs").permutation(len(collection.labels))[:count])
    images = [
        PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
        for encoded in collection.read(drawn)
        if isinstance(encoded, bytes)
    ]
    for image in images:
        image.thumbnail((2 * SIZE, SIZE))
    return images


def examined(image: PIL.Image.Image, quality: int = 85) -> Examined:
    """Examines the image as a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    result = examine(buffer.getvalue())
    assert isinstance(result, Examined), result
    return result


def cropped(image: PIL.Image.Image, share: float, rng: np.random.Generator) -> PIL.Image.Image:
    """Returns the image without `share` of its width and height."""
    width, height = (round(side * (1 - share)) for side in image.size)
    left, top = (
        int(rng.integers(0, length - part + 1)) for length, part in zip(image.size, (width, height))
    )
    return image.crop((left, top, left + width, top + height))


def scaled(image: PIL.Image.Image, factor: float) -> PIL.Image.Image:
    """Returns the image `factor` times as wide and high."""
    return image.resize(
        (round(image.width * factor), round(image.height * factor)), PIL.Image.Resampling.LANCZOS
    )


def frame(
    image: PIL.Image.Image, digit: np.ndarray | None, part: float, rng: np.random.Generator
) -> Examined:
    """Returns the image with a sensor's noise, and a digit in its middle."""
    pixels = np.asarray(image) + rng.normal(0, 2, (image.height, image.width, 3))
    if digit is not None:
        side = max(8, round(min(image.size) * part))
        drawn = PIL.Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize(
            (side, side), PIL.Image.Resampling.BICUBIC
        )
        top, left = (image.height - side) // 2, (image.width - side) // 2
        pixels[top : top + side, left : left + side] = np.asarray(drawn)[..., np.newaxis]
    return examined(PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), 92)


def found(pairs: Iterator[tuple[Examined, Examined]]) -> tuple[float, float]:
    """Returns the share of pairs that look alike by all three steps, and by hash and thumbnail."""
    results = []
    for one, other in pairs:
        coarse = [image._replace(detail=b"") for image in (one, other)]
        results.append(
            [bool(KnownImages(["k"], [a], near=True).find([b])) for a, b in ((one, other), coarse)]
        )
    ours, before = np.mean(results, axis=0)
    return float(ours), float(before)


def main(photos: str | None = None, images: int = 200) -> None:
    """Measures on `images` photographs and prints the lines."""
    originals = photographs(photos, images)
    rng = generator(0, "changes")
    copies: dict[str, Callable[[PIL.Image.Image], Examined]] = {
        **{
            f"jpeg_{quality}": lambda image, quality=quality: examined(image, quality)
            for quality in (30, 50, 75, 95)
        },
        **{
            f"scaled_{factor}": lambda image, factor=factor: examined(scaled(image, factor))
            for factor in (0.5, 0.75, 1.5, 2.0)
        },
        **{
            f"cropped_{share}": lambda image, share=share: examined(cropped(image, share, rng))
            for share in (0.01, 0.02, 0.03, 0.05)
        },
    }
    peer = "hash and thumbnail alone"
    known = [examined(image, 95) for image in originals]
    for name, change in copies.items():
        ours, before = found((one, change(image)) for one, image in zip(known, originals))
        report.line(
            f"look_alikes/copies/{name}",
            ours,
            max(before, 1e-9),
            peer,
            goal=0.9,
            unit="share found",
        )
    digits = datasets.load_digits().images
    for part in (1 / 16, 1 / 9, 1 / 4):
        for name, second in (("another", True), ("none", False)):
            frames = (
                (
                    frame(image, digits[2 * i % 1797], part, rng),
                    frame(image, digits[(2 * i + 1) % 1797] if second else None, part, rng),
                )
                for i, image in enumerate(originals)
            )
            ours, before = (1 - share for share in found(frames))
            report.line(
                f"look_alikes/frames/{name}_{part:.3f}",
                ours,
                max(before, 1e-9),
                peer,
                goal=1.0,
                unit="share kept apart",
            )
    seen = KnownImages([""] * len(known), known, near=True)
    pairs = sum(int((image != other).sum()) for image, other, _ in [seen.look_alikes(known)]) // 2
    coarse = [image._replace(detail=b"") for image in known]
    before_pairs = (
        sum(
            int((image != other).sum())
            for image, other, _ in [
                KnownImages([""] * len(known), coarse, near=True).look_alikes(coarse)
            ]
        )
        // 2
    )
    total = len(known) * (len(known) - 1) // 2
    report.line(
        "look_alikes/photographs",
        1 - pairs / total,
        1 - before_pairs / total,
        peer,
        goal=1.0,
        unit="share kept apart",
        alike=pairs,
    )
