"""RandAugment as a function of a seed: N operations drawn uniformly, each applied at one fixed magnitude M.

Source: Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space", section 3; the
list of 16 operations and the meaning of M are those of the Noisy Student release. With L = M / 10, the arguments are:

| operation                            | ``reference`` (the release)             | ``monotone``                                |
|--------------------------------------|-----------------------------------------|---------------------------------------------|
| AutoContrast, Equalize, Invert       | none                                    | none; left out at M = 0                     |
| Rotate, degrees                      | ±30 L                                   | ±min(30 L, 180)                             |
| ShearX, ShearY                       | ±0.3 L                                  | ±0.3 L                                      |
| TranslateX, TranslateY, pixels       | ±C L                                    | ±C L, at most half of the side              |
| Color, Contrast, Brightness,         | 1.8 L + 0.1 (identity at M = 5)         | 1 + 0.9 L or max(1 − 0.9 L, 0.1)            |
| Sharpness: blend factor              |                                         |                                             |
| Posterize, bits kept                 | int(4 L), weaker as M grows; 0 bits and | max(8 − int(4 L), 1)                        |
|                                      | more than 8 leave only 0 and 128        |                                             |
| Solarize, inverted from              | int(256 L) mod 256                      | max(256 − int(256 L), 0)                    |
| SolarizeAdd, added below 128         | int(110 L)                              | min(int(110 L), 128)                        |
| Cutout, half of the square's side    | int(c L)                                | int(c L), at most a quarter of the short side |

"±" and "or": one of the two with probability 0.5. C is ``translate_const``, c is ``cutout_const``.

``reference`` repeats the release's arithmetic, so that its magnitudes mean what they meant there: the wrapped Solarize threshold, the
Posterize shift beyond its range, the "mean" of Contrast that is the image's area / 256, and casts that truncate. One thing is
exact that was not: Sharpness divides whole sums, where the release's float convolution, whose result depends on the machine, now and
then falls one grey level short.
``monotone`` is what a reader of the paper expects: nothing happens at M = 0, and a larger M never does less. Its operations agree with
PIL's ImageOps and ImageEnhance.

Geometry samples the nearest neighbour; what comes from outside the image is 128.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Callable, Union

import tensorflow as tf

from stages.errors import InputError

FILL = 128  # the grey that takes the place of pixels that were cut out or come from outside
MODES = ("reference", "monotone")

_BORDER = [[1, 1], [1, 1], [0, 0]]  # one pixel around the image

Scalar = Union[float, int, tf.Tensor]


def blend(degenerate: tf.Tensor, image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """``degenerate + factor * (image - degenerate)``, clipped to 0–255 and truncated: uint8, of the image's shape.

    A factor of 0 gives the degenerate image, 1 the image itself; beyond 1 extrapolates.
    """
    degenerate = tf.cast(degenerate, tf.float32)
    blended = degenerate + factor * (tf.cast(image, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)


def _rows(image: tf.Tensor) -> tf.Tensor:
    """[H, W, 3] -> [H, 3 W]: TensorFlow's loops over two long axes are several times faster than over one of 3."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the full range 0–255; a channel of one value stays as it is."""
    values = tf.cast(image, tf.float32)
    rows = _rows(image)
    # Down the columns first, which goes through the memory in order; then over what is left, (W, 3).
    low = tf.cast(tf.reduce_min(tf.reshape(tf.reduce_min(rows, axis=0), [-1, 3]), axis=0), tf.float32)  # (3,)
    high = tf.cast(tf.reduce_max(tf.reshape(tf.reduce_max(rows, axis=0), [-1, 3]), axis=0), tf.float32)
    flat = tf.equal(low, high)
    scale = tf.where(flat, 1.0, 255.0 / (high - low))
    offset = tf.where(flat, 0.0, -low * scale)
    return tf.cast(tf.clip_by_value(values * scale + offset, 0.0, 255.0), tf.uint8)


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
    return blend(grey(image), image, factor)


