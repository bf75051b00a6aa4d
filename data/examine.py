"""Is this an image that training can use, and has it been seen before?

Every image is decoded once before anything is written, by the decoder that training uses: what passes here does not stop a run hours later.
From the same pixels comes a perceptual hash, which finds the held-out images among the unlabelled ones even where they were scaled or
compressed anew.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from data.preprocessing import decode

MAX_PIXELS = 100_000_000
"""Decoded, 300 MB. A few kilobytes of JPEG or PNG can claim far more, and a batch of such images ends a run."""

HASH_WORDS = 8
NEAR = 12
"""Hashes that differ in at most so many of their 128 bits are those of one picture. Up to 15 bits, one of their 8 words differs in one at
most, and so the images are found."""

MIN_SIDE = 64
"""Pixels; smaller images are compared as files only, since at 32x32 different ones look alike to the hash."""

_CHANGES = np.array([0, *(1 << bit for bit in range(16))], np.uint16)

_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


class Examined(NamedTuple):
    """What is kept of an image's pixels.

    Attributes:
      height, width: in pixels, as stored (an EXIF orientation is not applied).
      digest: 16 bytes, of the image file.
      hash: 16 bytes, of what it looks like.
    """

    height: int
    width: int
    digest: bytes
    hash: bytes


def examine(encoded: bytes) -> Examined | str:
    """Decodes an image: what is to be known of it, or why it is of no use.

    A JPEG that ends early is refused rather than filled up with gray: a person who copied half a folder wants to know.
    """
    try:
        why = _refused(encoded)
        if why:
            return why
        image = decode(tf.constant(encoded)).numpy()
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError) as error:
        return _why_not_decoded(error.message)
    height, width, _ = image.shape
    return Examined(height, width, hashlib.blake2b(encoded, digest_size=16).digest(), perceptual_hash(image))


def _refused(encoded: bytes) -> str | None:
    """Why an image is not even decoded, by its first bytes."""
    if encoded[:3] == b"\xff\xd8\xff":
        height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy().tolist()
    elif encoded[:4] == b"\x89PNG" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
    elif encoded[:3] == b"GIF" and len(encoded) >= 10:
        width, height = struct.unpack("<HH", encoded[6:10])
    elif encoded[:2] == b"BM" and len(encoded) >= 30:
        width, height = struct.unpack("<ii", encoded[18:26])
        if _has_colour_table(encoded):
            return "it is a BMP with a table of colours, which TensorFlow would take for grey levels; save it as PNG"
    else:
        return None  # the decoder will say
    if abs(width * height) > MAX_PIXELS:
        return f"it claims to have {width} x {abs(height)} pixels, and more than {MAX_PIXELS:,} are taken for an accident or an attack"
    return None


def _has_colour_table(bmp: bytes) -> bool:
    """Whether the values of an 8-bit BMP mean anything but the grey levels of the same number."""
    start, header = struct.unpack("<I", bmp[10:14])[0], struct.unpack("<I", bmp[14:18])[0]
    if struct.unpack("<H", bmp[28:30])[0] != 8:
        return False
    table = np.frombuffer(bmp[14 + header : start], np.uint8)
    table = table[: len(table) // 4 * 4].reshape(-1, 4)[:, :3]
    return bool((table != np.arange(len(table))[:, np.newaxis]).any())


def _why_not_decoded(message: str) -> str:
    """The decoder's message in a user's words."""
    if "Unknown image file format" in message:
        return "it is no JPEG, PNG, GIF or BMP, whatever its name says; TensorFlow decodes no other format"
    if "Input is empty" in message:
        return "the file is empty"
    if any(f"Invalid {name} data" in message for name in ("JPEG", "PNG", "GIF")):
        return "the image is damaged or cut off"
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|name:\s*$", "", message)
    return f"TensorFlow cannot decode it ({' '.join(text.split()).rstrip('. ')})"


def perceptual_hash(image: np.ndarray) -> bytes:
    """128 bits: scaled down to 9x9 grey levels, whether each of 8x8 is lighter than its left and its upper neighbour ("difference hash").

    Args:
      image: uint8 [H, W, 3].
    """
    small = PIL.Image.fromarray(image).convert("L").resize((9, 9), PIL.Image.Resampling.BOX)
    grey = np.asarray(small, np.int16)
    bits = np.stack([grey[1:, 1:] > grey[1:, :-1], grey[1:, 1:] > grey[:-1, 1:]])  # (2, 8, 8)
    return np.packbits(bits).tobytes()


class Seen:
    """The images that training must not see, to be looked up by file and by looks.

    Args:
      keys: of the images.
      examined: of the same images.
      near: whether images that look the same count, or only identical files.
    """

    def __init__(self, keys: Sequence[str], examined: Sequence[Examined], near: bool) -> None:
        self._digests = {image.digest: key for key, image in zip(keys, examined)}
        large = _large(examined) if near else []
        self._keys = [keys[i] for i in large]
        self._words = _words([examined[i] for i in large])  # (m, 8)
        # Each image is filed, column by column, under its word and under all that differ from it in one bit.
        filed = (self._words[:, np.newaxis] ^ _CHANGES[:, np.newaxis]).reshape(-1, HASH_WORDS)  # (17 m, 8)
        self._order = np.argsort(filed, axis=0, kind="stable")
        self._sorted = np.take_along_axis(filed, self._order, axis=0)

    def find(self, images: Sequence[Examined]) -> dict[int, dict[str, str | int]]:
        """Those of `images` that were seen: index -> the key `of` what, and in how many `bits` the hashes differ (−1: the same file)."""
        found: dict[int, dict[str, str | int]] = {}
        large = _large(images)
        words = _words([images[i] for i in large])  # (n, 8)
        for column in range(HASH_WORDS if len(self._words) else 0):
            first = np.searchsorted(self._sorted[:, column], words[:, column])
            last = np.searchsorted(self._sorted[:, column], words[:, column], side="right")
            count = last - first  # (n,)
            image = np.repeat(np.arange(len(large)), count)  # each pair that shares this word; (p,)
            place = np.arange(len(image)) + np.repeat(first - (np.cumsum(count) - count), count)
            seen = self._order[place, column] // len(_CHANGES)  # (p,)
            bits = _BITS[(words[image] ^ self._words[seen]).view(np.uint8)].sum(axis=1, dtype=np.int64)  # (p,)
            for pair in np.flatnonzero(bits <= NEAR):
                i = large[image[pair]]
                if bits[pair] < found.get(i, {"bits": NEAR + 1})["bits"]:
                    found[i] = {"of": self._keys[seen[pair]], "bits": int(bits[pair])}
        for i, candidate in enumerate(images):
            if candidate.digest in self._digests:
                found[i] = {"of": self._digests[candidate.digest], "bits": -1}
        return found


def _large(images: Sequence[Examined]) -> list[int]:
    return [i for i, image in enumerate(images) if min(image.height, image.width) >= MIN_SIDE]


def _words(images: Sequence[Examined]) -> np.ndarray:
    return np.frombuffer(b"".join(image.hash for image in images), np.uint16).reshape(-1, HASH_WORDS)
