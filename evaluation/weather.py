"""Makes the weather of Hendrycks and Dietterich 2019: four of the corruptions of `corruptions`.

x is float64 [H, W, 3] in 0–1, c the parameters of a severity. Everything random comes from `rng`.
"""

from __future__ import annotations

import numpy as np

from evaluation.blur import along, zoomed


def plasma(size: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """Returns a cloudy height map in 0–1, [size, size]: diamond-square on a torus.

    `size` is a power of 2. The random part of a new point is uniform in ±w² around the mean of four
    neighbors. Each step halves the grid and divides w by `decay`, so the random part by `decay`².
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


def snow(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Adds snowflakes, and the same flakes turned by 180°, to a whitened image.

    Flakes are enlarged noise above a threshold, drawn out by the wind.
    """
    mean, deviation, zoom, threshold, radius, sigma, kept = c
    layer = zoomed(rng.normal(mean, deviation, x.shape[:2])[..., None], zoom)[..., 0]
    layer[layer < threshold] = 0
    layer = np.floor(np.clip(layer, 0, 1) * 255) / 255
    layer = np.clip(along(layer, int(radius), sigma, rng.uniform(-135, -45)), 0, 1)[..., None]
    x = kept * x + (1 - kept) * np.maximum(x, _gray(x) * 1.5 + 0.5)
    return x + layer + layer[::-1, ::-1]


def frost(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
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
    needles = 1 - np.abs(2 * _cut(plasma(size, 1.6, rng), top, left, x.shape) - 1)
    cover = _cut(plasma(size, 2.5, rng), top, left, x.shape)
    texture = 0.35 * cover + 0.65 * needles**3
    texture = (texture - texture.mean()) / max(texture.std(), 1e-6)
    frost = np.clip(0.45 + 0.2 * texture, 0, 1)[..., None] * np.array([0.92, 1.0, 1.08])
    return kept * x + ice * np.clip(frost, 0, 1)


def fog(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Adds a cloudy map, and scales the sum to the image's own brightest value."""
    amount, decay = c
    brightest = x.max()
    cloud = _cut(plasma(_power_of_2(x), decay, rng), 0, 0, x.shape)[..., None]
    return (x + amount * cloud) * brightest / (brightest + amount)


def brightness(x: np.ndarray, c: tuple, rng: np.random.Generator) -> np.ndarray:
    """Brightens the image by `c[0]`; see `brighten`."""
    del rng
    return brighten(x, c[0])


def brighten(x: np.ndarray, amount: float) -> np.ndarray:
    """Adds `amount` to V of HSV, the largest channel, keeping hue and saturation.

    All channels scale by V'/V; black turns gray.
    """
    value = x.max(axis=2, keepdims=True)
    raised = np.clip(value + amount, 0, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)
