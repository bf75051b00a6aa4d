"""A calibrated teacher: one temperature, fitted on labelled images that it was not trained on. Beyond Noisy Student's papers.

    q <- q^(1/T), normalised again        (temperature scaling; Guo et al. 2017, Section 4.2)

with the T at which the images' labels are most probable. That a teacher is too sure of its errors,
or too little of its answers, then reaches neither the threshold nor the student.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

LIMITS = (0.05, 20.0)
"""Of the temperature; a teacher that makes no mistake would have it at 0."""


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The power q^(1/T), normalised: float32 [n, K] to the same."""
    return special.softmax(_log(probabilities) / temperature, axis=1).astype(np.float32)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, within `LIMITS`, at which the negative log-likelihood of the labels is least.

    With β = 1/T it is the mean of log Σ_k q_k^β − β log q_y, which is convex in β: its slope, Σ_k
    q_k(β) log q_k − log q_y, has one root.

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
