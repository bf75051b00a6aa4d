"""Measures how far a sample has moved from another one: counts by PSI, vectors by MMD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PERMUTATIONS = 500
MOST = 1000
"""Vectors of a sample that MMD compares: its kernel matrix has the square of both samples."""
SMOOTHING = 0.5
"""Added to each count, so that an empty bin gives no infinity."""


def psi(reference: Sequence[int] | np.ndarray, served: Sequence[int] | np.ndarray) -> float:
    """Computes the population stability index of two histograms: sum of (q - p) ln(q / p).

    It is the symmetric Kullback-Leibler divergence of the shares p and q. Source: Siddiqi 2006,
    "Credit Risk Scorecards", which calls less than 0.1 no change and more than 0.25 a large one.

    Args:
      reference: counts by bin [B]; their sum is positive.
      served: counts of the same bins [B]; their sum is positive.

    Returns:
      0 for equal shares, else above it.
    """
    p, q = (np.asarray(counts, np.float64) + SMOOTHING for counts in (reference, served))
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def deciles(reference: np.ndarray, served: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts both samples in bins between the deciles of the first one.

    Args:
      reference: values [n], n >= 1.
      served: values [m].

    Returns:
      int64 [B] twice; B is 10, or less where values repeat.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0.1, 0.9, 9)))

    def counts(values: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)

    return counts(reference), counts(served)


class Mmd(NamedTuple):
    """Result of a two-sample test.

    Attributes:
      squared: unbiased estimate of the squared maximum mean discrepancy; about 0 or below where
        both samples are of one distribution.
      p: share of permutations with a value at least as large, in (0, 1].
      bandwidth: of the Gaussian kernel.
    """

    squared: float
    p: float
    bandwidth: float


def mmd(reference: np.ndarray, served: np.ndarray, seed: int = 0) -> Mmd:
    """Tests whether two samples of vectors are of one distribution.

    The kernel is exp(-d² / 2 s²), s the median distance d between vectors of both samples. Source:
    Gretton et al. 2012, "A Kernel Two-Sample Test", equation 3 and section 8. Of more vectors,
    `MOST` are drawn.

    Args:
      reference: float [n, C], n >= 2.
      served: float [m, C], m >= 2.
      seed: of draws and permutations.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    parts = [
        part[np.sort(rng.permutation(len(part))[:MOST])].astype(np.float64)
        for part in (reference, served)
    ]
    both, n = np.concatenate(parts), len(parts[0])
    lengths = np.sum(both**2, axis=1)
    squares = np.maximum(lengths[:, None] + lengths - 2 * both @ both.T, 0)  # (n + m, n + m)
    above = squares[np.triu_indices(len(both), 1)]
    bandwidth = float(np.sqrt(np.median(above))) or 1.0  # all vectors equal: any will do
    kernel = np.exp(-squares / (2 * bandwidth**2))
    np.fill_diagonal(kernel, 0)
    first = np.zeros((len(both), 1 + PERMUTATIONS))  # which vectors make up the first sample
    first[:n, 0] = 1
    for column in range(1, 1 + PERMUTATIONS):
        first[rng.permutation(len(both))[:n], column] = 1
    values = _squared(kernel, first)
    # Rounding may part values that are equal.
    p = float(np.mean(values >= values[0] - 1e-12))
    return Mmd(float(values[0]), p, bandwidth)


def _squared(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns the unbiased estimate for each column of `first`; the kernel's diagonal is 0."""
    second = 1 - first
    n, m = first.sum(axis=0), second.sum(axis=0)
    of_first = kernel @ first  # (n + m, columns)
    of_second = kernel.sum(axis=1, keepdims=True) - of_first
    within = np.sum(first * of_first, axis=0) / (n * (n - 1))
    beside = np.sum(second * of_second, axis=0) / (m * (m - 1))
    result: np.ndarray = within + beside - 2 * np.sum(first * of_second, axis=0) / (n * m)
    return result
