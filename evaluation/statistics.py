"""Computes how sure a difference is: intervals and tests.

They are for one model, for two models on the same examples, and over seeds. Values are per-example
scores, such as 1 for a right answer and 0 for a wrong one, or an image's share of wrong answers
over all corruptions. The examples are the independent units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 4000
_RESAMPLES_AT_ONCE = 1_000_000  # of examples, 8 MB each


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the score interval (low, high) in 0–1 of `successes` in `n` >= 1 independent trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference";
    method 3 of Newcombe 1998, "Two-sided confidence intervals for the single proportion".

    Raises:
      ValueError: the counts or `confidence` are impossible.
    """
    if not 0 <= successes <= n or n < 1:  # scipy 1.18 answers with nan
        raise ValueError(
            f"successes must be from 0 to n, and n must be at least 1; they are {successes} and {n}"
        )
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


class Difference(NamedTuple):
    """Difference of two models on the same examples, second minus first.

    Attributes:
      difference: difference of the means.
      interval: 95 % percentile interval of the paired bootstrap.
      p_value: two-sided p-value of McNemar's exact test for right and wrong answers, otherwise of
        the bootstrap.
      test: "McNemar" or "bootstrap".
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    test: str


def bootstrap_means(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Returns the means [resamples] of samples drawn with replacement from `values` [N].

    The result is a function of the arguments.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"need values [N], N >= 1; got {values.shape}")
    if values.size == 1:  # scipy wants two
        return np.repeat(values, resamples)
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _RESAMPLES_AT_ONCE // values.size),
        method="percentile",
        random_state=np.random.Generator(np.random.PCG64(seed)),
    )
    return found.bootstrap_distribution


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile interval of the mean of `values` [N].

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    tail = 50 * (1 - confidence)
    low, high = np.percentile(bootstrap_means(values, seed), [tail, 100 - tail])
    return float(low), float(high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the two-sided p-value of two models being equally good.

    `first` and `second`, bool [N], tell which examples each model gets right. The test is exact: an
    example that only one model gets right is equally likely to be either's.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions"; the exact form is the sign test's.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"need two rows of the same examples; got {first.shape} and {second.shape}"
        )
    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Difference:
    """Compares two models, second minus first, by their scores [N] of the same examples.

    The examples are in the same order.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"need two rows of the same examples; got {first.shape} and {second.shape}"
        )
    means = bootstrap_means(second.astype(np.float64) - first.astype(np.float64), seed)
    low, high = np.percentile(means, [2.5, 97.5])
    if first.dtype == bool and second.dtype == bool:
        p_value, test = mcnemar(first, second), "McNemar"
    else:
        # The smaller of both tails, doubled; the + 1 keeps a finite number of resamples from
        # claiming p = 0.
        tail = min(int(np.sum(means <= 0)), int(np.sum(means >= 0)))
        p_value, test = float(min(1.0, 2 * (tail + 1) / (len(means) + 1))), "bootstrap"
    return Difference(float(second.mean() - first.mean()), (float(low), float(high)), p_value, test)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts the p-values of several tests.

    The probability of any false finding is then at most that of one test.

    Args:
      p_values: p-values of m tests, each in 0-1.

    Returns:
      The adjusted p-values, in the same order: max over the smaller or equal p-values p_(i) of
      min(1, (m + 1 - i) p_(i)). A test is significant at level a where its adjusted value is at
      most a.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = np.argsort(p_values, kind="stable")
    left = np.arange(len(order), 0, -1)  # (m,)
    sorted_values = np.maximum.accumulate(np.minimum(1.0, left * np.asarray(p_values)[order]))
    adjusted = np.empty(len(order))
    adjusted[order] = sorted_values
    return [float(value) for value in adjusted]


class OverSeeds(NamedTuple):
    """Mean, standard deviation, and 95 % interval of the mean over seeds.

    Deviation and interval are None with one seed.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Summarizes one number per seed. The interval is Student's: mean ± t(n − 1) · s / √n."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return OverSeeds(mean, None, None)
    deviation = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(array) - 1)) * deviation / math.sqrt(len(array))
    return OverSeeds(mean, deviation, (mean - half, mean + half))


class Gain(NamedTuple):
    """Change of a number, one per seed.

    The interval is that of the mean, Student's. Deviation and interval are None with one
    seed.

    `p_value`: two-sided paired t-test; None where the changes do not vary.
    """

    values: list[float]
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    p_value: float | None


def gain_over_seeds(first: Sequence[float], second: Sequence[float]) -> Gain:
    """Returns the gain, second minus first, of the same seeds in the same order."""
    values = np.asarray(second, np.float64) - np.asarray(first, np.float64)  # (seeds,)
    varies = len(values) > 1 and values.std() > 0
    return Gain(
        values.tolist(),
        *over_seeds(values.tolist()),
        float(stats.ttest_1samp(values, 0.0).pvalue) if varies else None,
    )
