"""Intervals and tests against published values, scipy, arithmetic by hand, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation import statistics


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),  # Newcombe 1998, table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(successes, n, low, high):
    assert statistics.wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = statistics.wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_contains_the_share_and_widens_with_confidence():
    narrow, wide = (
        statistics.wilson_interval(380, 400, 0.8),
        statistics.wilson_interval(380, 400, 0.99),
    )
    assert wide[0] < narrow[0] < 0.95 < narrow[1] < wide[1]


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="must"):
        statistics.wilson_interval(successes, n)


def test_bootstrap_interval_of_a_share_is_near_the_normal_one():
    values = np.r_[np.ones(300), np.zeros(100)]
    low, high = statistics.bootstrap_interval(values)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == (
        pytest.approx(0.75 - half, abs=0.005),
        pytest.approx(0.75 + half, abs=0.005),
    )
    assert statistics.bootstrap_interval(values) == (low, high)  # the same every time


def test_bootstrap_against_scipy():
    values = np.random.Generator(np.random.PCG64(5)).exponential(size=200)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", random_state=np.random.default_rng(0)
    ).confidence_interval
    assert statistics.bootstrap_interval(values) == (
        pytest.approx(expected.low, abs=0.02),
        pytest.approx(expected.high, abs=0.02),
    )


def test_bootstrap_means_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    values = np.arange(10.0)
    whole = statistics.bootstrap_means(values, seed=3, resamples=50)
    monkeypatch.setattr(statistics, "_RESAMPLES_AT_ONCE", 70)
    np.testing.assert_array_equal(statistics.bootstrap_means(values, seed=3, resamples=50), whole)


@pytest.mark.parametrize(("only_first", "only_second"), [(5, 5), (1, 9), (40, 22), (0, 3), (0, 0)])
def test_mcnemar_is_the_sign_test(only_first, only_second):
    first = np.r_[
        np.ones(30, bool), np.ones(only_first, bool), np.zeros(only_second, bool), np.zeros(7, bool)
    ]
    second = np.r_[
        np.ones(30, bool), np.zeros(only_first, bool), np.ones(only_second, bool), np.zeros(7, bool)
    ]
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(float(stats.binom.pmf(i, n, 0.5)) for i in range(k + 1))
    assert statistics.mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_comparison_of_two_models():
    rng = np.random.Generator(np.random.PCG64(2))
    second = rng.random(2000) < 0.9
    first = second & (rng.random(2000) < 0.95)
    result = statistics.compare(first, second)
    assert result.difference == pytest.approx(second.mean() - first.mean())
    assert result.interval[0] < result.difference < result.interval[1]
    # Paired: narrower than the two intervals apart would allow.
    assert result.interval[1] - result.interval[0] < 0.6 * 2 * 1.96 * np.sqrt(2 * 0.09 / 2000)
    assert result.test == "McNemar" and result.p_value < 1e-6
    same = statistics.compare(first.astype(float), first.astype(float))
    assert (same.difference, same.p_value, same.test) == (0.0, 1.0, "bootstrap")


def test_the_bootstraps_p_value_is_honest():
    """Of two equally good models, one in twenty comparisons or so is called significant."""
    rng = np.random.Generator(np.random.PCG64(3))
    false_alarms = sum(
        statistics.compare(rng.random(60), rng.random(60), seed=i).p_value < 0.05
        for i in range(200)
    )
    assert 2 <= false_alarms <= 24


def test_over_seeds():
    mean, deviation, interval = statistics.over_seeds([1.0, 2.0, 4.0])
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (mean, deviation) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))
    assert interval == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert statistics.over_seeds([0.5]) == (0.5, None, None)


def test_holm_s_adjusted_values_decide_as_his_sequence_of_tests():
    """Compares with R's p.adjust at first: 0.05, 0.08, 0.09, 0.09, 0.09.

    The others follow from Holm's sequence of tests (Holm 1979, Section 3).
    """
    assert statistics.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx(
        [0.05, 0.08, 0.09, 0.09, 0.09]
    )
    assert statistics.holm([]) == []
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(50):
        p_values, level = rng.uniform(0, 0.1, 6), rng.uniform(0.01, 0.2)
        rejected = np.zeros(6, bool)
        for step, index in enumerate(np.argsort(p_values)):
            if p_values[index] > level / (6 - step):
                break
            rejected[index] = True
        np.testing.assert_array_equal(np.array(statistics.holm(p_values)) <= level, rejected)


def test_rows_of_other_examples_are_refused():
    with pytest.raises(ValueError, match="same examples"):
        statistics.compare(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="same examples"):
        statistics.mcnemar(np.ones(3, bool), np.ones(4, bool))
    assert statistics.bootstrap_interval(np.array([0.5])) == (0.5, 0.5)
    with pytest.raises(ValueError, match="N >= 1"):
        statistics.bootstrap_interval(np.zeros([0]))
