"""Computes the numbers of ImageNet-C, -P, -A and -ReaL, as pure functions of answers.

Also holds the published tables that these numbers are divided by. Errors, accuracies and
probabilities are in 0–1. mCE and mFR are in percent of the reference model's, as they are
published.

Sources: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations"; Hendrycks et al. 2021, "Natural Adversarial Examples"; Beyer et al.
2020, "Are we done with ImageNet?".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SEVERITIES = (1, 2, 3, 4, 5)

ALEXNET_ERRORS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
"""AlexNet's error on the 15 corruptions of ImageNet-C, severities 1 to 5."""

ALEXNET_EXTRA_ERRORS: dict[str, tuple[float, ...]] = {
    "speckle_noise": (0.66192, 0.74440, 0.90246, 0.94548, 0.97268),
    "gaussian_blur": (0.54732, 0.70444, 0.82574, 0.89864, 0.95940),
    "spatter": (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
    "saturate": (0.59342, 0.65514, 0.51174, 0.70834, 0.82260),
}
"""AlexNet's error on the four corruptions published for choosing hyper-parameters.

They are never part of mCE.
"""

ALEXNET_FLIPS: dict[str, float] = {
    "gaussian_noise": 0.23653,
    "shot_noise": 0.30062,
    "motion_blur": 0.09297,
    "zoom_blur": 0.05942,
    "snow": 0.11928,
    "brightness": 0.04889,
    "translate": 0.11007,
    "rotate": 0.13104,
    "tilt": 0.07050,
    "scale": 0.23531,
}
"""AlexNet's flip probability on the ten perturbations of ImageNet-P, difficulty 1."""

ALEXNET_EXTRA_FLIPS: dict[str, float] = {
    "speckle_noise": 0.18649,
    "gaussian_blur": 0.02775,
    "spatter": 0.05053,
    "shear": 0.10658,
}

CORRUPTIONS = tuple(ALEXNET_ERRORS)
EXTRA_CORRUPTIONS = tuple(ALEXNET_EXTRA_ERRORS)
PERTURBATIONS = tuple(ALEXNET_FLIPS)
EXTRA_PERTURBATIONS = tuple(ALEXNET_EXTRA_FLIPS)


def corruption_errors(
    errors: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]
) -> dict[str, float | None]:
    """Returns CE of each corruption, in percent: 100 · Σ_s error(s) / Σ_s reference(s).

    The sums are over the severities. CE is None where the reference makes no mistake, as it may on
    a few hundred images.
    """
    result: dict[str, float | None] = {}
    for name, row in errors.items():
        if len(row) != len(reference[name]):
            raise ValueError(
                f"{name}: {len(row)} severities, the reference has {len(reference[name])}"
            )
        total = float(np.sum(reference[name]))
        result[name] = 100 * float(np.sum(row)) / total if total > 0 else None
    return result


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Returns the mean; None where there is nothing or one of the values is None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def is_noise(perturbation: str) -> bool:
    """Tells whether a perturbation's frames are independent draws around the first, clean frame."""
    return "noise" in perturbation


def flips(answers: np.ndarray, noise: bool, difficulty: int = 1) -> np.ndarray:
    """Returns the share of flips of each sequence, float64 [n].

    Args:
      answers: int [n, m], the class given to each of the m frames of n sequences.
      noise: True: frame j ≥ 1 against frame 0, the clean image. False: frame j against frame j −
        `difficulty`, which is every `difficulty`-th frame from each offset, pooled.
      difficulty: 1 is the published default. Noise of higher difficulty comes as sequences of its
        own.
    """
    answers = np.asarray(answers)
    if answers.ndim != 2 or answers.shape[1] < 2 or not 1 <= difficulty < answers.shape[1]:
        raise ValueError(
            f"need answers [n, m], m >= 2, and 1 <= difficulty < m; got {answers.shape} and"
            f" {difficulty}"
        )
    if noise:
        return np.mean(answers[:, 1:] != answers[:, :1], axis=1)
    return np.mean(answers[:, difficulty:] != answers[:, :-difficulty], axis=1)


def flip_rates(
    probabilities: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, float | None]:
    """Returns FR of each perturbation, in percent of the reference's flip probability.

    FR is None where the reference's flip probability is 0.
    """
    return {
        name: 100 * value / reference[name] if reference[name] > 0 else None
        for name, value in probabilities.items()
    }


def real_precision(
    answers: np.ndarray, labels: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Computes ReaL's precision@1: an answer is right if it is among the image's labels.

    Images without labels are left out.

    Args:
      answers: int [N].
      labels: N lists of classes, in the same order.

    Returns:
      (right or wrong, bool [n] of the n images with labels; their places, int64 [n]).
    """
    if len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers, {len(labels)} lists of labels")
    places = np.array([i for i, accepted in enumerate(labels) if len(accepted)], np.int64)
    return np.array([answers[i] in labels[i] for i in places], bool), places
