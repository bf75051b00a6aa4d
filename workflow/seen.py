"""Reads what the models of an iteration say of each image, labeled and unlabeled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cli import work_dirs
from cli.errors import InputError
from cli.json_files import read_json
from data.records import Manifest, read_manifest
from data.verification import read_records
from workflow import choice, crossfit
from workflow.predictions import read_predictions

_BALANCE = {"threshold": float, "max_confidence": float, "fraction": float}


class ImageAnswers(NamedTuple):
    """One image and the models' answers to it; classes are numbers from 0, −1 where unknown.

    `predicted`, `first` and `margin` belong to the mean of the teacher's and the student's
    distribution. They are its most probable class, that class's probability, and the difference to
    the second most probable class.
    """

    key: str
    role: str
    label: int
    confidence: float | None
    kept: int
    why: str
    teacher: int
    student: int
    predicted: int = -1
    first: float = 1.0
    margin: float = 1.0


def out_of_fold(workdir: Path, iteration: int) -> tuple[Mapping[str, np.ndarray], str]:
    """Returns the answers of teacher and student trained without the image, and a remark.

    The answers are key -> probabilities float32 [2, K]. The teacher of iteration N is model N − 1,
    the student is model N.
    """
    path = workdir / crossfit.FOLDER / crossfit.ANSWERS
    if not path.exists():
        return {}, " (cross-fitting is needed to tell, see crossfit.folds)"
    found = choice.read_answers(path)
    keys, models, probabilities = found.keys, list(found.models), found.probabilities
    wanted = ["teacher" if n == 0 else f"student_{n}" for n in (iteration - 1, iteration)]
    if not set(wanted) <= set(models):
        return {}, f" (cross-fitting has no {wanted[1]})"
    both = probabilities[[models.index(name) for name in wanted]]  # (2, N, K)
    return {str(key): both[:, place] for place, key in enumerate(keys)}, ""


def labeled(images: Manifest, out_of_fold: Mapping[str, np.ndarray]) -> Iterator[ImageAnswers]:
    """Yields the labeled images with the answers of `out_of_fold`, where an image has some."""
    for shard in range(len(images.files)):
        for serialized in read_records(images, shard):
            features = tf.train.Example.FromString(serialized).features.feature
            key = features["image/key"].bytes_list.value[0].decode("utf-8")
            label = features["image/class/label"].int64_list.value[0] - images.label_offset
            both = out_of_fold.get(key)
            if both is None:
                yield ImageAnswers(key, "labeled", label, None, 1, "", -1, -1)
            else:
                teacher, student = both.argmax(axis=1).tolist()
                yield ImageAnswers(
                    key, "labeled", label, float(both[0, label]), 1, "", teacher, student
                )


def unlabeled(workdir: Path, iteration: int) -> Iterator[ImageAnswers]:
    """Yields the unlabeled images with the teacher's answers and, where known, the student's."""
    directory = workdir / f"pseudo_labeled_{iteration}"
    summary = work_dirs.require_finished(
        directory,
        "pseudo-labels",
        "run_balance.sh",
        {"images_per_class?": (int, None), "targets?": ([int], None)},
    )
    settings = read_json(directory / "config.json", {"balance?": _BALANCE}).get("balance")
    kept, teacher = read_manifest(directory, "pseudo_labeled"), _predictions(workdir, iteration)
    if teacher is None:
        raise InputError(
            f"{workdir / f'predictions_{iteration}'} is not finished; finish the run with"
            " run_noisy_student.sh"
        )
    student = _predictions(workdir, iteration + 1)
    for shard in range(len(teacher.files)):
        copies = Counter(_keys(kept, shard))
        answers = dict(read_predictions(student, shard)) if student else {}
        for key, probabilities in read_predictions(teacher, shard):
            label, others = int(probabilities.argmax()), answers.get(key)
            confidence, number = float(probabilities[label]), copies[key]
            # Where a selection is labeled again, all of its images are kept.
            why = (
                ""
                if number or not settings
                else _why_not(
                    confidence,
                    settings,
                    summary["targets"][label]
                    if summary.get("targets")
                    else summary["images_per_class"],
                )
            )
            of_student = -1 if others is None else int(others.argmax())
            mean = probabilities if others is None else (probabilities + others) / 2
            second, first = np.sort(mean)[-2:].tolist()
            top = (int(mean.argmax()), first, first - second)
            yield ImageAnswers(
                key, "unlabeled", label, confidence, number, why, label, of_student, *top
            )


def _predictions(workdir: Path, number: int) -> Manifest | None:
    """Returns the manifest of model `number` − 1's answers; None where they are unfinished."""
    directory = workdir / f"predictions_{number}"
    return (
        read_manifest(directory, "predictions") if (directory / "summary.json").exists() else None
    )


def _keys(records: Manifest, shard: int) -> Iterator[str]:
    for serialized in read_records(records, shard):
        yield (
            tf.train.Example.FromString(serialized)
            .features.feature["image/key"]
            .bytes_list.value[0]
            .decode("utf-8")
        )


def _why_not(confidence: float, balance: Mapping[str, float], images_per_class: int | None) -> str:
    """Says why a pseudo-label was not kept; `balance`: settings of that section."""
    if confidence <= balance["threshold"] + 0.001:  # answers are stored in float16
        return f"not above the threshold {balance['threshold']:g}"
    if confidence > balance["max_confidence"]:
        return f"above max_confidence {balance['max_confidence']:g}"
    if records := balance.get("sample_images"):
        return (
            f"not drawn (balance.sample_images={records:,.0f}), or not among the most confident of"
            " its class"
        )
    if balance["fraction"] < 1:
        return (
            f"not drawn (balance.fraction={balance['fraction']:g}), or not among the most confident"
            " of its class"
        )
    return f"only the {images_per_class or 0:,} most confident of its class are kept"
