"""Blurs images as Hendrycks and Dietterich 2019 do: four of the corruptions of `corruptions`.

x is float64 [H, W, 3] in 0–1, c the parameters of a severity. Everything random comes from `rng`.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs each channel with a Gaussian; the border repeats its outermost pixels."""
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def _disk(radius: float, alias_blur: float) -> np.ndarray:
    """Returns a disk with a softened edge, [2r + 1, 2r + 1], that sums to about 1.

    r is `radius`, and at least 8.
    """
    reach = np.arange(-8, 9) if radius <= 8 else np.arange(-radius, radius + 1)
    disk = (reach[:, None] ** 2 + reach[None] ** 2 <= radius**2).astype(np.float64)
    half = 1 if radius <= 8 else 2
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * alias_blur**2))
    weights /= weights.sum()
    softened = ndimage.correlate1d(disk / disk.sum(), weights, axis=0, mode="mirror")
    return ndimage.correlate1d(softened, weights, axis=1, mode="mirror")


def defocus_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blurs by a disk, as a lens out of focus does."""
    del rng
    return ndimage.correlate(x, _disk(*c)[:, :, None], mode="mirror")


def glass_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blurs, moves each pixel to a place nearby, blurs again.

    The release swaps two views of one array, so the second pixel keeps its value. Each pixel
    thereby takes the value of a pixel up to `reach` away.
    """
    sigma, reach, rounds = c
    x = np.floor(_blur(x, sigma) * 255) / 255
    height, width = x.shape[:2]
    flat = x.reshape(-1, 3)
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    for _ in range(rounds):
        moves = rng.integers(-reach, reach, (len(rows), len(columns), 2))
        targets = (rows[:, None] * width + columns[None]).ravel()
        sources = ((rows[:, None] + moves[..., 1]) * width + columns[None] + moves[..., 0]).ravel()
        # Moves run one after another, since a pixel may pass on a value that it has just received.
        # The loop moves places only; the pixels move once, after it.
        origin = list(range(height * width))
        for target, source in zip(targets.tolist(), sources.tolist()):
            origin[target] = origin[source]
        flat = flat[origin]
    return _blur(flat.reshape(x.shape), sigma)


def along(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blurs `x` [H, W, …] by motion along `angle` (degrees).

    The result is a sum of `x` moved step by step, with weights that fall off as a Gaussian.
    """
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    padded = np.pad(x, [(width, width), (width, width), *[(0, 0)] * (x.ndim - 2)], mode="edge")
    result = np.zeros_like(x)
    for step, weight in enumerate(weights):
        down, right = -math.ceil(step * sine - 0.5), -math.ceil(step * cosine - 0.5)
        if abs(down) >= x.shape[0] or abs(right) >= x.shape[1]:
            break
        result += (
            weight
            * padded[
                width - down : width - down + x.shape[0], width - right : width - right + x.shape[1]
            ]
        )
    return result


def motion_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Blurs by motion along an angle that is drawn from -45 to 45 degrees."""
    return along(x, c[0], c[1], rng.uniform(-45, 45))


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Returns the middle of `x` [H, W, C], enlarged bilinearly by `factor` to [H, W, C]."""
    height, width = x.shape[:2]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    enlarged = ndimage.zoom(
        x[top : top + rows, left : left + columns], (factor, factor, 1), order=1
    )
    # Rounding may leave the enlarged image a pixel too short or too long.
    top, left = max(enlarged.shape[0] - height, 0) // 2, max(enlarged.shape[1] - width, 0) // 2
    cut = enlarged[top : top + height, left : left + width]
    return np.pad(cut, [(0, height - cut.shape[0]), (0, width - cut.shape[1]), (0, 0)], mode="edge")


def zoom_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Returns the mean of the image and its enlargements by 1, 1 + step, … below `stop`."""
    del rng
    stop, step = c
    factors = np.arange(1, stop, step)
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)
