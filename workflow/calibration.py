"""Calibrates a teacher with one temperature, fitted on labeled images that it did not train on.

This goes beyond Noisy Student's papers.

    q <- q^(1/T), normalized again        (temperature scaling; Guo et al. 2017, Section 4.2)

T is the temperature at which the images' labels are most probable. A teacher may be too sure of its
errors, or not sure enough of its right answers. With T this reaches neither the threshold nor the
student.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

LIMITS = (0.05, 20.0)
"""Range of the temperature; a teacher that makes no mistake would have temperature 0."""


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns q^(1/T), normalized: float32 [n, K], as `probabilities`."""
    return special.softmax(_log(probabilities) / temperature, axis=1).astype(np.float32)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature within `LIMITS` with the least negative log-likelihood of the labels.

    With β = 1/T the mean negative log-likelihood is the mean of log Σ_k q_k^β − β log q_y. It is
    convex in β: its slope, Σ_k q_k(β) log q_k − log q_y, has one root.

    Args:
      probabilities: float32 [n, K].
      labels: int [n].
    """
    log = _log(probabilities)
    of_labels = log[np.arange(len(labels)), labels].mean()

    def slope(beta: float) -> float:
        return float((special.softmax(beta * log, axis=1) * log).sum(axis=1).mean() - of_labels)

    low, high = 1 / LIMITS[1], 1 / LIMITS[0]
    if slope(low) >= 0:
        return LIMITS[1]
    if slope(high) <= 0:
        return LIMITS[0]
    return 1.0 / float(optimize.brentq(slope, low, high, xtol=1e-9))


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
