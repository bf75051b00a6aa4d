"""Prepares decoded pixels for an exported model, in NumPy alone.

    image = prepare(pixels, json.load(open("preprocessing.json")))
    session.run(["probabilities"], {"images": image[None]})    # onnxruntime, model.onnx

An export has this file and `preprocessing.json` in `assets.extra/`. License: Apache-2.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def prepare(pixels: np.ndarray, preprocessing: dict[str, Any]) -> np.ndarray:
    """Crops and resizes one image as the export's graph does.

    Args:
      pixels: RGB, uint8 or float32 [H, W, 3] in 0–255. Transparency is composed over white.
      preprocessing: content of `preprocessing.json`.

    Returns:
      float32 [S, S, 3]. Values may pass 0 and 255 a little, and are not clipped.
    """
    size, crop = preprocessing["image_size"], preprocessing["crop"]
    image = np.asarray(pixels, np.float32)
    if crop["kind"] == "central_square":
        height, width = image.shape[:2]
        side = max(min(height, width) * size // (size + crop["padding"]), 1)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        image = image[top : top + side, left : left + side]
    return _resize(_resize(image, size).transpose(1, 0, 2), size).transpose(1, 0, 2)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Bicubic along the first axis; pixel corners, a = -0.75, no antialiasing, edges repeated."""
    length = image.shape[0]
    at = np.arange(size, dtype=np.float32) * np.float32(length / size)
    first = np.floor(at).astype(int)
    t = np.rint((at - first) * 1024) / 1024  # TensorFlow has its weights in a table of 1024 steps
    near, far = (
        (lambda x: (1.25 * x - 2.25) * x * x + 1),
        (lambda x: ((-0.75 * x + 3.75) * x - 6) * x + 3),
    )
    result = np.zeros((size, *image.shape[1:]), np.float32)
    for offset, weight in ((-1, far(1 + t)), (0, near(t)), (1, near(1 - t)), (2, far(2 - t))):
        result += weight[:, None, None] * image[np.clip(first + offset, 0, length - 1)]
    return result
