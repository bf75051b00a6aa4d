"""Accuracy and calibration of class probabilities: small pure functions of numpy arrays.

Everywhere: N examples, K classes, `probabilities` [N, K] in 0–1 with rows that sum to 1, `labels`
[N] integers in 0–K−1. Sums run in float64 whatever the dtype of the input. Wrong shapes or labels
raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.statistics import wilson_interval


def _check(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arguments as arrays [N, K] and [N], N ≥ 1.

    Raises:
      ValueError: they do not fit each other.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not labels.size:
        raise ValueError(
            f"need probabilities [N, K] and labels [N], N >= 1; got {probabilities.shape} and"
            f" {labels.shape}"
        )
    if (
        not np.issubdtype(labels.dtype, np.integer)
        or labels.min() < 0
        or labels.max() >= probabilities.shape[1]
    ):
        raise ValueError(f"labels must be integers in 0..{probabilities.shape[1] - 1}")
    return probabilities, labels


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the share of examples with the label among the k most probable classes, in 0–1.

    With fewer than k classes it is the accuracy within min(k, K), which is 1 by definition. Equal
    probabilities rank by class number, as in `np.argmax` and `tf.math.top_k`. So a model that
    answers the same for every class is not called right. `tf.math.in_top_k`, which lets every tied
    class in, would call it right.

    Source: Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge", section
      4.1 (1 − error).
    """
    probabilities, labels = _check(probabilities, labels)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)  # (N, 1)
    ahead = (probabilities > of_label) | (
        (probabilities == of_label) & (np.arange(probabilities.shape[1]) < labels[:, None])
    )  # (N, K)
    return float(np.mean(ahead.sum(axis=1) < min(k, probabilities.shape[1])))


def top1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of examples with the label as the most probable class, in 0–1."""
    probabilities, labels = _check(probabilities, labels)
    return _right(probabilities, labels) / len(labels)


def top1_interval(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % Wilson interval of `top1`, in 0–1."""
    probabilities, labels = _check(probabilities, labels)
    return wilson_interval(_right(probabilities, labels), len(labels))


def balanced_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over the classes of the share of right answers in each class, in 0–1.

    Every class counts the same, however few examples it has. Classes without examples are left out.

    Source: Brodersen et al. 2010, "The balanced accuracy and its posterior distribution".
    """
    probabilities, labels = _check(probabilities, labels)
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    return float(np.nanmean(per_class_accuracy(confusion)))


def _right(probabilities: np.ndarray, labels: np.ndarray) -> int:
    return int(np.sum(probabilities.argmax(axis=1) == labels))


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean negative log likelihood −(1/N) Σ ln p(label), in nats, ≥ 0.

    A probability that underflowed to 0 counts as the smallest normal float32 (87.3 nats), so that
    one example does not make the mean infinite.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2, NLL.
    """
    probabilities, labels = _check(probabilities, labels)
    of_label = np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0].astype(np.float64)
    return float(-np.mean(np.log(np.maximum(of_label, np.finfo(np.float32).tiny)))) + 0.0


@dataclass(frozen=True)
class Bins:
    """Table behind a reliability diagram: one entry per confidence bin.

    Attributes:
      edges: float64 [bins + 1], ascending in 0–1; bin i holds edges[i] < confidence ≤ edges[i + 1].
      confidence: float64 [bins], mean top-label probability; NaN where the bin is empty.
      accuracy: float64 [bins], share of right answers; NaN where the bin is empty.
      count: int64 [bins], examples.
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def ece(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15, equal_mass: bool = False
) -> tuple[float, Bins]:
    """Returns the expected calibration error of the top label, in 0–1, and its table.

    ECE = Σ_m (n_m / N) · |acc(B_m) − conf(B_m)|. conf is the bin's mean highest probability, and
    acc its share of right answers. There are M = `bins` bins. Equal-width bins hold the examples
    with the highest probability in ((m − 1)/M, m/M]. Equal-mass bins hold N/M examples each,
    sorted by that probability, but examples of the same probability stay together.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2, equations 1–3; M
    = 15 as there. Equal mass: Nguyen and O'Connor 2015, "Posterior calibration and exploratory
    analysis for NLP models", section 3.
    """
    probabilities, labels = _check(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence = probabilities.max(axis=1).astype(np.float64)  # (N,)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)  # (N,)
    edges = _equal_mass_edges(confidence, bins) if equal_mass else np.linspace(0.0, 1.0, bins + 1)
    bins = len(edges) - 1
    index = np.digitize(
        confidence, edges[1:-1], right=True
    )  # (N,) right=True: an edge belongs to the bin below it
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0/0 of an empty bin is the NaN of its entry
        mean_confidence = np.bincount(index, confidence, minlength=bins) / count
        accuracy = np.bincount(index, correct, minlength=bins) / count
    filled = count > 0
    value = np.sum(count[filled] / labels.size * np.abs(accuracy[filled] - mean_confidence[filled]))
    return float(value), Bins(edges, mean_confidence, accuracy, count)


def _equal_mass_edges(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Returns the edges [≤ bins + 1] of bins that hold about N / bins of the values (N,) each.

    A bin holds the values above its lower edge and up to its upper edge. The last edge is 1.
    """
    ranked = np.sort(confidence)
    last = (
        np.arange(1, bins) * len(ranked) // bins - 1
    )  # place of the highest value of each bin but the last
    inner = np.unique(ranked[last[last >= 0]])
    return np.concatenate([[0.0], inner[(inner > 0) & (inner < min(ranked[-1], 1.0))], [1.0]])


