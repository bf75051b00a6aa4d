"""Applies the 15 common corruptions of Hendrycks and Dietterich 2019 at five severities.

They apply to images of any data set. Two tables of severities are published: one for images of 224
pixels (ImageNet-C), and one for 32 pixels (CIFAR-10-C). `corrupt` takes the second table where the
short side is at most `SMALL`. Everything random comes from the generator that is passed in.

The functions use numpy, scipy and Pillow. The one maintained library (imagecorruptions-imaug) knows
the table for 224 pixels only, refuses images below 32, draws from numpy's global generator, and
needs numba. `scripts/compare_with_peers.py` compares these functions with imagecorruptions.

Three things differ from the release on purpose:

- Frost is grown instead of cut from five photographs.
- Motion blur is the sum of shifted images that ImageMagick's motion blur stands for.
- Lengths of elastic_transform are fractions of the image's own side. The release takes fractions of
  244 pixels for images of 224.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
from scipy import ndimage

from evaluation import blur, weather
from evaluation.robustness import CORRUPTIONS

SMALL = 64
"""Largest short side, in pixels, of an image that takes the severities of CIFAR-10-C."""

_Corruption = Callable[[np.ndarray, tuple, np.random.Generator], np.ndarray]


def corrupt(
    image: np.ndarray, corruption: str, severity: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns a corrupted copy of an image.

    Args:
      image: uint8 [H, W, 3], H and W at least 32.
      corruption: one of `robustness.CORRUPTIONS`.
      severity: 1 to 5.
      rng: source of its randomness.

    Returns:
      uint8 [H, W, 3].
    """
    if (
        image.ndim != 3
        or image.shape[2] != 3
        or image.dtype != np.uint8
        or min(image.shape[:2]) < 32
    ):
        raise ValueError(
            f"need uint8 [H, W, 3] of at least 32 pixels a side; got {image.dtype} {image.shape}"
        )
    if not 1 <= severity <= 5:
        raise ValueError(f"severity is {severity}; it must be 1 to 5")
    function, large, small = _TABLE[corruption]
    parameters = (small if min(image.shape[:2]) <= SMALL else large)[severity - 1]
    result = function(
        image.astype(np.float64) / 255,
        parameters if isinstance(parameters, tuple) else (parameters,),
        rng,
    )
    return (np.clip(result, 0, 1) * 255).astype(np.uint8)  # truncated, as in the release


# Noise. x: float64 [H, W, 3] in 0–1.


def _gaussian_noise(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(scale=c[0], size=x.shape)


def _shot_noise(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Draws photons: a Poisson count with mean c for full white."""
    return rng.poisson(x * c[0]) / c[0]


def _impulse_noise(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Sets a share c of all values to 0 or 1."""
    drawn = rng.random(x.shape)
    return np.where(drawn < c[0] / 2, 0.0, np.where(drawn < c[0], 1.0, x))


# Digital


def _contrast(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    del rng
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * c[0] + mean


def _elastic_transform(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Applies an affine map of three moved points, then a field of smooth displacements.

    α, σ and the points' reach are fractions of the side.
    """
    height, width = x.shape[:2]
    alpha, sigma, reach = (part * min(height, width) for part in c)
    third = min(height, width) // 3
    center = np.array([height // 2, width // 2], np.float64)
    points = center + third * np.array([[1, 1], [1, -1], [-1, -1]])  # (3, 2) row, column
    moved = points + rng.uniform(-reach, reach, points.shape)
    backwards = np.linalg.solve(
        np.c_[moved, np.ones(3)], points
    )  # (3, 2) from a place in the result to one in x
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    places = np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ backwards  # (H, W, 2)
    x = _sample(x, places, "mirror")
    smooth = [
        alpha
        * ndimage.gaussian_filter(
            rng.uniform(-1, 1, (height, width)), sigma, mode="reflect", truncate=3
        )
        for _ in range(2)
    ]
    return _sample(x, np.stack([rows + smooth[0], columns + smooth[1]], axis=-1), "reflect")


def _sample(x: np.ndarray, places: np.ndarray, mode: str) -> np.ndarray:
    """Samples x [H, W, C] at `places` [H', W', 2] (row, column), bilinearly."""
    channels = [
        ndimage.map_coordinates(x[..., i], [places[..., 0], places[..., 1]], order=1, mode=mode)
        for i in range(x.shape[2])
    ]
    return np.stack(channels, axis=-1)


def _through_pillow(
    x: np.ndarray, change: Callable[[PIL.Image.Image], PIL.Image.Image]
) -> np.ndarray:
    return (
        np.asarray(change(PIL.Image.fromarray(np.rint(x * 255).astype(np.uint8)))).astype(
            np.float64
        )
        / 255
        + 1e-9
    )


def _pixelate(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    del rng
    height, width = x.shape[:2]
    small = (int(width * c[0]), int(height * c[0]))
    return _through_pillow(
        x,
        lambda image: image.resize(small, PIL.Image.Resampling.BOX).resize(
            (width, height), PIL.Image.Resampling.BOX
        ),
    )


def _jpeg_compression(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    del rng

    def compress(image: PIL.Image.Image) -> PIL.Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=c[0])
        return PIL.Image.open(buffer)

    return _through_pillow(x, compress)


# Corruption -> (function, its parameters at severities 1 to 5 for ImageNet-C, the same for
# CIFAR-10-C).
_TABLE: dict[str, tuple[_Corruption, tuple, tuple]] = {
    "gaussian_noise": (
        _gaussian_noise,
        (0.08, 0.12, 0.18, 0.26, 0.38),
        (0.04, 0.06, 0.08, 0.09, 0.10),
    ),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": (
        _impulse_noise,
        (0.03, 0.06, 0.09, 0.17, 0.27),
        (0.01, 0.02, 0.03, 0.05, 0.07),
    ),
    "defocus_blur": (
        blur.defocus_blur,  # radius, softness of the edge
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (
        blur.glass_blur,  # sigma, reach, rounds
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (
        blur.motion_blur,  # radius, sigma
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": (
        blur.zoom_blur,  # stop, step
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": (
        weather.snow,  # mean, deviation, zoom, threshold, radius, sigma, kept
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (
        weather.frost,  # kept, ice
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": (
        weather.fog,  # amount, decay
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": (weather.brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _elastic_transform,  # alpha, sigma, reach of the points
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
assert tuple(_TABLE) == CORRUPTIONS
