"""The operations of RandAugment and AutoAugment on uint8 images [H, W, 3]; what a magnitude means for them is in `randaugment`.

They agree with PIL's ImageOps and ImageEnhance. Geometry samples the nearest neighbour; what comes from outside the image is 128.
"""

from __future__ import annotations

import math
import warnings
from typing import Callable, Union

import tensorflow as tf

FILL = 128  # the grey that takes the place of pixels that were cut out or come from outside

_BORDER = [[1, 1], [3, 3]]  # one pixel around an image of `_rows`
_BELOW_HALF = 0.49999997  # floor(x + this) is the nearest whole number, halves upwards: x + 0.5 would be 1 in float32 for this very x

Scalar = Union[float, int, tf.Tensor]


def blend(degenerate: tf.Tensor, image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """``degenerate + factor * (image - degenerate)``, clipped to 0–255 and truncated: uint8, of the image's shape.

    A factor of 0 gives the degenerate image, 1 the image itself; beyond 1 extrapolates.
    """
    degenerate = tf.cast(degenerate, tf.float32)
    return to_uint8(degenerate + factor * (tf.cast(image, tf.float32) - degenerate))


def to_uint8(values: tf.Tensor) -> tf.Tensor:
    """Float32 clipped to 0–255 and truncated."""
    # One pass; `tf.clip_by_value` makes two.
    clipped = tf.raw_ops.ClipByValue(t=values, clip_value_min=tf.constant(0.0), clip_value_max=tf.constant(255.0))
    return tf.cast(clipped, tf.uint8)


def _rows(image: tf.Tensor) -> tf.Tensor:
    """[H, W, 3] -> [H, 3 W]: TensorFlow's loops over two long axes are several times faster than over one of 3."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the full range 0–255; a channel of one value stays as it is."""
    values = tf.cast(image, tf.float32)
    rows = _rows(values)
    # Down the columns first, which goes through the memory in order; then over what is left, (W, 3).
    low = tf.reduce_min(tf.reshape(tf.reduce_min(rows, axis=0), [-1, 3]), axis=0)  # (3,)
    high = tf.reduce_max(tf.reshape(tf.reduce_max(rows, axis=0), [-1, 3]), axis=0)
    flat = tf.equal(low, high)
    scale = tf.where(flat, 1.0, 255.0 / (high - low))
    offset = tf.where(flat, 0.0, -low * scale)
    width = tf.shape(image)[1]  # scale and offset for each value of a row: broadcasting over an axis of 3 is slow
    stretched = rows * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.reshape(to_uint8(stretched), tf.shape(image))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes each channel's histogram as flat as a table of grey levels can; PIL's integer arithmetic.

    This is the project's use of TensorFlow Addons, which is no longer developed. What would replace it: ``tf.math.bincount`` of each
    channel, its exclusive cumulative sum as the table, ``tf.gather``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package announces its end each time
        import tensorflow_addons as tfa  # here, since it takes seconds and most runs on small images do without Equalize

    return tf.ensure_shape(tfa.image.equalize(image), image.shape)


def invert(image: tf.Tensor) -> tf.Tensor:
    """255 minus each value."""
    return 255 - image


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the top ``bits`` bits (1–8) of each value."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - (1 << (8 - bits)), tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values from ``threshold`` (0–256) upwards."""
    if threshold > 255:
        return image
    above = tf.cast(image >= tf.constant(threshold, tf.uint8), tf.uint8)
    return tf.bitwise.bitwise_xor(image, above * 255)  # v XOR 255 is 255 - v; a `tf.where` costs thrice as much


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds ``addition`` (≥ 0) to the values below 128, up to 255 at most."""
    addition = min(addition, 255)
    dark = tf.cast(image < 128, tf.uint8)
    return image + tf.minimum(255 - image, addition) * dark


def grey(image: tf.Tensor) -> tf.Tensor:
    """ITU-R 601 luma with PIL's rounding: uint8 [H, W, 1]."""
    shape = tf.shape(image)
    # Sums stay below 2^24, so float32 holds them exactly.
    weights = tf.constant([[19595.0], [38470.0], [7471.0]])
    luma = tf.matmul(tf.reshape(tf.cast(image, tf.float32), [-1, 3]), weights)
    return tf.reshape(tf.cast((luma + 32768.0) * 2.0**-16, tf.uint8), [shape[0], shape[1], 1])


def color(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with the grey image."""
    return blend(three_times(grey(image)), image, factor)


def three_times(channel: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 1] -> float32 [H, W, 3], by a product, which is exact; several times faster than copies of single values."""
    flat = tf.matmul(tf.reshape(tf.cast(channel, tf.float32), [-1, 1]), tf.ones([1, 3]))
    return tf.reshape(flat, tf.concat([tf.shape(channel)[:2], [3]], 0))


def contrast(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with the image's mean grey level, rounded."""
    mean = tf.floor(tf.reduce_mean(tf.cast(grey(image), tf.float32)) + 0.5)
    return blend(mean, image, factor)


def brightness(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with black."""
    return to_uint8(factor * tf.cast(image, tf.float32))


def sharpness(image: tf.Tensor, factor: Scalar, rounded: bool = True) -> tf.Tensor:
    """Blends with the smoothed image: 3×3 ones with a 5 in the middle, over 13; the border keeps its values."""
    values = _rows(tf.cast(image, tf.float32))  # [H, 3 W]
    center = values[1:-1, 3:-3]
    # Sums of shifted images: several times faster than a convolution, and whole numbers, so that every device finds the same quotient.
    total = values[:-2] + values[1:-1] + values[2:]
    total = total[:, :-6] + total[:, 3:-3] + total[:, 6:] + 4.0 * center  # [H - 2, 3 W - 6]
    smooth = tf.floor((total + (6.5 if rounded else 0.5)) * (1.0 / 13.0))  # the halves keep off the edges between whole numbers
    return tf.reshape(blend(values + tf.pad(smooth - center, _BORDER), values, factor), tf.shape(image))


def affine(image: tf.Tensor, a: Scalar, b: Scalar, c: Scalar, d: Scalar, e: Scalar, f: Scalar) -> tf.Tensor:
    """Output pixel (x, y) is the input pixel nearest to (a x + b y + c, d x + e y + f); whole numbers are pixel centres."""
    size = tf.cast(tf.shape(image), tf.float32)
    x, y = tf.range(size[1])[tf.newaxis], tf.range(size[0])[:, tf.newaxis]
    return sample(image, d * x + e * y + f, a * x + b * y + c)  # in the order of TensorFlow's ImageProjectiveTransformV3


def sample(image: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """The pixels nearest to (rows, columns), halves away from zero; from outside the image `FILL`.

    This gathers the pixels, which takes a third of the time of TensorFlow's ImageProjectiveTransformV3 and gives the same ones.

    Args:
        image: uint8 [H, W, 3].
        rows: float32 [H or 1, W or 1].
        columns: the same.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    padded = tf.pad(_rows(image), _BORDER, constant_values=FILL)  # whatever is outside comes from the border
    pixels = tf.reshape(padded, [-1, 3])  # ((H + 2) (W + 2), 3)
    places = _nearest(rows, height) * (width + 2) + _nearest(columns, width)
    return tf.ensure_shape(tf.gather(pixels, places), image.shape)


def _nearest(places: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """1 … size for the pixels of an axis, 0 before them and size + 1 behind."""
    # -0.5 goes down to -1, which is outside, and size - 0.5 up to size: the same as halves away from zero.
    nearest = tf.raw_ops.ClipByValue(
        t=tf.floor(places + _BELOW_HALF), clip_value_min=tf.constant(-1.0), clip_value_max=tf.cast(size, tf.float32)
    )
    return tf.cast(nearest, tf.int32) + 1


def _shift(image: tf.Tensor, pixels: Scalar, axis: int) -> tf.Tensor:
    """``affine`` by ``pixels`` along one axis, as a slice and a border."""
    places = tf.range(tf.cast(tf.shape(image)[axis], tf.float32)) + pixels  # (n,), where each output pixel comes from
    size = tf.shape(image)[axis]
    inside = tf.logical_and(places > -0.5, places < tf.cast(size, tf.float32) - 0.5)
    before = tf.reduce_sum(tf.cast(places <= -0.5, tf.int32))
    length = tf.reduce_sum(tf.cast(inside, tf.int32))
    start = tf.reduce_max(tf.where(inside[: before + 1], tf.cast(tf.floor(places[: before + 1] + 0.5), tf.int32), 0))
    begin, shape = [0, 0, 0], list(tf.unstack(tf.shape(image)))
    begin[axis], shape[axis] = start, length
    border = [[0, 0], [0, 0], [0, 0]]
    border[axis] = [before, size - before - length]
    return tf.ensure_shape(tf.pad(tf.slice(image, begin, shape), border, constant_values=FILL), image.shape)


def rotate(image: tf.Tensor, degrees: Scalar) -> tf.Tensor:
    """Turns the image about its centre, counter-clockwise for a positive angle."""
    radians = degrees * (math.pi / 180.0)
    cos, sin = tf.cos(radians), tf.sin(radians)
    shape = tf.cast(tf.shape(image), tf.float32)
    height, width = shape[0] - 1.0, shape[1] - 1.0
    offset_x = (width - (cos * width - sin * height)) / 2.0
    offset_y = (height - (sin * width + cos * height)) / 2.0
    return affine(image, cos, -sin, offset_x, sin, cos, offset_y)


def shear_x(image: tf.Tensor, level: Scalar) -> tf.Tensor:
    """Moves row y by ``level * y`` pixels to the left."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    y = tf.range(height)[:, tf.newaxis]
    return sample(image, y, tf.range(width) + level * y)


def shear_y(image: tf.Tensor, level: Scalar) -> tf.Tensor:
    """Moves column x by ``level * x`` pixels up."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    x = tf.range(width)[tf.newaxis]
    return sample(image, level * x + tf.range(height)[:, tf.newaxis], x)


def translate_x(image: tf.Tensor, pixels: Scalar) -> tf.Tensor:
    """Moves the image by ``pixels`` to the left."""
    return _shift(image, pixels, 1)


def translate_y(image: tf.Tensor, pixels: Scalar) -> tf.Tensor:
    """Moves the image by ``pixels`` up."""
    return _shift(image, pixels, 0)


def cutout(image: tf.Tensor, half_size: Scalar, center: tf.Tensor) -> tf.Tensor:
    """Fills a square of side 2 × ``half_size`` with 128, clipped at the borders.

    Args:
        image: [H, W, 3] of any dtype.
        half_size: pixels, a whole number.
        center: float [2] in [0, 1): the row and the column as fractions of the image's sides.
    """
    shape = tf.shape(image)
    center = tf.cast(center * tf.cast(shape[:2], tf.float32), tf.int32)
    half_size = tf.cast(half_size, tf.int32)
    top, left = tf.unstack(tf.maximum(center - half_size, 0))
    bottom, right = tf.unstack(tf.minimum(center + half_size, shape[:2]))
    # The parts around the square and the square, put together: nothing is computed.
    rows = _rows(image)  # [H, 3 W]
    band = rows[top:bottom]
    square = tf.fill([bottom - top, 3 * (right - left)], tf.constant(FILL, image.dtype))
    band = tf.concat([band[:, : 3 * left], square, band[:, 3 * right :]], axis=1)
    return tf.reshape(tf.concat([rows[:top], band, rows[bottom:]], axis=0), shape)


# One place for what an operation does; Cutout also takes its centre.
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
