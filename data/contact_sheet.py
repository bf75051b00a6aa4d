"""One picture of every operation of RandAugment, at the papers' magnitudes, in both modes.

./run_tool.sh contact_sheet docs/randaugment.jpg
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, before TensorFlow is imported)

# isort: split

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import tensorflow as tf
from sklearn.datasets import load_sample_image

from cli.errors import InputError
from cli.files import atomic_path
from data.image_ops import OPS
from data.randaugment import operation

# Side of a tile in pixels. The image has 224, the size that the ImageNet recipes' constants are
# for.
SIDE = 112
ROWS = (
    ("reference", 9),
    ("reference", 18),
    ("reference", 27),
    ("monotone", 9),
    ("monotone", 18),
    ("monotone", 27),
)
MARGIN, HEAD = 100, 16


def photograph() -> np.ndarray:
    """Returns the middle of scikit-learn's flower, uint8 [224, 224, 3]."""
    image = PIL.Image.fromarray(load_sample_image("flower.jpg"))
    width, height = image.size
    left = (width - height) // 2
    return np.asarray(
        image.crop((left, 0, left + height, height)).resize(
            (224, 224), PIL.Image.Resampling.BICUBIC
        )
    )


def tiles(image: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (row, column, uint8 [224, 224, 3]) of each operation at each of `ROWS`.

    Of two arguments the first is used; Cutout's square is in the middle.
    """
    draw = tf.constant([0.0, 0.0, 0.5, 0.5])
    for row, (mode, magnitude) in enumerate(ROWS):
        for column, name in enumerate(OPS):
            yield (
                row,
                column,
                operation(name, magnitude, mode, 100.0, 40.0)(tf.constant(image), draw).numpy(),
            )


def sheet() -> PIL.Image.Image:
    """Draws the picture."""
    result = PIL.Image.new("RGB", (MARGIN + SIDE * len(OPS), HEAD + SIDE * len(ROWS)), "white")
    pen = PIL.ImageDraw.Draw(result)
    for column, name in enumerate(OPS):
        pen.text((MARGIN + SIDE * column + 2, 2), name, "black")
    for row, (mode, magnitude) in enumerate(ROWS):
        pen.text((2, HEAD + SIDE * row + 2), f"{mode}\nM = {magnitude}", "black")
    for row, column, tile in tiles(photograph()):
        small = PIL.Image.fromarray(tile).resize((SIDE - 2, SIDE - 2), PIL.Image.Resampling.BOX)
        result.paste(small, (MARGIN + SIDE * column, HEAD + SIDE * row))
    return result


def main(arguments: Sequence[str]) -> None:
    """Writes the picture to the one argument. Raises InputError."""
    if len(arguments) != 1 or not arguments[0].endswith(".jpg"):
        raise InputError(
            "name the picture to write: ./run_tool.sh contact_sheet docs/randaugment.jpg"
        )
    with atomic_path(arguments[0]) as temporary:
        sheet().save(temporary, "jpeg", quality=85)
