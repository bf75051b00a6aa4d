"""PSI and MMD against their definitions, term by term, and on samples of known origin."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation import drift


def test_psi_is_both_divergences():
    p, q = [30, 50, 20], [10, 40, 0]
    a = [(count + 0.5) / 101.5 for count in p]
    b = [(count + 0.5) / 51.5 for count in q]
    kl = [sum(x * math.log(x / y) for x, y in zip(*pair)) for pair in ((a, b), (b, a))]
    assert drift.psi(p, q) == pytest.approx(sum(kl), rel=1e-12)
    assert drift.psi(p, p) == 0


def test_deciles_hold_a_tenth_each():
    values = np.arange(1000.0)
    reference, served = drift.deciles(values, values + 300)
    assert reference.tolist() == [100] * 10
    assert served.tolist() == [0] * 3 + [100] * 6 + [400]
    assert drift.deciles(np.ones(5), np.array([0.0, 1.0]))[1].tolist() == [1, 1]


def brute(x, y, bandwidth):
    def kernel(a, b):
        return math.exp(-float(np.sum((a - b) ** 2)) / (2 * bandwidth**2))

    def within(z):
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(kernel(z[i], z[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    return within(x) + within(y) - 2 * across


def test_mmd_is_its_double_sums():
    rng = np.random.Generator(np.random.PCG64(1))
    x, y = rng.normal(0, 1, (7, 3)), rng.normal(1, 1, (5, 3))
    found = drift.mmd(x, y)
    both = np.concatenate([x, y])
    distances = [np.linalg.norm(a - b) for i, a in enumerate(both) for b in both[:i]]
    # the middle of an even number of squares lies between two distances
    assert sorted(distances)[32] <= found.bandwidth <= sorted(distances)[33]
    assert found.squared == pytest.approx(brute(x, y, found.bandwidth), rel=1e-9)


def test_samples_of_one_and_of_two_distributions(monkeypatch):
    monkeypatch.setattr(drift, "MOST", 80)
    rng = np.random.Generator(np.random.PCG64(2))
    x, same, other = (rng.normal(mean, 1, (100, 4)) for mean in (0, 0, 1))
    assert drift.mmd(x, same).p > 0.05
    assert drift.mmd(x, other).p == pytest.approx(1 / (1 + drift.PERMUTATIONS))
    ps = [drift.mmd(*rng.normal(0, 1, (2, 30, 2))).p for _ in range(40)]
    assert 0.3 < np.mean(ps) < 0.7  # uniform where nothing differs
    assert drift.mmd(np.ones((3, 2)), np.ones((4, 2)))[:2] == (0, 1)
