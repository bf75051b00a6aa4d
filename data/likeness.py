"""Compares two pictures in three steps, each finer and costlier than the one before.

1. A *perceptual hash* of 128 bits finds candidates fast. `data.duplicates` looks them up.
2. *Thumbnails* of 16x16 gray levels must correlate.
3. *Details*, 64x64 gray levels, are laid on each other: shifted, scaled and evened out in
   brightness. What still differs must be spread over the picture, as the noise of compression is. A
   difference in one place is another thing before the same background.

`./run_benchmarks.sh look_alikes` measures precision and recall. docs/data.md states the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

FLAT = 2
"""Largest difference of neighbors, in gray levels, that counts as equal in the hash."""
THUMBNAIL = 16
"""Side of a thumbnail in pixels."""
DETAIL = 64
"""Side of a detail in pixels."""
CORRELATION = 0.9
DIFFERENCE = 96
"""Thumbnails pass step 2 if their correlation is above `CORRELATION`. Besides, no pixel may differ
by more than `DIFFERENCE` gray levels once both have the same mean."""

_PLAIN = 1.0
"""Standard deviation in gray levels. A thumbnail below it shows nothing that could correlate. Two
such thumbnails are compared by their means."""
_PLAIN_DIFFERENCE = 4.0
"""Largest difference between the means of two plain thumbnails, in gray levels."""

RESIDUAL = 14.0
"""Largest root mean square difference of two details after alignment, in gray levels."""
RESIDUAL_SHARE = 0.35
"""The same for details of little contrast, as a share of their standard deviation, on top of
`NOISE`."""
GAIN = 0.2
"""Largest change of contrast. Two plain skies are not copies just because one can be turned into
the other."""
CROP = 0.08
"""Largest shift and change of scale of a copy, in halves of the side. A copy may lack 5 % of the
width."""
PEAK = 3.3
"""Largest local difference of two details after alignment, in units of `NOISE` + the root mean
square. Local is the mean over about 3x3 pixels of the detail."""
NOISE = 2.0
"""Difference in gray levels that every comparison allows for compression."""

_SHIFT = 0.12
"""Largest shift and change of scale that alignment tries, in halves of the side. It is more than a
copy has, since plain pictures drift anywhere."""
_ROUNDS = 6
_PAIRS = 64
"""Number of pairs that are aligned at a time: 64 x 4096 pixels x a few dozen floats."""


def perceptual_hash(image: PIL.Image.Image) -> bytes:
    """Computes the difference hash of an image, 128 bits.

    The image is scaled down to 9x9. Each bit says whether one of 8x8 gray levels is lighter than
    its left or its upper neighbor. Lighter means by more than `FLAT` levels, so that the noise of
    compression in a plain sky changes no bit.
    """
    gray = scaled(image, 9).astype(np.int16)
    bits = np.stack(
        [gray[1:, 1:] > gray[1:, :-1] + FLAT, gray[1:, 1:] > gray[:-1, 1:] + FLAT]
    )  # (2, 8, 8)
    return np.packbits(bits).tobytes()


def scaled(image: PIL.Image.Image, side: int) -> np.ndarray:
    """Computes the means of `side` x `side` equal parts of a gray image, uint8 [side, side]."""
    return np.asarray(image.resize((side, side), PIL.Image.Resampling.BOX))


def detail(image: PIL.Image.Image) -> bytes:
    """Returns the gray levels of 64x64 pixels, row by row.

    They are smoothed, so that a shifted copy stays comparable.
    """
    return image.resize((DETAIL, DETAIL), PIL.Image.Resampling.HAMMING).tobytes()


def thumbnails_alike(
    ones: np.ndarray, others: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Does step 2: compares thumbnails by `CORRELATION` and `DIFFERENCE`.

    Args:
      ones: uint8 [n, 256].
      others: uint8 [m, 256].
      one: int64 [p], for each pair to compare its index in `ones`.
      other: int64 [p], and its index in `others`.

    Returns:
      Whether the thumbnails may show the same, bool [p], and their correlation, float32 [p]. The
      correlation of two plain thumbnails counts as 1.
    """
    rows, other = np.unique(other, return_inverse=True)
    others = others[rows]
    mean, deviation, unit = _standardized(ones)
    mean_of_others, deviation_of_others, unit_of_others = _standardized(others)
    plain = (deviation[one] < _PLAIN) & (deviation_of_others[other] < _PLAIN)
    # A matrix, since all may be near all.
    correlation = np.where(plain, np.float32(1), (unit @ unit_of_others.T)[one, other])
    alike = plain & (np.abs(mean[one] - mean_of_others[other]) <= _PLAIN_DIFFERENCE)
    close = np.flatnonzero(~plain & (correlation > CORRELATION))
    for start in range(0, len(close), 4096):
        pairs = close[start : start + 4096]
        i, j = one[pairs], other[pairs]
        difference = (ones[i] - mean[i, np.newaxis]) - (
            others[j] - mean_of_others[j, np.newaxis]
        )  # (4096, 256)
        alike[pairs] = np.abs(difference).max(axis=1) <= DIFFERENCE
    return alike, correlation


