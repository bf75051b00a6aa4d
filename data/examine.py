"""Is this an image that training can use, and has it been seen before?

Every image is decoded once before anything is written, by the decoder that training uses: what passes here does not stop a run hours later.
From the same pixels come a perceptual hash and a thumbnail, which find the held-out images among the unlabelled ones even where they were
scaled or compressed anew: the hash finds them fast, the thumbnail confirms it. The hash knows no more than which parts are lighter than
their neighbours, and alone it would take different things on one plain background for one picture.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from data import formats
from data.preprocessing import MAX_PIXELS, decode
from data.transparency import HEAD, decode_opaque
from stages.exif import orientation

_TOO_MANY = f"and more than {MAX_PIXELS:,} are taken for an accident or an attack"

HASH_WORDS = 8
NEAR = 12
"""Hashes that differ in at most so many of their 128 bits may be those of one picture; the thumbnails decide. Up to 15 bits, one of their 8
words differs in one at most, and so the images are found."""

THUMBNAIL = 16
"""Pixels a side."""
CORRELATION = 0.98
DIFFERENCE = 32
"""Thumbnails are of one picture where they correlate by more, and no pixel differs by more grey levels once both have the same mean. Either
alone is not enough: two sevens on white correlate as well as a photograph and its copy do, and of two dim pictures no pixel differs by
much. `tests/data/test_examine.py` has both kinds."""

_PLAIN = 1.0
"""Standard deviation in grey levels, below which a thumbnail shows nothing that could correlate; two such ones are compared by their
means, which may differ by the next number."""
_PLAIN_DIFFERENCE = 4.0

MIN_SIDE = 64
"""Pixels; smaller images are compared as files only, since at 32x32 different ones look alike to the hash."""

TRANSPARENT, PLAIN, DIM, TURNED = "transparent", "plain", "dim", "exif_orientation"
"""Remarks on an image that can be used: some pixels are transparent; all pixels are equal; a 16-bit
PNG uses few of its bits; EXIF asks to turn or mirror it."""

_DIM_BELOW = 2**14
"""A 16-bit PNG without a larger value is dim: sensors of 10, 12 or 14 bits. The upper 8 bits make it almost black."""

_CHANGES = np.array([0, *(1 << bit for bit in range(16))], np.uint16)

_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)


class Examined(NamedTuple):
    """What is kept of an image's pixels.

    Attributes:
      height, width: in pixels, as stored (an EXIF orientation is not applied).
      digest: 16 bytes, of the image file.
      hash: 16 bytes, of what it looks like.
      thumbnail: the grey levels of 16x16 pixels, row by row; empty of images too small to be compared by their looks.
      looks: a checksum of its grey levels; images that are equal once decoded have the same.
      remarks: what is odd about it, such as `PLAIN`.
    """

    height: int
    width: int
    digest: bytes
    hash: bytes
    thumbnail: bytes
    looks: int = 0
    remarks: tuple[str, ...] = ()


def examine(encoded: bytes) -> Examined | str:
    """Decodes an image: what is to be known of it, or why it is of no use.

    A JPEG that ends early is refused rather than filled up with gray: a person who copied half a folder wants to know.
    """
    try:
        why = _refused(encoded)
        if why:
            return why
        image = decode(tf.constant(encoded)).numpy()
        remarks = tuple(_remarks(encoded, image))
    except (tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError) as error:
        return _why_not_decoded(error.message, encoded)
    height, width, _ = image.shape
    grey = PIL.Image.fromarray(image).convert("L")
    thumbnail = _scaled(grey, THUMBNAIL).tobytes() if min(height, width) >= MIN_SIDE else b""
    digest, looks = hashlib.blake2b(encoded, digest_size=16).digest(), zlib.crc32(grey.tobytes(), height)
    return Examined(height, width, digest, perceptual_hash(grey), thumbnail, looks, remarks)


def _remarks(encoded: bytes, image: np.ndarray) -> Iterator[str]:
    """Yields what is odd about an image of pixels uint8 [H, W, 3]; decodes only PNG and GIF again."""
    if (image[0] == image[0, 0]).all() and (image == image[0, 0]).all():  # the first row tells most images at once
        yield PLAIN
    if orientation(encoded) > 1:
        yield TURNED
    if encoded[:4] == b"\x89PNG":
        if encoded[25] in (4, 6) or _transparent_colours(encoded) >= 0:
            alpha = tf.io.decode_image(encoded, channels=4)[..., 3].numpy()
            if alpha.min() < 255:
                yield TRANSPARENT
        if encoded[24] == 16:
            values = tf.io.decode_png(encoded, dtype=tf.uint16).numpy()
            if encoded[25] in (4, 6):
                values = values[..., :-1]  # without the alpha channel
            if values.max() < _DIM_BELOW:
                yield DIM
    elif encoded[:3] == b"GIF" and (decode_opaque(encoded).numpy() != image).any():
        yield TRANSPARENT


def _refused(encoded: bytes) -> str | None:
    """Why an image is not even decoded, by its first bytes."""
    if encoded[:3] == b"\xff\xd8\xff":
        height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy().tolist()
    elif encoded[:4] == b"\x89PNG" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        if encoded[25:26] not in (b"\x04", b"\x06") and _transparent_colours(encoded) > HEAD - 4:
            return f"its transparent colours stand behind {HEAD:,} bytes of text, where they are not looked for; save it again"
    elif encoded[:3] == b"GIF" and len(encoded) >= 13:
        width, height = struct.unpack("<HH", encoded[6:10])
        frames = list(_gif_frames(encoded))
        if sum(w * h for w, h in frames) > MAX_PIXELS:
            return f"its frames claim to have {sum(w * h for w, h in frames):,} pixels together, {_TOO_MANY}"
        width, height = max([width, *(w for w, _ in frames)]), max([height, *(h for _, h in frames)])
    elif encoded[:2] == b"BM" and len(encoded) >= 30:
        width, height = struct.unpack("<ii", encoded[18:26])
        if _has_colour_table(encoded):
            return "it is a BMP with a table of colours, which TensorFlow would take for grey levels; save it as PNG"
    else:
        return None  # the decoder will say
    if abs(width * height) > MAX_PIXELS:
        return f"it claims to have {width} x {abs(height)} pixels, {_TOO_MANY}"
    return None


def _transparent_colours(png: bytes) -> int:
    """Place of a PNG's list of transparent colours; -1 if it has none."""
    return png.find(b"tRNS", 0, max(0, png.find(b"IDAT")))