def contrast(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with the image's mean grey level, rounded."""
    mean = tf.floor(tf.reduce_mean(tf.cast(grey(image), tf.float32)) + 0.5)
    return blend(mean, image, factor)


def brightness(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    """Blends with black."""
    return blend(tf.constant(0.0), image, factor)


def sharpness(image: tf.Tensor, factor: Scalar, rounded: bool = True) -> tf.Tensor:
    """Blends with the smoothed image: 3×3 ones with a 5 in the middle, over 13; the border keeps its values."""
    values = tf.cast(image, tf.float32)
    center = values[1:-1, 1:-1]
    # Sums of shifted images: several times faster than a convolution, and whole numbers, so that every device finds the same quotient.
    total = values[:-2] + values[1:-1] + values[2:]
    total = total[:, :-2] + total[:, 1:-1] + total[:, 2:] + 4.0 * center  # [H - 2, W - 2, 3]
    smooth = tf.floor((total + (6.5 if rounded else 0.5)) * (1.0 / 13.0))  # the halves keep off the edges between whole numbers
    return blend(values + tf.pad(smooth - center, _BORDER), values, factor)


def affine(image: tf.Tensor, a: Scalar, b: Scalar, c: Scalar, d: Scalar, e: Scalar, f: Scalar) -> tf.Tensor:
    """Output pixel (x, y) is the input pixel nearest to (a x + b y + c, d x + e y + f); whole numbers are pixel centres."""
    output = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.stack([[a, b, c, d, e, f, 0.0, 0.0]]),
        output_shape=tf.shape(image)[:2],
        fill_value=float(FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]
    return tf.ensure_shape(output, image.shape)


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
    return affine(image, 1.0, level, 0.0, 0.0, 1.0, 0.0)


def shear_y(image: tf.Tensor, level: Scalar) -> tf.Tensor:
    """Moves column x by ``level * x`` pixels up."""
    return affine(image, 1.0, 0.0, 0.0, level, 1.0, 0.0)


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
    rows, columns = tf.range(shape[0]), tf.range(shape[1])
    half_size = tf.cast(half_size, tf.int32)
    row_inside = tf.logical_and(rows >= center[0] - half_size, rows < center[0] + half_size)
    column_inside = tf.logical_and(columns >= center[1] - half_size, columns < center[1] + half_size)
    inside = tf.cast(row_inside, image.dtype)[:, tf.newaxis] * tf.repeat(tf.cast(column_inside, image.dtype), 3)  # [H, 3 W]
    return tf.reshape(_rows(image) * (1 - inside) + FILL * inside, shape)


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


def _release_color(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    return blend(tf.image.rgb_to_grayscale(image), image, factor)  # its luma may be one below PIL's


def _release_contrast(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    # The release sums the histogram's counts, not its levels: what it takes for the mean is the image's area / 256.
    shape = tf.shape(image)
    return blend(tf.minimum(shape[0] * shape[1] // 256, 255), image, factor)


def _within_half(translate: Callable[..., tf.Tensor], axis: int, image: tf.Tensor, pixels: Scalar) -> tf.Tensor:
    limit = tf.cast(tf.shape(image)[axis], tf.float32) / 2.0
    return translate(image, tf.clip_by_value(pixels, -limit, limit))


def _small_cutout(image: tf.Tensor, half_size: Scalar, center: tf.Tensor) -> tf.Tensor:
    return cutout(image, tf.minimum(half_size, tf.reduce_min(tf.shape(image)[:2]) // 4), center)


_MODE_OPS: dict[str, dict[str, Callable[..., tf.Tensor]]] = {
    "reference": {
        **OPS,
        "Color": _release_color,
        "Contrast": _release_contrast,
        "Sharpness": functools.partial(sharpness, rounded=False),
    },
    "monotone": {
        **OPS,
        "TranslateX": functools.partial(_within_half, translate_x, 1),
        "TranslateY": functools.partial(_within_half, translate_y, 0),
        "Cutout": _small_cutout,
    },
}


def arguments(magnitude: float, mode: str, *, translate_const: float = 100.0, cutout_const: float = 40.0) -> dict[str, tuple[float, ...]]:
    """What each operation gets at magnitude M: the module's table as numbers.

    Returns:
        For each name: () for an operation without argument, one value, or two of which one is drawn with probability 0.5.
    """
    level = magnitude / 10.0
    moves = {"ShearX": 0.3 * level, "ShearY": 0.3 * level, "TranslateX": translate_const * level, "TranslateY": translate_const * level}
    factors: tuple[float, ...]
    if mode == "reference":
        moves["Rotate"] = 30.0 * level
        factors = (level * 1.8 + 0.1,)
        bits = int(level * 4)
        bits = bits if 1 <= bits <= 8 else 1  # a shift below 0 wraps in uint8, and one above 7 counts as 7
        threshold = int(level * 256) % 256
        addition = int(level * 110)
    else:
        moves["Rotate"] = min(30.0 * level, 180.0)
        factors = (1.0 + 0.9 * level, max(1.0 - 0.9 * level, 0.1))
        bits = max(8 - int(level * 4), 1)
        threshold = max(256 - int(level * 256), 0)
        addition = min(int(level * 110), 128)
    return {
        **{name: () for name in ("AutoContrast", "Equalize", "Invert")},
        **{name: (value, -value) for name, value in moves.items()},
        **{name: factors for name in ("Color", "Contrast", "Brightness", "Sharpness")},
        "Posterize": (bits,),
        "Solarize": (threshold,),
        "SolarizeAdd": (addition,),
        "Cutout": (int(level * cutout_const),),
    }


@dataclasses.dataclass(frozen=True)
class Table:
    """Which operations a recipe draws from, and how likely one that was drawn is applied.

    Attributes:
        ops: names from ``OPS``.
        probability: range from which one probability is drawn for each image; every operation drawn for it is applied with that one.
    """

    ops: tuple[str, ...]
    probability: tuple[float, float] = (1.0, 1.0)


TABLES = {
    "noisy_student": Table(tuple(OPS)),
    "meta_pseudo_labels": Table(tuple(name for name in OPS if name != "SolarizeAdd"), (0.2, 0.8)),
}
"""The recipes' tables. Noisy Student's release draws a probability too, but never uses it."""


def check(num_layers: int, magnitude: float, ops: Sequence[str], mode: str, table: str = "noisy_student") -> None:
    """Raises InputError for settings that ``rand_augment`` cannot follow."""
    if table not in TABLES:
        raise InputError(f"randaugment_table is {table!r}; it must be one of {', '.join(TABLES)}")
    unknown = [name for name in ops if name not in TABLES[table].ops]
    if unknown:
        raise InputError(f"randaugment_ops: no operation {', '.join(unknown)} in {table}; there are {', '.join(TABLES[table].ops)}")
    if mode not in MODES:
        raise InputError(f"randaugment_mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if num_layers < 0 or magnitude < 0:
        raise InputError(f"randaugment_layers is {num_layers} and randaugment_magnitude {magnitude}; neither may be negative")


def switch(index: tf.Tensor, branches: Sequence[Callable[..., tf.Tensor]], image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    """``branches[index](image, draw)``; the others cost nothing.

    In a graph ``tf.switch_case`` would be spread out into the operations of all branches, and each of them is visited to learn that
    it has nothing to do: for 16×16 pixels that takes as long as the work itself. The functional form calls one branch.
    """
    if len(branches) == 1:
        return branches[0](image, draw)
    if tf.executing_eagerly():
        return branches[int(index)](image, draw)
    arguments = [tf.TensorSpec(image.shape, image.dtype), tf.TensorSpec(draw.shape, draw.dtype)]
    functions = [tf.function(branch, autograph=False).get_concrete_function(*arguments) for branch in branches]
    output = tf.raw_ops.StatelessCase(branch_index=index, input=[image, draw], Tout=[image.dtype], branches=functions)[0]
    return tf.ensure_shape(output, image.shape)


def operation(name: str, magnitude: float, mode: str, translate_const: float, cutout_const: float) -> Callable[..., tf.Tensor]:
    """``(image, draw) -> image``: one operation at one magnitude.

    ``draw`` is float32 [4] in [0, 1): its second value chooses the argument, where there are two, its last two are Cutout's centre.
    """
    function = _MODE_OPS[mode][name]
    values = arguments(magnitude, mode, translate_const=translate_const, cutout_const=cutout_const)[name]

    def apply(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        if not values:
            return function(image) if mode == "reference" or magnitude > 0 else image
        argument: Scalar = values[0]
        if len(values) == 2:
            argument = tf.where(draw[1] < 0.5, *values)
        return function(image, argument, draw[2:]) if name == "Cutout" else function(image, argument)

    return apply


def rand_augment(
    image: tf.Tensor,
    seed: tf.Tensor,
    num_layers: int,
    magnitude: float,
    *,
    table: str = "noisy_student",
    ops: Sequence[str] = (),
    mode: str = "reference",
    translate_const: float = 100.0,
    cutout_const: float = 40.0,
) -> tf.Tensor:
    """Draws ``num_layers`` operations uniformly and applies them at one magnitude.

    Args:
        image: uint8 [H, W, 3]; H and W may be unknown while a graph is built. At least 3×3 pixels.
        seed: int32 or int64 [2]; the same seed gives the same result.
        num_layers: N ≥ 0.
        magnitude: M ≥ 0. The papers use 5 to 28.
        table: of ``TABLES``.
        ops: names from the table; empty for all of it.
        mode: "reference" or "monotone", see the module.
        translate_const: pixels of TranslateX and TranslateY at M = 10.
        cutout_const: pixels of Cutout's half side at M = 10.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: an unknown table, operation or mode, a negative number of layers or magnitude.
    """
    check(num_layers, magnitude, ops, mode, table)
    if num_layers == 0:
        return image
    names = tuple(ops) or TABLES[table].ops
    branches = [operation(name, magnitude, mode, translate_const, cutout_const) for name in names]
    # One draw for everything: columns are the operation, which of its two arguments, Cutout's row and column.
    draws = tf.random.stateless_uniform([num_layers, 4], seed)
    numbers = tf.cast(draws[:, 0] * len(names), tf.int32)  # (N,)
    low, high = TABLES[table].probability
    if low < 1:
        chances = tf.random.stateless_uniform([num_layers + 1], tf.random.split(seed, 2)[1])
        applied = chances[1:] < low + (high - low) * chances[0]
        numbers = tf.where(applied, numbers, len(names))
        branches.append(lambda image, _: image)
    for layer in range(num_layers):
        image = switch(numbers[layer], branches, image, draws[layer])
    return image
