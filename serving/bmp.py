"""Tells which BMP files TensorFlow decodes correctly.

Its decoder reads the size and the bits per pixel, and nothing else of the header. It takes the
indices of a color table for gray levels, compressed bytes for pixels, and channels in another order
for blue, green, red.
"""

from __future__ import annotations

import tensorflow as tf

from serving.answers import NOT_AN_IMAGE, OK, UNSUPPORTED

_FILE_HEADER = 14  # bytes; the second header follows, which begins with its own length
_INFO_HEADER = 40  # bytes; shorter headers have other fields
_RGB, _BITFIELDS = 0, 3  # values of the compression
_MASKS = (0xFF0000, 0xFF00, 0xFF)  # red, green and blue of a pixel that is stored blue first


def status(encoded: tf.Tensor) -> tf.Tensor:
    """Returns OK for a BMP that the decoder gets right, else the reason to refuse it.

    Args:
      encoded: string scalar that begins with "BM".

    Returns:
      int32 scalar: OK, UNSUPPORTED, or NOT_AN_IMAGE for a header that contradicts itself.

    Raises:
      tf.errors.InvalidArgumentError: a header that is cut off.
    """
    # Start of the pixels, length of the second header, width, height, planes and bits, compression.
    numbers = _int32(encoded, 10, 6)
    start, header = numbers[0], numbers[1]
    bits, compression = tf.bitwise.right_shift(numbers[4], 16), numbers[5]
    table = _FILE_HEADER + header
    whole = (header > 0) & (table > 0) & (table <= start) & (start <= tf.strings.length(encoded))

    def masked() -> tf.Tensor:
        return tf.reduce_all(_int32(encoded, _FILE_HEADER + _INFO_HEADER, 3) == _MASKS)

    def gray() -> tf.Tensor:
        """Tells whether the color table gives each index the gray level of the same number.

        `data.examine` asks the same.
        """
        colors = tf.strings.substr(encoded, table, (start - table) // 4 * 4)
        # (colors, 3): blue, green, red
        colors = tf.reshape(tf.io.decode_raw(colors, tf.uint8), [-1, 4])[:, :3]
        return tf.reduce_all(
            tf.cast(colors, tf.int32) == tf.range(tf.shape(colors)[0])[:, tf.newaxis]
        )

    def no() -> tf.Tensor:
        return tf.constant(False)

    kinds = [
        (tf.logical_not(whole) | (header < _INFO_HEADER), no),
        (tf.equal(compression, _BITFIELDS) & tf.equal(bits, 32), masked),
        (tf.not_equal(compression, _RGB), no),
        (tf.equal(bits, 8), gray),
    ]
    right = tf.case(kinds, default=lambda: tf.equal(bits, 24) | tf.equal(bits, 32))
    return tf.where(whole, tf.where(right, OK, UNSUPPORTED), NOT_AN_IMAGE)


def _int32(encoded: tf.Tensor, place: int, count: int) -> tf.Tensor:
    """Reads `count` numbers of 4 bytes from byte `place` on, as int32 [count].

    Raises InvalidArgumentError where they are cut off.
    """
    return tf.ensure_shape(
        tf.io.decode_raw(tf.strings.substr(encoded, place, 4 * count), tf.int32), [count]
    )
