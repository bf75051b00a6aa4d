"""RandAugment as a function of a seed: N operations, drawn uniformly, at one fixed magnitude M.

Source: Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search
space", section 3. The list of 16 operations and the meaning of M are those of the Noisy Student
release. With L = M / 10, the arguments are:

| operation                    | ``reference`` (the release)     | ``monotone``                    |
|------------------------------|---------------------------------|---------------------------------|
| AutoContrast, Equalize,      | none                            | none; left out at M = 0         |
| Invert                       |                                 |                                 |
| Rotate, degrees              | ±30 L                           | ±min(30 L, 180)                 |
| ShearX, ShearY               | ±0.3 L                          | ±0.3 L                          |
| TranslateX, TranslateY,      | ±C L                            | ±C L, at most half of the side  |
| pixels                       |                                 |                                 |
| Color, Contrast, Brightness, | 1.8 L + 0.1 (identity at M = 5) | 1 + 0.9 L or max(1 − 0.9 L,     |
| Sharpness: blend factor      |                                 | 0.1)                            |
| Posterize, bits kept         | int(4 L), weaker as M grows; 0  | max(8 − int(4 L), 1)            |
|                              | bits and more than 8 leave only |                                 |
|                              | 0 and 128                       |                                 |
| Solarize, inverted from      | int(256 L) mod 256              | max(256 − int(256 L), 0)        |
| SolarizeAdd, added below 128 | int(110 L)                      | min(int(110 L), 128)            |
| Cutout, half of the square's | int(c L)                        | int(c L), at most a quarter of  |
| side                         |                                 | the short side                  |

"±" and "or": one of the two with probability 0.5. C is ``translate_const``, c is ``cutout_const``.

``reference`` repeats the release's arithmetic, so that its magnitudes mean what they meant there.
That includes the wrapped Solarize threshold, the Posterize shift beyond its range, the "mean" of
Contrast that is the image's area / 256, and casts that truncate.

One operation is exact that was not: Sharpness divides whole sums. The release's float convolution
depends on the machine. It may fall one gray level short if the quotient is an integer, and the
blend multiplies that by |1 − factor|: up to 4 levels at M = 27.

``monotone`` is what a reader of the paper expects: nothing happens at M = 0, and a larger M never
does less. Its operations are `data.image_ops`' own, which agree with PIL's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Callable

import tensorflow as tf

from cli import settings
from cli.errors import InputError
from data.image_ops import (
    OPS,
    Scalar,
    blend,
    cutout,
    sharpness,
    three_times,
    translate_x,
    translate_y,
)
from data.settings import PREPROCESSING


def _release_color(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    # The luma may be one below PIL's.
    return blend(three_times(tf.image.rgb_to_grayscale(image)), image, factor)


def _release_contrast(image: tf.Tensor, factor: Scalar) -> tf.Tensor:
    # The release sums the histogram's counts, not its levels. Its mean is therefore the image's
    # area / 256.
    shape = tf.shape(image)
    return blend(tf.minimum(shape[0] * shape[1] // 256, 255), image, factor)


def _within_half(
    translate: Callable[..., tf.Tensor], axis: int, image: tf.Tensor, pixels: Scalar
) -> tf.Tensor:
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


def arguments(
    magnitude: float, mode: str, *, translate_const: float = 100.0, cutout_const: float = 40.0
) -> dict[str, tuple[float, ...]]:
    """Returns what each operation gets at magnitude M: the module's table as numbers.

    Returns:
        For each name: () for an operation without argument, one value, or two values. One of the
          two is drawn with probability 0.5.
    """
    level = magnitude / 10.0
    moves = {
        "ShearX": 0.3 * level,
        "ShearY": 0.3 * level,
        "TranslateX": translate_const * level,
        "TranslateY": translate_const * level,
    }
    factors: tuple[float, ...]
    if mode == "reference":
        moves["Rotate"] = 30.0 * level
        factors = (level * 1.8 + 0.1,)
        bits = int(level * 4)
        bits = (
            bits if 1 <= bits <= 8 else 1
        )  # a shift below 0 wraps in uint8, and one above 7 counts as 7
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
    """The operations that a recipe draws from, and the probability of applying a drawn one.

    Attributes:
        ops: names from ``OPS``.
        probability: range from which one probability is drawn for each image. Every operation drawn
          for the image is applied with that probability.
    """

    ops: tuple[str, ...]
    probability: tuple[float, float] = (1.0, 1.0)


TABLES = {
    "noisy_student": Table(tuple(OPS)),
    "meta_pseudo_labels": Table(tuple(name for name in OPS if name != "SolarizeAdd"), (0.2, 0.8)),
}
"""The recipes' tables. Noisy Student's release draws a probability too, but never uses it."""


def check_operations(
    num_layers: int, magnitude: float, ops: Sequence[str], mode: str, table: str = "noisy_student"
) -> None:
    """Raises InputError for settings that ``rand_augment`` cannot follow."""
    values = {
        "table": table,
        "layers": num_layers,
        "magnitude": magnitude,
        "ops": ops,
        "mode": mode,
    }
    values = {f"randaugment_{name}": value for name, value in values.items()}
    settings.check_settings(values, PREPROCESSING, "preprocessing")
    if table not in TABLES:
        raise InputError(f"randaugment_table is {table!r}; it must be one of {', '.join(TABLES)}")
    require_operations(ops, table)


def require_operations(ops: Sequence[str], table: str) -> None:
    """Raises InputError for a name in `ops` that a table of ``TABLES`` lacks."""
    known = TABLES[table].ops
    unknown = ", ".join(name for name in ops if name not in known)
    if unknown:
        raise InputError(
            f"preprocessing.randaugment_ops: the table {table} has no operation {unknown}; known: "
            f"{', '.join(known)}"
        )


def switch(
    branches: Sequence[Callable[..., tf.Tensor]], inputs: Sequence[tf.Tensor], output: tf.TensorSpec
) -> Callable[..., tf.Tensor]:
    """Returns a function that maps an index and values to ``branches[index](*values)``.

    The values are like ``inputs``, the result is like ``output``.

    In a graph ``tf.switch_case`` would be spread out into the operations of all branches. Each
    operation is then visited to learn that it has nothing to do: for 16×16 pixels that takes as
    long as the work itself. The functional form calls one branch.
    """
    if tf.executing_eagerly():
        return lambda index, *values: branches[int(index)](*values)
    specs = [tf.TensorSpec(value.shape, value.dtype) for value in inputs]
    functions = [
        tf.function(branch, autograph=False).get_concrete_function(*specs) for branch in branches
    ]

    def call(index: tf.Tensor, *values: tf.Tensor) -> tf.Tensor:
        result = tf.raw_ops.StatelessCase(
            branch_index=index, input=list(values), Tout=[output.dtype], branches=functions
        )[0]
        return tf.ensure_shape(result, output.shape)

    return call


def uniform(shape: Sequence[int], seed: tf.Tensor) -> tf.Tensor:
    """Draws the float32 in [0, 1) that ``tf.random.stateless_uniform`` draws on a CPU.

    They are the same on every device and under XLA, which by itself makes others of the same bits.
    """
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")
    return tf.cast(bits & tf.constant(2**23 - 1, tf.uint32), tf.float32) * 2.0**-23


def operation(
    name: str, magnitude: float, mode: str, translate_const: float, cutout_const: float
) -> Callable[..., tf.Tensor]:
    """Returns ``(image, draw) -> image``: one operation at one magnitude.

    ``draw`` is float32 [4] in [0, 1). Its second value chooses the argument, if there are two. Its
    last two are Cutout's center.
    """
    function = _MODE_OPS[mode][name]
    values = arguments(magnitude, mode, translate_const=translate_const, cutout_const=cutout_const)[
        name
    ]

    def apply(image: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        if not values:
            return function(image) if mode == "reference" or magnitude > 0 else image
        argument: Scalar = values[0]
        if len(values) == 2:
            argument = tf.where(draw[1] < 0.5, *values)
        return (
            function(image, argument, draw[2:]) if name == "Cutout" else function(image, argument)
        )

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
        table: a name from ``TABLES``.
        ops: names from the table; empty for all of it.
        mode: "reference" or "monotone", see the module.
        translate_const: pixels of TranslateX and TranslateY at M = 10.
        cutout_const: pixels of Cutout's half side at M = 10.

    Returns:
        uint8 [H, W, 3].

    Raises:
        InputError: an unknown table, operation or mode, a negative number of layers or magnitude.
    """
    check_operations(num_layers, magnitude, ops, mode, table)
    if num_layers == 0:
        return image
    names = tuple(ops) or TABLES[table].ops
    branches = [operation(name, magnitude, mode, translate_const, cutout_const) for name in names]
    # One draw for everything. Columns: the operation, which of its two arguments, Cutout's row and
    # column.
    draws = uniform([num_layers, 4], seed)
    numbers = tf.cast(draws[:, 0] * len(names), tf.int32)  # (N,)
    low, high = TABLES[table].probability
    if low < 1:
        chances = uniform([num_layers + 1], tf.random.split(seed, 2, alg="philox")[1])
        applied = chances[1:] < low + (high - low) * chances[0]
        numbers = tf.where(applied, numbers, len(names))
        branches.append(lambda image, draw: image)
    apply = switch(
        branches, (image, draws[0]), tf.TensorSpec(image.shape, image.dtype)
    )  # one set of functions for all layers
    for layer in range(num_layers):
        image = apply(numbers[layer], image, draws[layer])
    return image
