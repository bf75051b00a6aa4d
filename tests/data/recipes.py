"""Small recipes and images for the tests of this folder."""

from __future__ import annotations

import io
from pathlib import Path

import ml_collections
import numpy as np
import PIL.Image

from configs.noisy_student import base


def config(source: str, seed: int = 0, **data) -> ml_collections.ConfigDict:
    """Returns the shared recipe's seed and section `data`, with some values changed."""
    recipe = base.get_config()
    result = ml_collections.ConfigDict({"seed": seed, "data": recipe.data.to_dict()})
    with result.data.ignore_type():
        result.data.update({"source": source, **data})
    return result


def pixels(shade: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    """Returns random pixels, a function of `shade`, uint8 [*size, 3]."""
    return np.random.Generator(np.random.PCG64([shade])).integers(
        0, 256, (*size, 3), dtype=np.uint8
    )


def encode(image: np.ndarray, ending: str = "png", **options) -> bytes:
    """Returns an image file as bytes."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, {"jpg": "jpeg"}.get(ending, ending), **options)
    return buffer.getvalue()


def save(path: Path, shade: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """Writes an image file of the type in its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels(shade, size)).save(path)