def confidence_histogram(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """Counts right and wrong answers by confidence: int64 [bins] each, over equal parts of 0–1."""
    probabilities, labels = _check(probabilities, labels)
    confidence = np.minimum(probabilities.max(axis=1), 1.0)  # (N,)
    correct = probabilities.argmax(axis=1) == labels  # (N,)
    right, wrong = (
        np.histogram(confidence[chosen], bins, (0.0, 1.0))[0] for chosen in (correct, ~correct)
    )
    return right, wrong


def per_class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Returns the share of right answers in each class, float64 [K]; NaN without examples."""
    with np.errstate(invalid="ignore"):
        return np.diag(confusion) / confusion.sum(axis=1)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 [K, K]: entry (i, j) is how many examples of class i were called class j.

    Source: the usual definition, rows true and columns predicted as in
      `sklearn.metrics.confusion_matrix`.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(
            f"need labels [N] and predictions [N]; got {labels.shape} and {predictions.shape}"
        )
    for values in (labels, predictions):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"classes must be integers in 0..{num_classes - 1}")
    flat = np.bincount(
        labels.astype(np.int64) * num_classes + predictions.astype(np.int64),
        minlength=num_classes**2,
    )
    return flat.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Evaluation:
    """Result of one model on one split, as far as figures show it.

    `evaluation.numbers` lists all numbers.

    Attributes:
      name: name of the model, for tables and figures.
      examples: N.
      top1: accuracy, 0–1; `top1_interval` its 95 % Wilson interval.
      ece: expected calibration error, 15 equal-width bins, 0–1; `bins` its table.
      ece_equal_mass: the same over 15 bins of equally many examples; `mass_bins` its table.
      histogram: int64 [20] twice, right and wrong answers by confidence.
      confusion: int64 [K, K], rows true, columns predicted.
      label_names: K names.
    """

    name: str
    examples: int
    top1: float
    top1_interval: tuple[float, float]
    ece: float
    bins: Bins
    ece_equal_mass: float
    mass_bins: Bins
    histogram: tuple[np.ndarray, np.ndarray]
    confusion: np.ndarray
    label_names: tuple[str, ...]


def evaluate(
    name: str, probabilities: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> Evaluation:
    """Returns the `Evaluation` of a model's `probabilities` [N, K] against `labels` [N]."""
    probabilities, labels = _check(probabilities, labels)
    if len(label_names) != probabilities.shape[1]:
        raise ValueError(f"{len(label_names)} label names for {probabilities.shape[1]} classes")
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(label_names))
    error, bins = ece(probabilities, labels)
    mass_error, mass_bins = ece(probabilities, labels, equal_mass=True)
    return Evaluation(
        name=name,
        examples=len(labels),
        top1=top1(probabilities, labels),
        top1_interval=top1_interval(probabilities, labels),
        ece=error,
        bins=bins,
        ece_equal_mass=mass_error,
        mass_bins=mass_bins,
        histogram=confidence_histogram(probabilities, labels),
        confusion=confusion,
        label_names=tuple(label_names),
    )
