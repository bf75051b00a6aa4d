"""Chooses the model that the loop serves: the best of teacher and students, on held-out images.

A student replaces the best model before it if it is right on more of the same images. `basis` says
which images these are:

- `VALIDATION`: the validation split, where it has at least `FEWEST` images, or with `patience`.
- `CROSS_FITTING`: all labeled images, answered by models that did not learn from them
  (`workflow.crossfit`).
- `LAST`: there are no such images. The last student is served.

`<workdir>/choice.json` holds what `decide` returns. It is written before the evaluation stage runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, write_json
from data.draws import FEWEST
from evaluation import results, statistics

FILE = "choice.json"
VALIDATION, CROSS_FITTING, LAST = "validation", "cross-fitting", "last"

COMPARISON = {
    "model": str,
    "to": str,
    "difference": float,
    "interval": [float, float],
    "p_value": float,
}
SCHEMA = {
    "served": str,
    "on": str,
    "images": int,
    "models": {str: {"top1": float}},
    "comparisons": [{**COMPARISON, "replaces": bool}],
    "to_teacher": (COMPARISON, None),
    "verdict": str,
}
"""Schema of `choice.json`.

- `served`: name of the chosen model: `teacher`, `student_1`, ….
- `on`: `VALIDATION`, `CROSS_FITTING` or `LAST`.
- `images`: number of images that decided; with `LAST` the held-out images, which are too few.
- `models`: name -> `top1`, the share of right answers in 0-1; empty with `LAST`.
- `comparisons`: each student with the best model before it. `difference` is the student's share of
  right answers minus the share of `to`, on the same images. `interval` is its 95 % interval (paired
  bootstrap), `p_value` McNemar's. `replaces` tells whether the student is better.
- `to_teacher`: the best student compared with the teacher; null with `LAST`.
- `verdict`: one sentence, for people: did the unlabeled images help?
"""

PREPARED = {
    "splits?": {"labeled?": {"images": int}, "validation?": {"images": int}},
    "in_no_fold?": int,
}
ADVICE = (
    "try more unlabeled images of the same classes, a higher balance.threshold or a lower"
    " student.schedule.base"
)


class Answers(NamedTuple):
    """The answers of several models for the same labeled images.

    Attributes:
      keys: str [N], unique, as in the records.
      labels: int64 [N], 0-based.
      models: names of the M models, the teacher first.
      probabilities: float32 [M, N, K], of each class.
      folds: int64 [N], the fold that holds the image, from 1; 0 without cross-fitting.
    """

    keys: np.ndarray
    labels: np.ndarray
    models: tuple[str, ...]
    probabilities: np.ndarray
    folds: np.ndarray

    def right(self) -> np.ndarray:
        """Returns which answers are right, bool [M, N]."""
        right: np.ndarray = self.probabilities.argmax(axis=2) == self.labels
        return right

    def write(self, path: Path) -> None:
        """Writes an `.npz` file with these arrays, atomically; `models` is str [M]."""
        with atomic_path(path) as temporary, open(temporary, "wb") as f:
            np.savez(f, **{**self._asdict(), "models": np.array(self.models)})


def read_answers(path: Path) -> Answers:
    """Reads what `Answers.write` wrote. Raises FileNotFoundError where there is none."""
    stored = results.load(path)
    keys, labels, probabilities, folds = (
        stored[name] for name in ("keys", "labels", "probabilities", "folds")
    )
    return Answers(keys, labels, tuple(stored["models"].tolist()), probabilities, folds)


def of_evaluations(workdir: Path, models: Sequence[str], fold: int = 0) -> Answers:
    """Reads the answers of `models` to a validation split, from `stages.validation`'s directories.

    Raises:
      InputError: the evaluations are not of the same images.
    """
    found = [
        results.load(workdir / f"{VALIDATION}_{number}" / name / "predictions.npz")
        for number, name in enumerate(models)
    ]
    keys, labels = found[0]["keys"], found[0]["labels"]
    for number, answers in enumerate(found):
        if not (
            np.array_equal(answers["keys"], keys) and np.array_equal(answers["labels"], labels)
        ):
            directory = workdir / f"{VALIDATION}_{number}"
            raise InputError(
                f"{directory} is of other images than {VALIDATION}_0; delete both, and the same"
                " command evaluates again"
            )
    probabilities = np.stack([answers["probabilities"] for answers in found])
    return Answers(keys, labels, tuple(models), probabilities, np.full(len(keys), fold, np.int64))


def held_out(data: Path) -> int:
    """Counts the images in the validation split of prepared data."""
    splits = read_json(data / "summary.json", PREPARED).get("splits", {})
    return int(splits.get("validation", {"images": 0})["images"])


def basis(config: ConfigDict, images: int) -> str:
    """Returns the images by which a recipe chooses: `VALIDATION`, `CROSS_FITTING` or `LAST`.

    Args:
      config: the recipe.
      images: number of images in the validation split.
    """
    if config.patience:
        return VALIDATION
    if images >= FEWEST or (images and config.data.validation_size is None):
        return VALIDATION
    return CROSS_FITTING if config.crossfit.folds else LAST


def decide(on: str, answers: Answers) -> dict[str, Any]:
    """Chooses among the models of `answers`. Returns what `SCHEMA` describes.

    Args:
      on: `VALIDATION` or `CROSS_FITTING`.
      answers: to at least one image.
    """
    right, names = answers.right(), answers.models
    best, comparisons = 0, []
    for student in range(1, len(names)):
        found = _compared(right, names, student, best)
        replaces = found["difference"] > 0
        comparisons.append({**found, "replaces": replaces})
        best = student if replaces else best
    strongest = best or 1 + int(right[1:].sum(axis=1).argmax())
    choice = {
        "served": names[best],
        "on": on,
        "images": len(answers.keys),
        "models": {name: {"top1": float(row.mean())} for name, row in zip(names, right)},
        "comparisons": comparisons,
        "to_teacher": _compared(right, names, strongest, 0),
    }
    return {**choice, "verdict": verdict(choice)}


def last(students: int, images: int) -> dict[str, Any]:
    """Returns the choice of the last student.

    Args:
      students: number of students.
      images: number of held-out images, too few to decide.
    """
    name = f"student_{students}"
    choice = {
        "served": name,
        "on": LAST,
        "images": images,
        "models": {},
        "comparisons": [],
        "to_teacher": None,
    }
    return {**choice, "verdict": verdict(choice)}


def write(workdir: Path, choice: dict[str, Any]) -> None:
    """Writes `choice.json` into the loop's work directory, atomically."""
    write_json(workdir / FILE, choice)