def _gif_frames(gif: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of each frame, which the decoder all unpacks, though it hands out the first one only.

    The screen's size at the beginning of the file binds none of them. A file that is cut off ends the walk; the decoder sees to it.
    """
    place = 13 + _table_bytes(gif[10])
    while place < len(gif):
        if gif[place] == 0x2C and place + 10 <= len(gif):  # a frame: left, top, width, height, flags; then its table and its pixels
            yield struct.unpack("<HH", gif[place + 5 : place + 9])
            place += 11 + _table_bytes(gif[place + 9])
        elif gif[place] == 0x21:  # an extension
            place += 2
        else:
            return
        while place < len(gif) and gif[place]:  # blocks, each after its length; one of length 0 is the last
            place += 1 + gif[place]
        place += 1


def _table_bytes(flags: int) -> int:
    """Size of the table of colours that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _has_colour_table(bmp: bytes) -> bool:
    """Whether the values of an 8-bit BMP mean anything but the grey levels of the same number."""
    start, header = struct.unpack("<I", bmp[10:14])[0], struct.unpack("<I", bmp[14:18])[0]
    if struct.unpack("<H", bmp[28:30])[0] != 8:
        return False
    table = np.frombuffer(bmp[14 + header : start], np.uint8)
    table = table[: len(table) // 4 * 4].reshape(-1, 4)[:, :3]
    return bool((table != np.arange(len(table))[:, np.newaxis]).any())


def other_kind(encoded: bytes) -> str:
    """Returns the kind of an image that cannot be used for what it is, such as WebP; else ""."""
    kind = formats.kind_of(encoded[: formats.HEAD])
    if kind == "BMP" and len(encoded) >= 30 and _has_colour_table(encoded):
        return "BMP with a table of colours"
    return "" if kind in formats.READABLE else kind


def _why_not_decoded(message: str, encoded: bytes) -> str:
    """The decoder's message in a user's words."""
    if "Unknown image file format" in message:
        kind = other_kind(encoded)
        advice = f"it is {kind}: convert it to JPEG or PNG" if kind else "TensorFlow decodes no other format"
        return f"it is no JPEG, PNG, GIF or BMP, whatever its name says; {advice}"
    if "Input is empty" in message:
        return "the file is empty"
    if any(f"Invalid {name} data" in message for name in ("JPEG", "PNG", "GIF")):
        return "the image is damaged or cut off"
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|name:\s*$", "", message)
    return f"TensorFlow cannot decode it ({' '.join(text.split()).rstrip('. ')})"


def perceptual_hash(image: PIL.Image.Image) -> bytes:
    """128 bits: scaled down to 9x9, whether each of 8x8 grey levels is lighter than its left and its upper one ("difference hash")."""
    grey = _scaled(image, 9).astype(np.int16)
    bits = np.stack([grey[1:, 1:] > grey[1:, :-1], grey[1:, 1:] > grey[:-1, 1:]])  # (2, 8, 8)
    return np.packbits(bits).tobytes()


def _scaled(image: PIL.Image.Image, side: int) -> np.ndarray:
    """The means of `side` x `side` equal parts of a grey image, uint8 [side, side]."""
    return np.asarray(image.resize((side, side), PIL.Image.Resampling.BOX))


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
        self._thumbnails = _thumbnails([examined[i] for i in large])  # (m, 256)

    def find(self, images: Sequence[Examined]) -> dict[int, dict[str, str | int]]:
        """Those of `images` that were seen: index -> the key `of` what, and in how many `bits` the hashes differ (−1: the same file)."""
        found: dict[int, dict[str, str | int]] = {}
        large = _large(images)
        image, seen, bits = self._near(_words([images[i] for i in large]))
        alike = _alike(_thumbnails([images[i] for i in large]), self._thumbnails, image, seen)
        for pair in np.flatnonzero(alike):
            i = large[image[pair]]
            if bits[pair] < found.get(i, {"bits": NEAR + 1})["bits"]:
                found[i] = {"of": self._keys[seen[pair]], "bits": int(bits[pair])}
        for i, candidate in enumerate(images):
            if candidate.digest in self._digests:
                found[i] = {"of": self._digests[candidate.digest], "bits": -1}
        return found

    def _near(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs whose hashes differ in at most `NEAR` bits: image, image seen, number of bits; int64 [p] each."""
        near = np.zeros([len(words), len(self._words)], bool)  # (n, m)
        for column in range(HASH_WORDS if near.size else 0):
            first = np.searchsorted(self._sorted[:, column], words[:, column])
            last = np.searchsorted(self._sorted[:, column], words[:, column], side="right")
            count = last - first  # (n,)
            image = np.repeat(np.arange(len(words)), count)  # each pair that shares this word; (p,)
            place = np.arange(len(image)) + np.repeat(first - (np.cumsum(count) - count), count)
            seen = self._order[place, column] // len(_CHANGES)  # (p,)
            new = ~near[image, seen]
            image, seen = image[new], seen[new]
            near[image, seen] = self._bits(words, image, seen) <= NEAR
        image, seen = np.nonzero(near)
        return image, seen, self._bits(words, image, seen)

    def _bits(self, words: np.ndarray, image: np.ndarray, seen: np.ndarray) -> np.ndarray:
        return _BITS[(words[image] ^ self._words[seen]).view(np.uint8)].sum(axis=1, dtype=np.int64)


def _large(images: Sequence[Examined]) -> list[int]:
    return [i for i, image in enumerate(images) if image.thumbnail]


def _words(images: Sequence[Examined]) -> np.ndarray:
    return np.frombuffer(b"".join(image.hash for image in images), np.uint16).reshape(-1, HASH_WORDS)


def _thumbnails(images: Sequence[Examined]) -> np.ndarray:
    return np.frombuffer(b"".join(image.thumbnail for image in images), np.uint8).reshape(-1, THUMBNAIL**2)


def _alike(ones: np.ndarray, others: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether thumbnails show the same, bool [p]; see `CORRELATION`, `DIFFERENCE`.

    Args:
      ones: uint8 [n, 256].
      others: uint8 [m, 256].
      one: int64 [p], the pairs to compare: which of `ones`,
      other: int64 [p], and which of `others`.
    """
    rows, other = np.unique(other, return_inverse=True)
    others = others[rows]
    mean, deviation, unit = _standardized(ones)
    mean_of_others, deviation_of_others, unit_of_others = _standardized(others)
    plain = (deviation[one] < _PLAIN) & (deviation_of_others[other] < _PLAIN)
    alike = plain & (np.abs(mean[one] - mean_of_others[other]) <= _PLAIN_DIFFERENCE)
    close = np.flatnonzero(~plain & ((unit @ unit_of_others.T)[one, other] > CORRELATION))  # a matrix, since all may be near all
    for start in range(0, len(close), 4096):
        pairs = close[start : start + 4096]
        i, j = one[pairs], other[pairs]
        difference = (ones[i] - mean[i, np.newaxis]) - (others[j] - mean_of_others[j, np.newaxis])  # (4096, 256)
        alike[pairs] = np.abs(difference).max(axis=1) <= DIFFERENCE
    return alike


def _standardized(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means and standard deviations, float32 [n], and what is left, of length 1 (0 where there is nothing), float32 [n, 256]."""
    mean = thumbnails.mean(axis=1, dtype=np.float32)
    centred = thumbnails - mean[:, np.newaxis]
    length = np.linalg.norm(centred, axis=1)
    return mean, length / THUMBNAIL, centred / np.maximum(length, 1e-6)[:, np.newaxis]
