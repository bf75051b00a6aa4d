"""Tells whether training can use an image, and what it looks like.

Every image is decoded once before anything is written, by the decoder that training uses. So an
image that passes here does not stop a run hours later. From the same pixels come the values that
`data.likeness` compares. It finds held-out images among the others even if they were scaled,
cropped a little or compressed anew.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from cli.exif import orientation
from data import formats, likeness
from data.preprocessing import MAX_PIXELS, decode
from data.transparency import HEAD, decode_opaque

_TOO_MANY = f"and more than {MAX_PIXELS:,} are refused as an accident or an attack"

CONVERT = "or let such files be converted with --config.data.convert=True"

MIN_SIDE = 64
"""Side in pixels. Smaller images are compared as files only: at 32x32, different ones look alike to
the hash."""

TRANSPARENT, PLAIN, DIM, TURNED = "transparent", "plain", "dim", "exif_orientation"
"""Remarks on an image that can be used: some pixels are transparent; all pixels are equal; a 16-bit
PNG uses few of its bits; EXIF asks to turn or mirror it."""

_DIM_BELOW = 2**14
"""A 16-bit PNG without a larger value is dim: sensors have 10, 12 or 14 bits. The upper 8 bits make
it almost black."""


class Examined(NamedTuple):
    """Facts that are kept of an image's pixels.

    Attributes:
      height, width: in pixels, as stored (an EXIF orientation is not applied).
      digest: 16 bytes, of the image file.
      hash: 16 bytes, of what it looks like.
      thumbnail: the gray levels of 16x16 pixels, row by row; empty of images too small to be
        compared by their looks.
      remarks: what is odd about it, such as `PLAIN`.
      pixels: 16 bytes, digest of the decoded pixels and their shape; empty where unknown.
      detail: the gray levels of 64x64 pixels, for the finest comparison; empty as `thumbnail` is,
        or where unknown.
    """

    height: int
    width: int
    digest: bytes
    hash: bytes
    thumbnail: bytes
    remarks: tuple[str, ...] = ()
    pixels: bytes = b""
    detail: bytes = b""


def examine(encoded: bytes) -> Examined | str:
    """Decodes an image; returns what is known of it, or why it cannot be used.

    A JPEG that ends early is refused, not filled up with gray: a person who copied half a folder
    wants to know.
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
    gray = PIL.Image.fromarray(image).convert("L")
    large = min(height, width) >= MIN_SIDE
    return Examined(
        height,
        width,
        hashlib.blake2b(encoded, digest_size=16).digest(),
        likeness.perceptual_hash(gray),
        likeness.scaled(gray, likeness.THUMBNAIL).tobytes() if large else b"",
        remarks,
        hashlib.blake2b(
            image.tobytes(), digest_size=16, salt=f"{height} {width}".encode()[:16]
        ).digest(),
        likeness.detail(gray) if large else b"",
    )


def _remarks(encoded: bytes, image: np.ndarray) -> Iterator[str]:
    """Yields what is odd about an image of pixels uint8 [H, W, 3].

    Only PNG and GIF files are decoded again.
    """
    # The first row decides for most images.
    if (image[0] == image[0, 0]).all() and (image == image[0, 0]).all():
        yield PLAIN
    if orientation(encoded) > 1:
        yield TURNED
    if encoded[:4] == b"\x89PNG":
        if encoded[25] in (4, 6) or _transparent_colors(encoded) >= 0:
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
    """Returns why an image is not even decoded, by its first bytes; None if it is."""
    if encoded[:3] == b"\xff\xd8\xff":
        height, width, _ = tf.io.extract_jpeg_shape(encoded).numpy().tolist()
    elif encoded[:4] == b"\x89PNG" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        if encoded[25:26] not in (b"\x04", b"\x06") and _transparent_colors(encoded) > HEAD - 4:
            return (
                f"its transparent colors stand behind {HEAD:,} bytes of text, where they are not"
                " looked for; save it again"
            )
    elif encoded[:3] == b"GIF" and len(encoded) >= 13:
        width, height = struct.unpack("<HH", encoded[6:10])
        frames = list(_gif_frames(encoded))
        if sum(w * h for w, h in frames) > MAX_PIXELS:
            return (
                f"its frames claim to have {sum(w * h for w, h in frames):,} pixels together,"
                f" {_TOO_MANY}"
            )
        width, height = (
            max([width, *(w for w, _ in frames)]),
            max([height, *(h for _, h in frames)]),
        )
    elif encoded[:2] == b"BM" and len(encoded) >= 30:
        width, height = struct.unpack("<ii", encoded[18:26])
        if _has_color_table(encoded):
            return (
                "it is a BMP with a table of colors, which TensorFlow would take for gray levels;"
                f" save it as PNG, {CONVERT}"
            )
    elif (
        formats.kind_of(encoded[: formats.HEAD]) == "WebP"
    ):  # TensorFlow 2.21 decodes it, 2.15 does not: one data set for both
        return _of_another_format(encoded)
    else:
        return None  # the decoder will say
    if abs(width * height) > MAX_PIXELS:
        return f"it claims to have {width} x {abs(height)} pixels, {_TOO_MANY}"
    return None


