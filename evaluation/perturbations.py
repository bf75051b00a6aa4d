"""Makes sequences of slightly changing images, as in ImageNet-P and CIFAR-10-P.

They can be made of images of any data set. There are five perturbations: translate, rotate, scale,
brightness, gaussian_noise. Angles, factors and offsets are those of CIFAR-10-P. Distances are
fractions of the image's side, which is 32 pixels there. The noise of images above `SMALL` is three
times as strong. What comes into the picture from outside is black, as in the release.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from evaluation.corruptions import SMALL
from evaluation.weather import brighten

FRAMES: dict[str, int] = {
    "translate": 16,
    "rotate": 31,
    "scale": 31,
    "brightness": 31,
    "gaussian_noise": 31,
}
"""Perturbation -> length of its sequences."""


def sequence(image: np.ndarray, perturbation: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the frames of one image, uint8 [H, W, 3] each.

    Args:
      image: uint8 [H, W, 3].
      perturbation: one of `FRAMES`.
      rng: source of the noise; frame 0 of the noise is the image itself.
    """
    x = image.astype(np.float64) / 255
    return [
        (np.clip(_FRAME[perturbation](x, i, rng), 0, 1) * 255 + 1e-6).astype(np.uint8)
        for i in range(FRAMES[perturbation])
    ]


def _moved(x: np.ndarray, angle: float = 0.0, scale: float = 1.0, right: float = 0.0) -> np.ndarray:
    """Returns `x` [H, W, 3] turned, enlarged, and then moved.

    `angle` is in degrees, clockwise. `scale` enlarges around the middle. `right` is the distance in
    pixels.
    """
    center = (np.array(x.shape[:2]) - 1) / 2
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # A place in the result (row, column), seen from the middle, comes from R · place / scale.
    backwards = np.array([[cosine, -sine], [sine, cosine]]) / scale
    offset = center - backwards @ (center + np.array([0.0, right]))
    channels = [
        ndimage.affine_transform(x[..., i], backwards, offset, order=1, mode="constant")
        for i in range(3)
    ]
    return np.stack(channels, axis=-1)


def _translate(x: np.ndarray, i: int, rng: np.random.Generator) -> np.ndarray:
    del rng
    return _moved(x, right=round((i - 7) / 32 * x.shape[1]))


def _rotate(x: np.ndarray, i: int, rng: np.random.Generator) -> np.ndarray:
    del rng
    return _moved(x, angle=i - 15)


def _scale(x: np.ndarray, i: int, rng: np.random.Generator) -> np.ndarray:
    del rng
    return _moved(x, scale=0.7 + 0.02 * i)


def _brightness(x: np.ndarray, i: int, rng: np.random.Generator) -> np.ndarray:
    del rng
    return brighten(x, 0.015 * (i - 15))


def _gaussian_noise(x: np.ndarray, i: int, rng: np.random.Generator) -> np.ndarray:
    deviation = 0.02 if min(x.shape[:2]) <= SMALL else 0.06
    return x if i == 0 else x + rng.normal(scale=deviation, size=x.shape)


_FRAME: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "translate": _translate,
    "rotate": _rotate,
    "scale": _scale,
    "brightness": _brightness,
    "gaussian_noise": _gaussian_noise,
}
assert set(_FRAME) == set(FRAMES)