def verdict(choice: dict[str, Any]) -> str:
    """Says in one sentence whether the unlabeled images helped, and what is exported."""
    served, images = choice["served"], choice["images"]
    if choice["on"] == LAST:
        few = (
            f"only {images} validation images were held out, {FEWEST} are needed"
            if images
            else "no validation images were held out"
        )
        return (
            f"not known whether the unlabeled images helped: {few}; the last student, {served}, is"
            " exported"
        )
    of = (
        f"of {images:,} "
        f"""{
            "validation images"
            if choice["on"] == VALIDATION
            else "labeled images, by cross-fitting"
        }"""
    )
    found = choice["to_teacher"]
    points, (low, high) = 100 * found["difference"], (100 * end for end in found["interval"])
    interval = f"95 % interval {_signed(low)} to {_signed(high)}"
    top1 = f"{100 * choice['models'][served]['top1']:.1f} %"
    if served != "teacher":
        chance = ", which may be chance" if low <= 0 or found["p_value"] > 0.05 else ""
        return f"{served}: {top1} {of}, {points:.1f} points above the teacher{chance} ({interval})"
    behind = f"{-points:.1f} points below" if points else "as good"
    return (
        f"no student is better than the teacher: the teacher is exported ({top1} {of}; "
        f"the best student, {found['model']}, is {behind}, {interval}); {ADVICE}"
    )


def estimates(choice: dict[str, Any]) -> list[str]:
    """Returns a line for each comparison of a choice, with its estimate."""
    lines = []
    for row in choice["comparisons"]:
        top1 = f"{100 * choice['models'][row['model']]['top1']:.1f} %"
        low, high = (_signed(100 * end) for end in row["interval"])
        lines.append(
            f"{row['model']}: {top1} of {choice['images']:,} held-out images; minus {row['to']}:"
            f" {_signed(100 * row['difference'])} points (95 % interval {low} to {high}, McNemar p"
            f" = {row['p_value']:.2g})"
        )
    return lines


def _compared(right: np.ndarray, names: Sequence[str], student: int, other: int) -> dict[str, Any]:
    """Compares a model with another one on the same images; right: bool [M, N]."""
    found = statistics.compare(right[other], right[student])
    return {
        "model": names[student],
        "to": names[other],
        "difference": found.difference,
        "interval": list(found.interval),
        "p_value": found.p_value,
    }


def _signed(points: float) -> str:
    """Returns a number of points with one decimal, and no minus before 0.0."""
    text = f"{points:.1f}"
    return "0.0" if text == "-0.0" else text