def _transparent_colors(png: bytes) -> int:
    """Returns the place of a PNG's list of transparent colors; -1 if it has none."""
    return png.find(b"tRNS", 0, max(0, png.find(b"IDAT")))


def _gif_frames(gif: bytes) -> Iterator[tuple[int, int]]:
    """Yields (width, height) of each frame.

    The decoder unpacks every frame, though it hands out only the first. The screen's size at the
    beginning of the file does not limit the frames. A file that is cut off ends the walk; the
    decoder reports it.
    """
    place = 13 + _table_bytes(gif[10])
    while place < len(gif):
        if gif[place] == 0x2C and place + 10 <= len(
            gif
        ):  # a frame: left, top, width, height, flags; then its table and its pixels
            yield struct.unpack("<HH", gif[place + 5 : place + 9])
            place += 11 + _table_bytes(gif[place + 9])
        elif gif[place] == 0x21:  # an extension
            place += 2
        else:
            return
        while (
            place < len(gif) and gif[place]
        ):  # blocks, each after its length; one of length 0 is the last
            place += 1 + gif[place]
        place += 1


def _table_bytes(flags: int) -> int:
    """Returns the size in bytes of the table of colors that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _has_color_table(bmp: bytes) -> bool:
    """Tells whether an 8-bit BMP's values mean anything but the gray level of the same number."""
    start, header = struct.unpack("<I", bmp[10:14])[0], struct.unpack("<I", bmp[14:18])[0]
    if struct.unpack("<H", bmp[28:30])[0] != 8:
        return False
    table = np.frombuffer(bmp[14 + header : start], np.uint8)
    table = table[: len(table) // 4 * 4].reshape(-1, 4)[:, :3]
    return bool((table != np.arange(len(table))[:, np.newaxis]).any())


def other_kind(encoded: bytes) -> str:
    """Returns the kind of an image that is unusable for its kind, such as WebP; else ""."""
    kind = formats.kind_of(encoded[: formats.HEAD])
    if kind == "BMP" and len(encoded) >= 30 and _has_color_table(encoded):
        return "BMP with a table of colors"
    return "" if kind in formats.READABLE else kind


def _of_another_format(encoded: bytes) -> str:
    """Says that an image is of no format that training reads."""
    kind = other_kind(encoded)
    setting = f", {CONVERT}" if kind in formats.CONVERTIBLE else ""
    advice = (
        f"it is {kind}: convert it to JPEG or PNG{setting}" if kind else "no other format is read"
    )
    return f"it is not a JPEG, PNG, GIF or BMP file, whatever its name says; {advice}"


def _why_not_decoded(message: str, encoded: bytes) -> str:
    """Puts the decoder's message in a user's words."""
    if "Unknown image file format" in message:
        return _of_another_format(encoded)
    if "Input is empty" in message:
        return "the file is empty"
    if any(f"Invalid {name} data" in message for name in ("JPEG", "PNG", "GIF")):
        return "the image is damaged or cut off"
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|name:\s*$", "", message)
    return f"TensorFlow cannot decode it ({' '.join(text.split()).rstrip('. ')})"
