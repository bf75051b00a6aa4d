"""Decodes PNG and GIF files, and composes transparent pixels over white.

TensorFlow drops the alpha channel of a PNG and paints the transparent pixels of a GIF black. Icons
with their shape in the alpha channel alone would become plain images. All of this runs in the
graph, so that training, evaluation and an exported model see the same pixels. Opaque images keep
their pixels exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from data.randaugment import switch

HEAD = 16_384
"""Number of bytes of a PNG that are searched for its transparent colors, which stand before the
pixels."""

BLOCK = 1 << 18
"""Number of pixels that are composed at a time."""

_MAYBE_TRANSPARENT = r"GIF8\C*|\CPNG\C{21}(?:[\x04\x06]\C*|\C*tRNS\C*)"
"""A pattern of RE2 in which \\C is any byte: a GIF, or a PNG with an alpha channel or with
transparent colors."""

_ALL_BYTES = bytes(range(256))


def decode_opaque(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an image of any format as TensorFlow does, without transparency: uint8 [H, W, 3]."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def maybe_transparent(encoded: tf.Tensor) -> tf.Tensor:
    """Tells whether an image, string scalar, must be decoded by `decode_over_white`: bool scalar.

    One operation for all formats, since it runs for every JPEG, too. A match inside the pixels of
    an opaque PNG does no harm.
    """
    return tf.strings.regex_full_match(tf.strings.substr(encoded, 0, HEAD), _MAYBE_TRANSPARENT)


def decode_over_white(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG, or the first frame of a GIF, over white: string scalar to uint8 [H, W, 3].

    Raises:
      tf.errors.InvalidArgumentError: a damaged file.
    """
    is_gif = tf.strings.substr(encoded, 0, 3) == b"GIF"
    decode = switch([_decode_png, _decode_gif], [encoded], tf.TensorSpec([None, None, 3], tf.uint8))
    return decode(tf.cast(is_gif, tf.int32), encoded)


def _decode_png(encoded: tf.Tensor) -> tf.Tensor:
    return over_white(tf.io.decode_image(encoded, channels=4, expand_animations=False))


def over_white(rgba: tf.Tensor) -> tf.Tensor:
    """Composes uint8 [H, W, 4] over white: uint8 [H, W, 3], rounded; exact where alpha is 255.

    Works on blocks of rows, since the wider numbers between would take 25 bytes a pixel.
    """
    height, width = tf.shape(rgba)[0], tf.shape(rgba)[1]
    rows = tf.maximum(1, BLOCK // tf.maximum(1, width))
    blocks = (height + rows - 1) // rows

    def compose(i: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        block = rgba[i * rows : (i + 1) * rows]
        color, alpha = tf.cast(block[..., :3], tf.uint16), tf.cast(block[..., 3:], tf.uint16)
        # 255 times the result, and a half to round it; at most 65153.
        sum255 = color * alpha + 255 * (255 - alpha) + 128
        result = tf.bitwise.right_shift(sum255 + tf.bitwise.right_shift(sum255, 8), 8)
        return i + 1, done.write(i, tf.cast(result, tf.uint8))

    shape = tf.TensorShape([None, None, 3])
    done = tf.TensorArray(tf.uint8, size=blocks, infer_shape=False, element_shape=shape)
    _, done = tf.while_loop(
        lambda i, _: i < blocks, compose, (tf.constant(0), done), parallel_iterations=1
    )
    return done.concat()


def _decode_gif(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a GIF after setting the transparent color to white and clearing its flag.

    Pixels that the first frame leaves out become white, too.
    """
    length = tf.strings.length(encoded)
    content = tf.concat(
        [tf.io.decode_raw(encoded, tf.uint8), tf.zeros([16], tf.uint8)], 0
    )  # what is cut off reads as 0

    def byte(place: tf.Tensor | int) -> tf.Tensor:
        return tf.cast(content[tf.minimum(place, length)], tf.int32)

    def number(place: tf.Tensor) -> tf.Tensor:
        return byte(place) + 256 * byte(place + 1)

    def table_size(flags: tf.Tensor) -> tf.Tensor:
        return tf.where(flags >= 128, tf.bitwise.left_shift(2, flags % 8), 0)

    global_size = table_size(byte(10))
    frame, control = _first_frame(byte, 13 + 3 * global_size)
    flags, index, local_size = byte(control + 3), byte(control + 6), table_size(byte(frame + 9))
    first, size = (
        tf.where(local_size > 0, frame + 10, 13),
        tf.where(local_size > 0, local_size, global_size),
    )
    found = (byte(frame) == 0x2C) & (frame < length)
    with_index = found & (control > 0) & (flags % 2 == 1) & (index < size)

    def whitened() -> tf.Tensor:
        opaque = _replace(encoded, control + 3, tf.strings.substr(_ALL_BYTES, flags - 1, 1))
        return _replace(opaque, first + 3 * index, tf.constant(b"\xff\xff\xff"))

    image = decode_opaque(tf.cond(with_index, whitened, lambda: encoded))
    left, top, width, height = (number(frame + offset) for offset in (1, 3, 5, 7))
    rows, columns = tf.range(tf.shape(image)[0])[:, tf.newaxis], tf.range(tf.shape(image)[1])
    inside = (
        (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    )  # (H, W)
    return tf.where((inside | ~found)[..., tf.newaxis], image, tf.constant(255, tf.uint8))


def _first_frame(
    byte: Callable[[tf.Tensor], tf.Tensor], start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Walks over the extensions before the first frame.

    Args:
      byte: place in the file -> its value, int32; 0 past the end.
      start: place of the first block.

    Returns:
      The place of the first frame (or of what else ends the walk); and the place of its graphic
      control extension, 0 if none.
    """

    def more(place: tf.Tensor, inside: tf.Tensor, control: tf.Tensor) -> tf.Tensor:
        return inside | (byte(place) == 0x21)

    def step(
        place: tf.Tensor, inside: tf.Tensor, control: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        value = byte(place)
        here = ~inside & (control == 0) & (byte(place + 1) == 0xF9)
        # A block of data: its length, then its bytes; length 0 is the last.
        skip = tf.where(inside, 1 + value, 2)
        return place + skip, ~inside | (value > 0), tf.where(here, place, control)

    place, _, control = tf.while_loop(more, step, (start, tf.constant(False), tf.constant(0)))
    return place, control


def _replace(encoded: tf.Tensor, place: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """Replaces the bytes of `encoded` from `place` on by `new`."""
    rest = tf.strings.substr(encoded, place + tf.strings.length(new), tf.strings.length(encoded))
    return tf.strings.join([tf.strings.substr(encoded, 0, place), new, rest])
