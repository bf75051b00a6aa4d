"""Makes numbers from the files of `suites`: one JSON object per model, with intervals.

Also compares each model with the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics, numbers, robustness, statistics
from evaluation.robustness import (
    ALEXNET_ERRORS,
    ALEXNET_EXTRA_ERRORS,
    ALEXNET_EXTRA_FLIPS,
    ALEXNET_FLIPS,
    SEVERITIES,
)
from evaluation.statistics import bootstrap_interval, wilson_interval

ALEXNET = "AlexNet"

Scores = dict[str, np.ndarray]
"""Suite -> per-example scores of one model, for comparisons.

Scores are bool for right or wrong answers, otherwise shares of wrong answers or of flips.
"""


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads a file of `suites`."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def clean(
    folder: Path, name: str, label_names: Sequence[str]
) -> tuple[metrics.Evaluation, dict[str, Any], Scores]:
    """Returns the evaluation of the clean split, its numbers for the summary, and its scores."""
    stored = load(folder / "predictions.npz")
    probabilities, labels = stored["probabilities"], stored["labels"]
    evaluation = metrics.evaluate(name, probabilities, labels, label_names)
    row = {
        **numbers.clean(probabilities, labels),
        "examples": evaluation.examples,
        "images_per_second": evaluation.examples / float(stored["seconds"]),
    }
    return evaluation, row, {"clean": probabilities.argmax(axis=1) == labels}


def details(evaluation: metrics.Evaluation) -> dict[str, Any]:
    """Returns what is too long for the summary."""
    right, wrong = evaluation.histogram
    return {
        "label_names": list(evaluation.label_names),
        "per_class_accuracy": without_nan(metrics.per_class_accuracy(evaluation.confusion)),
        "reliability": _table(evaluation.bins),
        "reliability_equal_mass": _table(evaluation.mass_bins),
        "confidence_histogram": {"right": right.tolist(), "wrong": wrong.tolist()},
        "confusion": evaluation.confusion.tolist(),
    }


def _table(bins: metrics.Bins) -> dict[str, Any]:
    return {
        "edges": without_nan(bins.edges),
        "confidence": without_nan(bins.confidence),
        "accuracy": without_nan(bins.accuracy),
        "count": bins.count.tolist(),
    }


def guesses(evaluation: metrics.Evaluation) -> dict[str, Any]:
    """Returns what needs no model: the top-1 of a random and of the best constant answer, 0–1.

    `majority` is the most frequent class of the evaluated examples; of several, the first.
    """
    counts = evaluation.confusion.sum(axis=1)  # (K,)
    names = evaluation.label_names
    return {
        "classes": len(names),
        "chance": 1 / len(names),
        "majority": {"class": names[counts.argmax()], "top1": float(counts.max() / counts.sum())},
        "classes_without_examples": [name for name, count in zip(names, counts) if not count],
    }


def without_nan(values: np.ndarray) -> list[float | None]:
    """Returns the values for JSON, which has no NaN: None instead."""
    return [None if np.isnan(value) else float(value) for value in values]


def real(folder: Path, labels: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Returns ReaL precision@1 of the clean answers; `labels` are in the same order."""
    answers = load(folder / "predictions.npz")["probabilities"].argmax(axis=1)
    right, places = robustness.real_precision(answers, labels)
    low, high = wilson_interval(int(right.sum()), len(right))
    return {
        "precision": float(right.mean()),
        "interval": [low, high],
        "examples": len(right),
        "without_labels": len(labels) - len(places),
    }


def imagenet_a(folder: Path) -> dict[str, Any]:
    """Returns top-1 and top-5 among the 200 classes (the authors' protocol) and among all 1,000."""
    stored = load(folder / "a.npz")
    right, right_of_all = (
        stored[name] == stored["labels"][:, None] for name in ("top5", "top5_of_all")
    )  # (N, 5)
    low, high = wilson_interval(int(right[:, 0].sum()), len(right))
    return {
        "top1": float(right[:, 0].mean()),
        "interval": [low, high],
        "top5": float(right.any(axis=1).mean()),
        "top1_of_1000": float(right_of_all[:, 0].mean()),
        "top5_of_1000": float(right_of_all.any(axis=1).mean()),
        "examples": len(right),
    }


def corruptions(folder: Path, names: Sequence[str]) -> tuple[dict[str, Any], Scores]:
    """Returns the errors of each corruption and severity; `relative_to` adds mCE.

    `names` are the corruptions that were evaluated.
    """
    errors: dict[str, list[float]] = {}
    wrong: list[np.ndarray] = []
    digests = set()
    for name in names:
        errors[name] = []
        for severity in SEVERITIES:
            stored = load(folder / "c" / f"{name}-{severity}.npz")
            missed = stored["answers"] != stored["labels"]
            errors[name].append(float(missed.mean()))
            if name in robustness.CORRUPTIONS:
                wrong.append(missed)
                digests.add(str(stored["keys_digest"]))
    common = [row for name, row in errors.items() if name in robustness.CORRUPTIONS]
    row: dict[str, Any] = {
        "errors": errors,
        "mean_error": float(np.mean(common)) if common else None,
    }
    unchanged = folder / "c" / "unchanged.npz"
    if unchanged.exists():
        stored = load(unchanged)
        row["unchanged_error"] = float(np.mean(stored["answers"] != stored["labels"]))
    if len(digests) != 1:  # other images in each set: they cannot be averaged image by image
        return row, {}
    per_image = np.mean(wrong, axis=0)  # (N,) share of its corrupted versions that were missed
    row["mean_error_interval"] = list(bootstrap_interval(per_image))
    row["examples"] = len(per_image)
    return row, {"c": per_image}


