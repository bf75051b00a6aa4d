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
import math
from collections.abc import Callable

import numpy as np
import PIL.Image
from scipy import ndimage

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


# Blur


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


def _defocus_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    del rng
    return ndimage.correlate(x, _disk(*c)[:, :, None], mode="mirror")


def _glass_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
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


def _along(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
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


def _motion_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    return _along(x, c[0], c[1], rng.uniform(-45, 45))


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
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


def _zoom_blur(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Returns the mean of the image and its enlargements by 1, 1 + step, … below `stop`."""
    del rng
    stop, step = c
    factors = np.arange(1, stop, step)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


# Weather


def _plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a cloudy height map in 0–1, [size, size]: diamond-square on a torus.

    `size` is a power of 2. The random part of a new point is uniform in ±w² around the mean of four
    neighbours. Each step halves the grid and divides w by `decay`, so the random part by `decay`².
    """
    heights = np.zeros([size, size])
    step, wobble = size, 100.0

    def around(total: np.ndarray) -> np.ndarray:
        return total / 4 + wobble * rng.uniform(-wobble, wobble, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = around(rows + np.roll(rows, -1, axis=1))
        centers = heights[half::step, half::step]
        above_and_below = centers + np.roll(centers, 1, axis=0)
        heights[::step, half::step] = around(
            above_and_below + corners + np.roll(corners, -1, axis=1)
        )
        beside = centers + np.roll(centers, 1, axis=1)
        heights[half::step, ::step] = around(beside + corners + np.roll(corners, -1, axis=0))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def _power_of_2(x: np.ndarray) -> int:
    """Returns the size of a torus for `x`: the first power of 2 that is at least the short side.

    A torus of the size of the long side would need the square of that side in memory.
    """
    return 1 << (min(x.shape[:2]) - 1).bit_length()


def _cut(torus: np.ndarray, top: int, left: int, shape: tuple[int, ...]) -> np.ndarray:
    """Cuts a window [H, W], the first two sizes of `shape`; it wraps around as often as needed."""
    rows, columns = (
        np.arange(first, first + side) % len(torus) for first, side in zip((top, left), shape)
    )
    return torus[np.ix_(rows, columns)]


def _gray(x: np.ndarray) -> np.ndarray:
    """Returns the brightness as the eye sees it, [H, W, 1]."""
    return x @ np.array([[0.299], [0.587], [0.114]])


def _snow(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Adds snowflakes, and the same flakes turned by 180°, to a whitened image.

    Flakes are enlarged noise above a threshold, drawn out by the wind.
    """
    mean, deviation, zoom, threshold, radius, sigma, kept = c
    layer = _zoomed(rng.normal(mean, deviation, x.shape[:2])[..., None], zoom)[..., 0]
    layer[layer < threshold] = 0
    layer = np.floor(np.clip(layer, 0, 1) * 255) / 255
    layer = np.clip(_along(layer, int(radius), sigma, rng.uniform(-135, -45)), 0, 1)[..., None]
    x = kept * x + (1 - kept) * np.maximum(x, _gray(x) * 1.5 + 0.5)
    return x + layer + layer[::-1, ::-1]


def _frost(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Lays ice over the image: `kept` · image + `ice` · frost.

    The release cuts the frost out of photographs; this function grows it. The creases of cloudy
    maps become needles. A coarse map lets the needles stand closer at some places. Brightness,
    contrast and tint are about those of the photographs.
    """
    kept, ice = c
    size = 2 * _power_of_2(x)
    top, left = (
        int(rng.integers(size - side + 1 if side <= size else size)) for side in x.shape[:2]
    )
    needles = 1 - np.abs(2 * _cut(_plasma(size, 1.6, rng), top, left, x.shape) - 1)
    cover = _cut(_plasma(size, 2.5, rng), top, left, x.shape)
    texture = 0.35 * cover + 0.65 * needles**3
    texture = (texture - texture.mean()) / max(texture.std(), 1e-6)
    frost = np.clip(0.45 + 0.2 * texture, 0, 1)[..., None] * np.array([0.92, 1.0, 1.08])
    return kept * x + ice * np.clip(frost, 0, 1)


def _fog(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    amount, decay = c
    brightest = x.max()
    fog = _cut(_plasma(_power_of_2(x), decay, rng), 0, 0, x.shape)[..., None]
    return (x + amount * fog) * brightest / (brightest + amount)


def _brightness(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    del rng
    return brighten(x, c[0])


def brighten(x: np.ndarray, amount: float) -> np.ndarray:
    """Adds `amount` to V of HSV, the largest channel, keeping hue and saturation.

    All channels scale by V'/V; black turns gray.
    """
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + amount, 0, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


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
        _defocus_blur,  # radius, softness of the edge
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "glass_blur": (
        _glass_blur,  # sigma, reach, rounds
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": (
        _motion_blur,  # radius, sigma
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": (
        _zoom_blur,  # stop, step
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    ),
    "snow": (
        _snow,  # mean, deviation, zoom, threshold, radius, sigma, kept
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
        _frost,  # kept, ice
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    "fog": (
        _fog,  # amount, decay
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
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
