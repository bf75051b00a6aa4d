"""Temperature scaling against a search, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest

from workflow.calibration import LIMITS, fit_temperature, tempered


def _answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64([4]))
    logits = rng.normal(size=(200, 5)) * 3
    q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return q.astype(np.float32), np.array([rng.choice(5, p=row / row.sum()) for row in np.sqrt(q)])


def test_no_other_temperature_makes_the_labels_more_probable() -> None:
    q, labels = _answers()

    def loss(temperature: float) -> float:
        powers = q.astype(np.float64) ** (1 / temperature)
        return -np.log(powers[np.arange(200), labels] / powers.sum(1)).mean()

    found = fit_temperature(q, labels)
    grid = np.geomspace(0.1, 10, 2001)
    assert found == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=5e-3)
    assert found == pytest.approx(2, rel=0.2)  # what the labels were drawn at
    assert all(loss(found) < loss(found * factor) for factor in (0.999, 1.001))


def test_limits() -> None:
    q, _ = _answers()
    assert fit_temperature(q, q.argmax(1)) == LIMITS[0]
    assert fit_temperature(q, q.argmin(1)) == LIMITS[1]
    one_hot = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(tempered(one_hot, 2.0), one_hot, atol=1e-14)
