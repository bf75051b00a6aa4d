"""The metrics against scikit-learn, brute force, published numbers and arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from evaluation import metrics, numbers

HAND = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]])


def random_predictions(n=257, k=7, seed=0):
    rng = np.random.Generator(np.random.PCG64(seed))
    logits = 2 * rng.standard_normal((n, k))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), rng.integers(0, k, n)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_top_k_against_sklearn(k):
    probabilities, labels = random_predictions()
    expected = sklearn_metrics.accuracy_score(labels, probabilities.argmax(1)) if k == 1 else None
    if k in (2, 5):
        expected = sklearn_metrics.top_k_accuracy_score(
            labels, probabilities, k=k, labels=np.arange(7)
        )
    assert metrics.top_k_accuracy(probabilities, labels, k) == pytest.approx(
        1.0 if k == 7 else expected, abs=1e-12
    )


def test_top_k_with_fewer_classes_than_k():
    assert metrics.top_k_accuracy(HAND, np.array([1, 1, 0, 0]), 5) == 1.0


def test_top_k_ties_rank_by_class_number():
    uniform = np.full((10, 10), 0.1)
    assert metrics.top_k_accuracy(uniform, np.arange(10), 1) == pytest.approx(0.1)
    assert metrics.top_k_accuracy(uniform, np.arange(10), 5) == pytest.approx(0.5)


def test_nll_against_sklearn():
    probabilities, labels = random_predictions()
    exact = probabilities.astype(np.float64)
    expected = sklearn_metrics.log_loss(
        labels, exact / exact.sum(axis=1, keepdims=True), labels=np.arange(7)
    )
    assert metrics.nll(probabilities, labels) == pytest.approx(expected, rel=1e-6)


def test_nll_of_an_underflowed_probability_is_finite():
    assert metrics.nll(np.array([[1.0, 0.0]], np.float32), np.array([1])) == pytest.approx(
        126 * np.log(2)
    )


def test_confusion_matrix_against_sklearn():
    probabilities, labels = random_predictions()
    predictions = probabilities.argmax(1)
    expected = sklearn_metrics.confusion_matrix(labels, predictions, labels=np.arange(7))
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, predictions, 7), expected)


def test_ece_by_hand():
    """Checks 5 bins: (0.4, 0.6] holds 0.55 (right), (0.6, 0.8] holds 0.8 (wrong) and 0.7 (right).

    (0.8, 1] holds 0.9 (right).
    """
    value, bins = metrics.ece(HAND, np.array([0, 1, 1, 1]), bins=5)
    assert value == pytest.approx((1 * abs(1 - 0.55) + 2 * abs(0.5 - 0.75) + 1 * abs(1 - 0.9)) / 4)
    np.testing.assert_array_equal(bins.count, [0, 0, 1, 2, 1])
    np.testing.assert_allclose(bins.confidence[2:], [0.55, 0.75, 0.9])
    np.testing.assert_allclose(bins.accuracy[2:], [1, 0.5, 1])
    assert np.isnan(bins.confidence[:2]).all() and np.isnan(bins.accuracy[:2]).all()


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_against_brute_force(bins):
    probabilities, labels = random_predictions(seed=1)
    expected = 0.0
    for m in range(bins):
        rows = [
            i for i in range(len(labels)) if m / bins < probabilities[i].max() <= (m + 1) / bins
        ]
        if rows:
            accuracy = sum(probabilities[i].argmax() == labels[i] for i in rows) / len(rows)
            expected += (
                len(rows)
                / len(labels)
                * abs(accuracy - sum(float(probabilities[i].max()) for i in rows) / len(rows))
            )
    value, table = metrics.ece(probabilities, labels, bins)
    assert value == pytest.approx(expected, abs=1e-12)
    assert table.count.sum() == len(labels)


def test_ece_of_certain_answers():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert metrics.ece(certain, np.array([0, 1, 2, 0]))[0] == 0.0
    assert metrics.ece(certain, np.array([1, 2, 0, 1]))[0] == 1.0
    assert metrics.ece(certain, np.array([0, 1, 2, 1]))[1].count[-1] == 4


def test_ece_of_perfect_calibration_is_small():
    """Labels are drawn from the stated probabilities, so sampling noise is left, ~ √(bins/N)/2.

    Overconfidence leaves more.
    """
    probabilities, _ = random_predictions(n=40_000, seed=2)
    rng = np.random.Generator(np.random.PCG64(3))
    cumulative = probabilities.astype(np.float64).cumsum(axis=1)
    labels = np.minimum((rng.random((len(cumulative), 1)) > cumulative).sum(axis=1), 6)
    assert metrics.ece(probabilities, labels)[0] < 0.01
    sharp = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert metrics.ece(sharp, labels)[0] > 0.1


def test_evaluate_agrees_with_the_single_metrics():
    probabilities, labels = random_predictions()
    result = metrics.evaluate("student", probabilities, labels, list("abcdefg"))
    assert result.top1 == pytest.approx(metrics.top_k_accuracy(probabilities, labels, 1))
    assert numbers.clean(probabilities, labels)["top5"] == metrics.top_k_accuracy(
        probabilities, labels, 5
    )
    assert (result.examples, result.confusion.sum()) == (257, 257)
    assert result.top1_interval[0] < result.top1 < result.top1_interval[1]


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], [-1, 0, 0, 0], [0, 1, 0], [0.0, 1.0, 0.0, 1.0]])
def test_wrong_labels(labels):
    with pytest.raises(ValueError, match="labels"):
        metrics.nll(HAND, np.array(labels))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_equal_mass_ece_against_brute_force(bins):
    """Without ties: the sorted examples cut into runs of as equal a length as can be."""
    probabilities, labels = random_predictions(n=240, seed=4)
    assert len(np.unique(probabilities.max(1))) == 240
    order = np.argsort(probabilities.max(1))
    expected = 0.0
    for part in np.split(order, [i * 240 // bins for i in range(1, bins)]):
        accuracy = np.mean(probabilities[part].argmax(1) == labels[part])
        expected += (
            len(part) / 240 * abs(accuracy - np.mean(probabilities[part].max(1), dtype=np.float64))
        )
    value, table = metrics.ece(probabilities, labels, bins, equal_mass=True)
    assert value == pytest.approx(expected, abs=1e-9)
    assert table.count.max() - table.count.min() <= 1


def test_equal_mass_keeps_ties_together():
    certain = np.eye(3)[[0, 1, 2, 0]]
    value, table = metrics.ece(certain, np.array([0, 1, 2, 1]), equal_mass=True)
    assert value == 0.25
    np.testing.assert_array_equal(table.count, [4])


def test_confidence_histogram_and_classes():
    right, wrong = metrics.confidence_histogram(HAND, np.array([0, 1, 1, 1]), bins=5)
    np.testing.assert_array_equal(right, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(wrong, [0, 0, 0, 0, 1])
    accuracy = metrics.per_class_accuracy(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(accuracy, [0.75, 1.0, np.nan])
