"""The operations of RandAugment and AutoAugment on uint8 images [H, W, 3].

`randaugment` says what a magnitude means for them. The operations agree with PIL's ImageOps and
ImageEnhance. Geometry samples the nearest neighbor; pixels from outside the image are 128.

Each operation has one form for an eager call, a graph of `tf.data` and XLA, with the same pixels in
all three. XLA must know the image's shape. Sizes of slices depend on shapes alone, and `_rounded`
keeps XLA from fusing a product and a sum into one operation.
"""

from __future__ import annotations

import math
from typing import Callable, Union

import tensorflow as tf

FILL = 128  # the gray of pixels that were cut out or come from outside

_BORDER = [[1, 1], [3, 3]]  # one pixel around an image of `_rows`
# floor(x + this) is the nearest whole number, halves upwards. With x + 0.5, this very x would
# become 1 in float32.
_BELOW_HALF = 0.49999997

Scalar = Union[float, int, tf.Tensor]


def blend(degenerate: tf.Tensor, image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Computes ``degenerate + factor * (image - degenerate)``, clipped to 0–255 and truncated.

    The result is uint8, of the image's shape. A factor of 0 gives the degenerate image, 1 the image
    itself; beyond 1 extrapolates.
    """
    degenerate = tf.cast(degenerate, tf.float32)
    return to_uint8(degenerate + _rounded(factor * (tf.cast(image, tf.float32) - degenerate)))


def _rounded(product: tf.Tensor) -> tf.Tensor:
    """Returns the same values, but keeps XLA from fusing the product with a sum.

    XLA would round a sum with the bare product once; TensorFlow's kernels round it twice.
    """
    return tf.maximum(product, -1e30)


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Clips float32 to 0–255 and truncates to uint8."""
    # One pass; `tf.clip_by_value` makes two.
    clipped = tf.raw_ops.ClipByValue(
        t=values, clip_value_min=tf.constant(0.0), clip_value_max=tf.constant(255.0)
    )
    return tf.cast(clipped, tf.uint8)


def _rows(image: tf.Tensor) -> tf.Tensor:
    """Reshapes [H, W, 3] to [H, 3 W].

    TensorFlow loops over two long axes several times faster than over one of 3.
    """
    return tf.reshape(image, [tf.shape(image)[0], -1])


def _three_each(columns: tf.Tensor) -> tf.Tensor:
    """Repeats one value for each pixel of a row for each of its channels: [W] -> [3 W]."""
    return tf.reshape(tf.tile(columns[:, tf.newaxis], [1, 3]), [-1])


def _fill_columns(rows: tf.Tensor, filled: tf.Tensor) -> tf.Tensor:
    """Fills the pixels of every row [n, 3 W] that `filled`, bool [W], marks with `FILL`.

    The other pixels keep the row's own values.
    """
    filled, fill = _three_each(filled), tf.constant(FILL, rows.dtype)
    # Two bounds take half the time of a `tf.where`.
    least, most = tf.where(filled, fill, rows.dtype.min), tf.where(filled, fill, rows.dtype.max)
    return tf.minimum(tf.maximum(rows, least), most)


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the full range 0–255; a channel of one value stays as it is."""
    values = tf.cast(image, tf.float32)
    rows = _rows(values)
    # First down the columns, which goes through the memory in order; then over the rest, (W, 3).
    low = tf.reduce_min(tf.reshape(tf.reduce_min(rows, axis=0), [-1, 3]), axis=0)  # (3,)
    high = tf.reduce_max(tf.reshape(tf.reduce_max(rows, axis=0), [-1, 3]), axis=0)
    flat = tf.equal(low, high)
    scale = tf.where(flat, 1.0, 255.0 / (high - low))
    offset = tf.where(flat, 0.0, -low * scale)
    width = tf.shape(image)[1]
    # Scale and offset for each value of a row: broadcasting over an axis of 3 is slow.
    stretched = _rounded(rows * tf.tile(scale, [width])) + tf.tile(offset, [width])
    return tf.reshape(to_uint8(stretched), tf.shape(image))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes each channel's histogram as flat as a table of gray levels can.

    The arithmetic is PIL's, in integers.
    """
    shape = tf.shape(image)
    places = tf.cast(_rows(image), tf.int32) + tf.tile(
        tf.constant([0, 256, 512]), [shape[1]]
    )  # [H, 3 W], one table for the three channels
    # `tf.math.bincount` would first look for the largest value, and XLA does not accept what it
    # builds.
    counts = tf.raw_ops.DenseBincount(
        input=tf.reshape(places, [-1]),
        size=768,
        weights=tf.constant([], tf.int32),
        binary_output=False,
    )
    counts = tf.reshape(counts, [3, 256])
    below = tf.cumsum(counts, axis=1, exclusive=True)  # pixels of a lower value
    # All pixels but those of the highest value.
    step = tf.reduce_max(tf.where(counts > 0, below, 0), axis=1, keepdims=True) // 255
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.where(step > 0, table, tf.range(256))
    # `tf.gather` of single bytes takes 1.5 times as long.
    values = tf.gather_nd(tf.reshape(tf.cast(table, tf.uint8), [-1]), places[..., tf.newaxis])
    return tf.reshape(values, shape)


def invert(image: tf.Tensor) -> tf.Tensor:
    """Computes 255 minus each value."""
    return 255 - image


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the top ``bits`` bits (1–8) of each value."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - (1 << (8 - bits)), tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values from ``threshold`` (0–256) upwards."""
    if threshold > 255:
        return image
    above = tf.cast(image >= tf.constant(threshold, tf.uint8), tf.uint8)
    # v XOR 255 is 255 - v; a `tf.where` costs three times as much.
    return tf.bitwise.bitwise_xor(image, above * 255)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds ``addition`` (≥ 0) to the values below 128, up to a maximum of 255."""
    addition = min(addition, 255)
    dark = tf.cast(image < 128, tf.uint8)
    return image + tf.minimum(255 - image, addition) * dark


def gray(image: tf.Tensor) -> tf.Tensor:
    """Computes ITU-R 601 luma with PIL's rounding: uint8 [H, W, 1]."""
    shape = tf.shape(image)
    # Sums stay below 2^24, so float32 holds them exactly.
    weights = tf.constant([[19595.0], [38470.0], [7471.0]])
    luma = tf.matmul(tf.reshape(tf.cast(image, tf.float32), [-1, 3]), weights)
    return tf.reshape(tf.cast((luma + 32768.0) * 2.0**-16, tf.uint8), [shape[0], shape[1], 1])


def color(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with the gray image."""
    return blend(three_times(gray(image)), image, factor)


def three_times(channel: tf.Tensor) -> tf.Tensor:
    """Repeats a channel: uint8 [H, W, 1] -> float32 [H, W, 3].

    A product does this exactly, several times faster than copies of single values.
    """
    flat = tf.matmul(tf.reshape(tf.cast(channel, tf.float32), [-1, 1]), tf.ones([1, 3]))
    return tf.reshape(flat, tf.concat([tf.shape(channel)[:2], [3]], 0))


def contrast(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with the image's mean gray level, rounded."""
    # Integers: the same whatever the order of the sum.
    total = tf.reduce_sum(tf.cast(tf.reduce_sum(tf.cast(gray(image), tf.int32), axis=1), tf.int64))
    pixels = tf.cast(tf.shape(image)[0] * tf.shape(image)[1], tf.int64)
    return blend((total + pixels // 2) // pixels, image, factor)


def brightness(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with black."""
    return to_uint8(factor * tf.cast(image, tf.float32))


def sharpness(image: tf.Tensor, factor: Scalar, rounded: bool = True) -> tf.Tensor:
    """Blends with the smoothed image.

    The smoothing kernel is 3×3 ones with a 5 in the middle, over 13. The border keeps its values.
    """
    values = _rows(tf.cast(image, tf.float32))  # [H, 3 W]
    center = values[1:-1, 3:-3]
    # Sums of shifted images are several times faster than a convolution. They are integers, so
    # every device finds the same quotient.
    total = values[:-2] + values[1:-1] + values[2:]
    total = total[:, :-6] + total[:, 3:-3] + total[:, 6:] + 4.0 * center  # [H - 2, 3 W - 6]
    # The halves keep the quotient away from the edges between integers.
    smooth = tf.floor((total + (6.5 if rounded else 0.5)) * (1.0 / 13.0))
    return tf.reshape(
        blend(values + tf.pad(smooth - center, _BORDER), values, factor), tf.shape(image)
    )


def affine(
    image: tf.Tensor, a: Scalar, b: Scalar, c: Scalar, d: Scalar, e: Scalar, f: Scalar
) -> tf.Tensor:
    """Applies an affine map to the coordinates.

    Output pixel (x, y) is the input pixel nearest to (a x + b y + c, d x + e y + f). Integers are
    pixel centers.
    """
    size = tf.cast(tf.shape(image), tf.float32)
    x, y = tf.range(size[1])[tf.newaxis], tf.range(size[0])[:, tf.newaxis]
    rows, columns = _rounded(d * x) + _rounded(e * y) + f, _rounded(a * x) + _rounded(b * y) + c
    return sample(image, rows, columns)  # in the order of TensorFlow's ImageProjectiveTransformV3


def sample(image: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns the pixels nearest to (rows, columns), halves away from zero.

    Pixels from outside the image are `FILL`. Gathering the pixels takes a fraction of the time of
    TensorFlow's ImageProjectiveTransformV3 and gives the same ones.

    Args:
        image: uint8 [H, W, 3].
        rows: float32 [H or 1, W or 1].
        columns: the same.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    padded = tf.pad(
        _rows(image), _BORDER, constant_values=FILL
    )  # whatever is outside comes from the border
    pixels = tf.reshape(padded, [-1, 3])  # ((H + 2) (W + 2), 3)
    places = _nearest(rows, height) * (width + 2) + _nearest(columns, width)
    return tf.ensure_shape(
        tf.gather_nd(pixels, places[..., tf.newaxis]), image.shape
    )  # a third faster than `tf.gather`


def _nearest(places: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns 1 … size for the pixels of an axis, 0 before them and size + 1 behind."""
    # -0.5 goes down to -1, which is outside, and size - 0.5 up to size: the same as halves away
    # from zero.
    bounded = tf.raw_ops.ClipByValue(
        t=places, clip_value_min=tf.constant(-1.0), clip_value_max=tf.cast(size, tf.float32)
    )
    return tf.cast(tf.floor(bounded + _BELOW_HALF), tf.int32) + 1


def rotate(image: tf.Tensor, degrees: Scalar) -> tf.Tensor:
    """Turns the image about its center, counter-clockwise for a positive angle."""
    radians = degrees * (math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    shape = tf.cast(tf.shape(image), tf.float32)
    height, width = shape[0] - 1.0, shape[1] - 1.0
    offset_x = (width - (_rounded(cos * width) - _rounded(sin * height))) / 2.0
    offset_y = (height - (_rounded(sin * width) + _rounded(cos * height))) / 2.0
    return affine(image, cos, -sin, offset_x, sin, cos, offset_y)


def shear_x(image: tf.Tensor, level: Scalar) -> tf.Tensor:
    """Moves row y by ``level * y`` pixels to the left."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    y = tf.range(height)[:, tf.newaxis]
    return sample(image, y, tf.range(width) + _rounded(level * y))


def shear_y(image: tf.Tensor, level: Scalar) -> tf.Tensor:
    """Moves column x by ``level * x`` pixels up."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    x = tf.range(width)[tf.newaxis]
    return sample(image, _rounded(level * x) + tf.range(height)[:, tf.newaxis], x)


def translate_x(image: tf.Tensor, pixels: Scalar) -> tf.Tensor:
    """Moves the image by ``pixels`` to the left."""
    width = tf.shape(image)[1]
    nearest = (
        _nearest(tf.range(tf.cast(width, tf.float32)) + pixels, width) - 1
    )  # (W,), of the columns that come from inside
    outside = tf.logical_or(nearest < 0, nearest >= width)
    moved_by = tf.reduce_max(
        tf.where(outside, -width, nearest - tf.range(width))
    )  # the same for all of them
    return tf.reshape(
        _fill_columns(tf.roll(_rows(image), -3 * moved_by, axis=1), outside), tf.shape(image)
    )


def translate_y(image: tf.Tensor, pixels: Scalar) -> tf.Tensor:
    """Moves the image by ``pixels`` up."""
    height, rows = tf.shape(image)[0], _rows(image)
    outside = tf.fill([1, tf.shape(rows)[1]], tf.constant(FILL, tf.uint8))
    nearest = _nearest(tf.range(tf.cast(height, tf.float32)) + pixels, height)  # (H,)
    return tf.reshape(
        tf.gather(tf.concat([outside, rows, outside], axis=0), nearest), tf.shape(image)
    )


def cutout(image: tf.Tensor, half_size: Scalar, center: tf.Tensor) -> tf.Tensor:
    """Fills a square of side 2 × ``half_size`` with 128, clipped at the borders.

    Args:
        image: [H, W, 3] of any dtype.
        half_size: half of the side in pixels, an integer.
        center: float [2] in [0, 1): the row and the column as fractions of the image's sides.
    """
    shape, rows = tf.shape(image), _rows(image)
    center = tf.cast(center * tf.cast(shape[:2], tf.float32), tf.int32)
    half_size = tf.cast(half_size, tf.int32)
    y, x = tf.range(shape[0]), tf.range(shape[1])
    in_rows = tf.logical_and(y >= center[0] - half_size, y < center[0] + half_size)
    in_columns = tf.logical_and(x >= center[1] - half_size, x < center[1] + half_size)
    # First a band of rows with the square in it, then each row of the image or of the band: copies
    # of whole rows are cheap.
    height = tf.minimum(2 * half_size, shape[0])
    first = tf.clip_by_value(center[0] - half_size, 0, shape[0] - height)
    band = _fill_columns(tf.slice(rows, [first, 0], [height, 3 * shape[1]]), in_columns)
    return tf.reshape(
        tf.gather(tf.concat([rows, band], axis=0), tf.where(in_rows, shape[0] + y - first, y)),
        shape,
    )


# What each operation does; Cutout also takes its center.
OPS: dict[str, Callable[..., tf.Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Cutout": cutout,
}