def _standardized(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardizes thumbnails.

    Returns:
      Means and standard deviations, float32 [n]; and the thumbnails minus their mean, scaled to
      length 1 (0 for a thumbnail of one gray level), float32 [n, 256].
    """
    mean = thumbnails.mean(axis=1, dtype=np.float32)
    centered = thumbnails - mean[:, np.newaxis]
    length = np.linalg.norm(centered, axis=1)
    return mean, length / THUMBNAIL, centered / np.maximum(length, 1e-6)[:, np.newaxis]


def details_alike(ones: Sequence[bytes], others: Sequence[bytes]) -> np.ndarray:
    """Does step 3: whether each pair of details shows the same, bool [p].

    See `RESIDUAL` and `PEAK`. A copy may be a cut-out of the other picture, so each of the two is
    laid on the other.

    Args:
      ones: p details.
      others: p details.
    """
    alike = np.zeros(len(ones), bool)
    for start in range(0, len(ones), _PAIRS):
        part = slice(start, start + _PAIRS)
        first, second = _pixels(ones[part]), _pixels(others[part])
        found = _differ_little(first, second)
        again = np.flatnonzero(~found)
        found[again] = _differ_little(second[again], first[again])
        alike[part] = found
    return alike


def _pixels(details: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(details), np.uint8).reshape(-1, DETAIL, DETAIL).astype(np.float32)


def _differ_little(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tells whether `others` are `ones` up to alignment and noise, bool [p].

    Both are float32 [p, 64, 64].
    """
    if not len(ones):
        return np.zeros(0, bool)
    warp = np.zeros([len(ones), 4], np.float32)
    for factor in (4, 2):
        warp = _aligned(_blurred(_shrunk(ones, factor)), _blurred(_shrunk(others, factor)), warp)
    rows, columns = _places(warp, DETAIL)
    inside = (rows > -0.6) & (rows < DETAIL - 0.4) & (columns > -0.6) & (columns < DETAIL - 0.4)
    difference, gain = _same_brightness(_sampled(ones, rows, columns), others, inside)
    difference = np.where(inside, difference, np.float32(0))
    rms = np.sqrt((difference**2).mean(axis=(1, 2)))
    peak = np.abs(_blurred(difference)).max(axis=(1, 2))
    contrast = others.std(axis=(1, 2))
    small = rms <= np.minimum(RESIDUAL, NOISE + RESIDUAL_SHARE * contrast)
    same_contrast = np.abs(gain - 1) * contrast <= NOISE + GAIN * contrast
    near = np.abs(warp).max(axis=1) <= CROP
    return small & same_contrast & near & (peak <= PEAK * (NOISE + rms))


def _aligned(ones: np.ndarray, others: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """Improves the warps that lay `ones` on `others`.

    The steps are Gauss-Newton's, with less weight for outliers.

    Args:
      ones: float32 [p, s, s].
      others: float32 [p, s, s].
      warp: float32 [p, 4]: change of scale and shift of the rows, and of the columns, in halves of
        the side.
    """
    side = ones.shape[1]
    v, u = _grid(side)
    inner = (np.abs(u) < 0.93) & (np.abs(v) < 0.93)
    u, v = u[inner], v[inner]
    down, right = (gradient * (side / 2) for gradient in np.gradient(ones, axis=(1, 2)))
    for _ in range(_ROUNDS):
        rows, columns = _places(warp, side)
        moved, along_rows, along_columns = (
            _sampled(image, rows, columns)[:, inner] for image in (ones, down, right)
        )
        residual = others[:, inner] - moved
        weight = _weight(residual - np.median(residual, axis=1, keepdims=True))
        slopes = np.stack(
            [
                along_rows * v,
                along_rows,
                along_columns * u,
                along_columns,
                moved,
                np.ones_like(moved),
            ],
            axis=1,
        )
        weighted = slopes * weight[:, np.newaxis]
        matrix = weighted @ slopes.transpose(0, 2, 1)  # (p, 6, 6)
        size = np.trace(matrix, axis1=1, axis2=2)[:, np.newaxis, np.newaxis]
        step = np.linalg.solve(
            matrix + np.eye(6, dtype=np.float32) * (1e-6 * size + 1e-3),
            weighted @ residual[..., np.newaxis],
        )
        warp = np.clip(warp + step[:, :4, 0], -_SHIFT, _SHIFT).astype(np.float32)
    return warp


def _weight(residual: np.ndarray) -> np.ndarray:
    """Computes Cauchy's weights at 8 gray levels: another object must not pull the alignment."""
    return 1 / (1 + residual**2 / 64)


def _same_brightness(
    ones: np.ndarray, others: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes `others` minus the best gain · `ones` + offset, float32 [p, s, s].

    Also returns that gain, float32 [p].
    """
    x, y, counts = (array.reshape(len(ones), -1) for array in (ones, others, inside))
    weight = counts.astype(np.float32)
    difference, gain = y - x, np.ones([len(x), 1], np.float32)
    for _ in range(4):
        total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
        x_mean, y_mean = (
            (weight * x).sum(axis=1, keepdims=True) / total,
            (weight * y).sum(axis=1, keepdims=True) / total,
        )
        spread = (weight * (x - x_mean) ** 2).sum(axis=1, keepdims=True)
        gain = (weight * (x - x_mean) * (y - y_mean)).sum(axis=1, keepdims=True) / np.maximum(
            spread, 1e-3
        )
        difference = (y - y_mean) - gain * (x - x_mean)
        weight = counts * _weight(difference)
    return difference.reshape(ones.shape), gain[:, 0]


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns row and column of each pixel from the middle, in halves of the side.

    Both are float32 [s, s].
    """
    middle = (side - 1) / 2
    line = ((np.arange(side) - middle) / (side / 2)).astype(np.float32)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return rows, columns


def _places(warp: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the pixels of the other image lie in the first one.

    The rows and the columns are float32 [p, s, s] each.
    """
    v, u = _grid(side)
    middle = (side - 1) / 2
    scale_v, shift_v, scale_u, shift_u = (warp[:, i, np.newaxis, np.newaxis] for i in range(4))
    return middle + side / 2 * (v + scale_v * v + shift_v), middle + side / 2 * (
        u + scale_u * u + shift_u
    )


def _sampled(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Samples `images` bilinearly, float32 [p, s, s]; beyond the edge the edge goes on."""
    side = images.shape[1]
    rows, columns = np.clip(rows, 0, side - 1), np.clip(columns, 0, side - 1)
    top, left = (
        np.minimum(rows.astype(np.int32), side - 2),
        np.minimum(columns.astype(np.int32), side - 2),
    )
    y, x = rows - top, columns - left
    flat = images.reshape(-1)
    place = (
        np.arange(len(images), dtype=np.int64)[:, np.newaxis, np.newaxis] * side**2
        + top * side
        + left
    )
    upper = flat[place] * (1 - x) + flat[place + 1] * x
    lower = flat[place + side] * (1 - x) + flat[place + side + 1] * x
    return upper * (1 - y) + lower * y


def _shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Computes the means over `factor` x `factor` pixels."""
    count, side, _ = images.shape
    return images.reshape(count, side // factor, factor, side // factor, factor).mean(axis=(2, 4))


def _blurred(images: np.ndarray) -> np.ndarray:
    """Averages each pixel and its neighbors, weighted 1 : 2 : 1 along rows and columns."""
    padded = np.pad(images, ((0, 0), (1, 1), (0, 0)), "edge")
    images = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1)), "edge")
    return (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
