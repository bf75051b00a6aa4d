"""Confidence intervals of counted rates."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval (low, high) in 0–1 for a share of `successes` in `n` independent trials.

    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), with p = successes/n and z the normal quantile of
    (1 + confidence)/2: 1.96 for 95 %.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; method 3 of Newcombe 1998,
    "Two-sided confidence intervals for the single proportion".
    """
    if not 0 <= successes <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(f"need 0 <= successes <= n, n >= 1 and 0 < confidence < 1; got {successes}, {n}, {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    center = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The formula gives exactly 0 and 1 at the ends; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else (center - half) / (1 + z * z / n)
    high = 1.0 if successes == n else (center + half) / (1 + z * z / n)
    return low, high
