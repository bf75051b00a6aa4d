"""Builds a -C and a -P of a data set that has none, as records.

All models and later runs share the records. The -C holds every image of the split, corrupted in 15
ways at 5 severities. The -P holds every image as the frames of 5 sequences.

Images with a short side below 32 pixels are first enlarged to 32, the size for which the smaller
table of severities was published. Images with a short side above 224 pixels are scaled down to 224.
The set `unchanged` holds these images without corruption, so that a model's loss is measured
against the same pixels.

An image is a function of (seed, key, corruption, severity). The directory's name is the digest of
the split, the seed and `VERSION`. Each set in it is a split directory, which is finished when its
manifest is there.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow as tf

from cli.errors import InputError
from cli.progress import progress
from data import protos, records
from data.preprocessing import decode
from data.records import MANIFEST, Manifest, read_manifest, write_split
from data.sources import ordered_map
from data.verification import read_records
from evaluation.corruptions import SMALL, corrupt
from evaluation.examples import Examples, from_records
from evaluation.perturbations import FRAMES, sequence
from evaluation.robustness import CORRUPTIONS, SEVERITIES

VERSION = 2
"""Version of the images; any change of them must raise it."""

SMALLEST, LARGEST = 32, 224
KEPT_BYTES = 1 << 29
"""Bytes of decoded images that are kept in memory while the sets are made."""

UNCHANGED = "unchanged"

_Make = Callable[[np.ndarray, np.random.Generator], list[np.ndarray]]


def corrupted_sets(
    source: Manifest, cache: Path, seed: int
) -> tuple[Examples, dict[str, dict[int, Examples]]]:
    """Builds what is missing of the split's -C.

    Returns:
      (unchanged images, corruption -> severity -> examples).

    Raises:
      InputError: damaged records or images.
    """
    sets: dict[str, _Make] = {UNCHANGED: lambda image, rng: [image]}
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            sets[f"{corruption}-{severity}"] = functools.partial(_corrupt, corruption, severity)
    built = _build(source, cache, seed, sets, "corrupt images")
    found = {
        corruption: {severity: built[f"{corruption}-{severity}"] for severity in SEVERITIES}
        for corruption in CORRUPTIONS
    }
    return built[UNCHANGED], found


def sequence_sets(source: Manifest, cache: Path, seed: int) -> dict[str, tuple[Examples, int]]:
    """Builds what is missing of the split's -P.

    Returns:
      perturbation -> (examples, frames of a sequence).
    """
    sets: dict[str, _Make] = {f"p-{name}": functools.partial(_sequence, name) for name in FRAMES}
    built = _build(source, cache, seed, sets, "make sequences")
    return {name: (built[f"p-{name}"], frames) for name, frames in FRAMES.items()}


def _corrupt(
    corruption: str, severity: int, image: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    return [corrupt(image, corruption, severity, rng)]


def _sequence(perturbation: str, image: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return sequence(image, perturbation, rng)


def _build(
    source: Manifest, cache: Path, seed: int, sets: dict[str, _Make], what: str
) -> dict[str, Examples]:
    identity = json.dumps([VERSION, seed, source.digests, source.label_offset, source.label_names])
    directory = cache / hashlib.sha256(identity.encode()).hexdigest()[:16]
    missing = [name for name in sets if not (directory / name / MANIFEST).exists()]
    images = _Images(source)
    for name in progress(missing, len(missing), what):
        frames = FRAMES[name[2:]] if name.startswith("p-") else 1
        write_split(
            directory / name,
            name,
            _changed(images, sets[name], name, seed),
            records.num_shards_for(source.num_records * frames),
            source.num_records * frames,
            kind="labeled",
            label_names=source.label_names,
            extra={"seed": seed, "version": VERSION},
        )
    return {name: from_records(read_manifest(directory / name, "labeled"), name) for name in sets}


class _Images:
    """Iterable of (key, class, base image) of every example of a split, in order.

    Decoded images are kept up to `KEPT_BYTES`; the other images are decoded again in each pass.
    """

    def __init__(self, source: Manifest) -> None:
        self._source = source
        self._kept: list[tuple[str, int, np.ndarray]] = []
        self._full = False

    def __iter__(self) -> Iterator[tuple[str, int, np.ndarray]]:
        yield from self._kept
        source, size = self._source, sum(image.nbytes for _, _, image in self._kept)
        if len(self._kept) == source.num_records:
            return
        serialized = (
            record for shard in range(len(source.files)) for record in read_records(source, shard)
        )
        for number, record in enumerate(serialized):
            if number < len(self._kept):
                continue
            features = tf.train.Example.FromString(record).features.feature
            key = (features["image/key"].bytes_list.value or [b""])[0].decode(
                "utf-8"
            ) or f"#{number}"
            label = (features["image/class/label"].int64_list.value or [source.label_offset - 1])[
                0
            ] - source.label_offset
            try:
                image = base_image((features["image/encoded"].bytes_list.value or [b""])[0])
            except tf.errors.InvalidArgumentError as error:
                raise InputError(
                    f"{source.directory}: image {key} cannot be decoded; make the data again"
                ) from error
            size += image.nbytes
            self._full = self._full or size > KEPT_BYTES
            if not self._full:
                self._kept.append((key, int(label), image))
            yield key, int(label), image


def _changed(images: _Images, make: _Make, name: str, seed: int) -> Iterator[bytes]:
    """Yields the records of one set, in the split's order; a frame's key is KEY#number."""

    def change(item: tuple[str, int, np.ndarray]) -> list[bytes]:
        key, label, image = item
        frames = make(image, generator(seed, key, name))
        return [
            protos.make_example(
                encode(frame), f"{key}#{i:03d}" if name.startswith("p-") else key, label
            )
            for i, frame in enumerate(frames)
        ]

    for made in ordered_map(change, images, threads=os.cpu_count() or 1):
        yield from made


def generator(seed: int, key: str, name: str) -> np.random.Generator:
    """Returns the random generator of one image of one set."""
    digest = hashlib.sha256(f"{seed}\0{key}\0{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def base_image(encoded: bytes) -> np.ndarray:
    """Returns the image to corrupt: uint8 [H, W, 3] with a short side from 32 to 224.

    Small images are enlarged with the sampling of `data.preprocessing.resize`. A model may enlarge
    images itself, to a size that divides this one. It then gets the values that it would have made
    of the original, up to rounding.
    """
    image = decode(tf.constant(encoded))
    height, width = int(image.shape[0]), int(image.shape[1])
    short = min(height, width)
    if short < SMALLEST:
        size = [round(height * SMALLEST / short), round(width * SMALLEST / short)]
        enlarged = tf.raw_ops.ResizeBicubic(
            images=image[tf.newaxis], size=size, half_pixel_centers=False
        )[0].numpy()
        return np.clip(np.rint(enlarged), 0, 255).astype(np.uint8)
    pixels = image.numpy()
    if short > LARGEST:
        size = [round(width * LARGEST / short), round(height * LARGEST / short)]
        return np.asarray(
            PIL.Image.fromarray(pixels).resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC)
        )
    return pixels


def encode(image: np.ndarray) -> bytes:
    """Encodes images of up to 64 pixels as PNG, which keeps the pixels, and others as JPEG.

    The shorter side counts.
    The quality of the JPEG is 85, as in the release.
    """
    buffer = io.BytesIO()
    if min(image.shape[:2]) <= SMALL:
        PIL.Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    else:
        PIL.Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