def perturbations(
    folder: Path, names: Sequence[str], difficulty: int
) -> tuple[dict[str, Any], Scores]:
    """Returns the flip probability of each perturbation, and top-1 over all frames.

    `relative_to` adds mFR. Top-1 is the mean over every frame of the benchmark's perturbations, as
    ImageNet-P's is published (Xie et al. 2020, Table 5; first version, A.5). So sets with longer
    sequences weigh more.
    """
    flips, per_sequence, digests, right = {}, [], set(), []
    for name in names:
        stored = load(folder / "p" / f"{name}.npz")
        noise = robustness.is_noise(name)
        rates = robustness.flips(stored["answers"], noise, 1 if noise else difficulty)
        flips[name] = float(rates.mean())
        if name in robustness.PERTURBATIONS:
            per_sequence.append(rates)
            right.append((stored["answers"] == stored["labels"][:, None]).ravel())
            digests.add(str(stored["keys_digest"]))
    common = [value for name, value in flips.items() if name in robustness.PERTURBATIONS]
    row: dict[str, Any] = {
        "flips": flips,
        "difficulty": difficulty,
        "mean_flip": float(np.mean(common)) if common else None,
    }
    row["top1"] = float(np.concatenate(right).mean()) if right else None
    if (
        len(digests) != 1
    ):  # other sequences of each perturbation: they cannot be averaged one by one
        return row, {}
    mean = np.mean(per_sequence, axis=0)  # (n,)
    row["mean_flip_interval"] = list(bootstrap_interval(mean))
    row["sequences"] = len(mean)
    return row, {"p": mean}


def attacks(folder: Path) -> tuple[dict[str, Any], Scores]:
    """Returns the accuracy under FGSM for each ε, and under PGD."""
    stored = load(folder / "adversarial.npz")
    fgsm, pgd = stored["fgsm"], stored["pgd"]  # (E, N), (N,)
    low, high = wilson_interval(int(pgd.sum()), len(pgd))
    attacked = fgsm[stored["epsilons"] > 0]
    row = {
        "epsilons": stored["epsilons"].tolist(),
        "fgsm_top1": fgsm.mean(axis=1).tolist(),
        "pgd_top1": float(pgd.mean()),
        "pgd_interval": [low, high],
        "examples": len(pgd),
    }
    scores: Scores = {"pgd": pgd}
    if len(attacked):
        row["fgsm_mean_top1"] = float(attacked.mean())
        scores["fgsm"] = 1 - attacked.mean(axis=0)
    return row, scores


def relative_to(
    rows: dict[str, dict[str, Any]], baseline: str, released_c: bool, released_p: bool
) -> None:
    """Adds CE, mCE, FR and mFR to every row that has the suite.

    The reference is AlexNet for ImageNet's own sets, otherwise `baseline`. AlexNet's flips are
    those at difficulty 1. At any other difficulty there is nothing to divide by, so there is no FR
    and no mFR, and the reference is None.

    mCE is over all 15 corruptions, mFR over all ten perturbations. For a part of ImageNet-C or -P
    they are called `mce_of_part` and `mfr_of_part`. A -P built here has five perturbations, which
    are all of it.
    """
    for row in rows.values():
        if "c" in row:
            reference: Mapping[str, Sequence[float]] = (
                {**ALEXNET_ERRORS, **ALEXNET_EXTRA_ERRORS}
                if released_c
                else rows[baseline].get("c", {}).get("errors", {})
            )
            c = row["c"]
            c["reference"] = ALEXNET if released_c else baseline
            c["ce"] = robustness.corruption_errors(c["errors"], reference) if reference else {}
            known = [c["ce"][name] for name in c["ce"] if name in robustness.CORRUPTIONS]
            c["mce" if len(known) in (0, len(robustness.CORRUPTIONS)) else "mce_of_part"] = (
                robustness.mean_or_none(known)
            )
        if "p" in row:
            p = row["p"]
            if released_p and p["difficulty"] != 1:
                p["reference"] = None
                continue
            flips: Mapping[str, float] = (
                {**ALEXNET_FLIPS, **ALEXNET_EXTRA_FLIPS}
                if released_p
                else rows[baseline].get("p", {}).get("flips", {})
            )
            p["reference"] = ALEXNET if released_p else baseline
            p["fr"] = robustness.flip_rates(p["flips"], flips) if flips else {}
            known = [p["fr"][name] for name in p["fr"] if name in robustness.PERTURBATIONS]
            complete = not released_p or len(known) == len(robustness.PERTURBATIONS)
            p["mfr" if complete else "mfr_of_part"] = robustness.mean_or_none(known)


def versus(scores: Mapping[str, Scores], baseline: str) -> dict[str, dict[str, Any]]:
    """Returns model -> suite -> difference to the baseline on the same examples."""
    compared: dict[str, dict[str, Any]] = {}
    for name, scored in scores.items():
        if name == baseline:
            continue
        pairs = {
            suite: (scores[baseline][suite], values)
            for suite, values in scored.items()
            if suite in scores[baseline]
        }
        compared[name] = {
            suite: statistics.compare(first, second)._asdict()
            for suite, (first, second) in pairs.items()
            if first.shape == second.shape
        }
    return compared
