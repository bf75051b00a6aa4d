"""Parts of a row of the papers' tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

RUN = "run"
STAND_IN = "run on a stand-in"
DRY_RUN = "dry run"
READY = "ready, not run"
IMPOSSIBLE = "impossible here"
VERDICTS = {
    RUN: "the command has run whole here, as the paper has it",
    STAND_IN: "the same code has run on other, smaller data; the row says on which",
    DRY_RUN: (
        "the command's plan has the paper's numbers; the run needs the paper's data and devices"
    ),
    READY: "command and settings are checked; it was not run yet",
    IMPOSSIBLE: "no command can make it; the row says why",
}
"""Verdict -> what it means."""


class Differs(NamedTuple):
    """A number of the paper that differs here.

    Attributes:
      paper: the paper's number.
      here: this project's number, which the audit finds again.
      why: the reason, a clause.
    """

    paper: Any
    here: Any
    why: str


class Numbers(NamedTuple):
    """Numbers that the paper gives for one training, or for the data.

    Attributes:
      training: a stage of the loop (`student_1`), a section of a recipe, or `data`.
      source: where the paper has them.
      values: quantity of `experiments.audit` -> number, or `Differs`.
    """

    training: str
    source: str
    values: Mapping[str, Any]


def numbers(training: str, source: str, **values: Any) -> Numbers:
    """Returns `Numbers`."""
    return Numbers(training, source, values)


@dataclasses.dataclass(frozen=True)
class Row:
    """A part of a paper.

    Attributes:
      part: section, equation, figure or table.
      here: where it is in the project, or how it is done.
      verdict: a key of `VERDICTS`.
      items: rows of the paper's table that this row is about, as they are called there.
      commands: commands that would make it; the last one leaves the number.
      numbers: numbers that their dry runs must report.
      ran: files and headings (`docs/results.md#noise`) that hold what was run.
      why: the reason, for what is impossible or differs.
    """

    part: str
    here: str
    verdict: str
    items: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    ran: tuple[str, ...] = ()
    why: str = ""


OF_OTHERS = "models of other authors; the paper cites their numbers"


def of_others(part: str, names: str, why: str = OF_OTHERS) -> Row:
    """Returns the row of a table's models that are from other papers.

    `names` are separated by semicolons.
    """
    return Row(part, "", IMPOSSIBLE, items=tuple(names.split("; ")), why=why)


def loop(variant: str, *overrides: str) -> str:
    """Returns Noisy Student's command on ImageNet; `overrides` are KEY=VALUE."""
    flags = "".join(f" --config.{override}" for override in overrides)
    images = "--labeled=IMAGENET --unlabeled=tar:POOL --workdir=W"
    return (
        "./run_noisy_student.sh"
        f" --config=configs/noisy_student/imagenet.py:{variant} {images}{flags}"
    )


def supervised(recipe: str, labeled: str = "IMAGENET") -> str:
    """Returns the command of a supervised training from images to an exported model."""
    return f"./run_train.sh --config=configs/supervised/{recipe} --labeled={labeled} --workdir=W"


RECIPES = "--config=configs/meta_pseudo_labels/"


def pair(recipe: str, images: str, tuning: str = "") -> tuple[str, ...]:
    """Returns the commands of a recipe: data, the pair, the student's fine-tuning."""
    tuned = f"./run_finetune.sh {RECIPES}{recipe} --data=W/data --init=W/student"
    return (
        f"./run_prepare_data.sh {RECIPES}{recipe} {images} --workdir=W/data",
        f"./run_meta_pseudo_labels.sh {RECIPES}{recipe} --data=W/data --workdir=W/student",
        f"{tuned} --workdir=W/finetuned{tuning}",
    )


def uda(recipe: str, images: str) -> tuple[str, ...]:
    """Returns the command of a UDA baseline."""
    return (f"./run_train.sh --config=configs/uda/{recipe} {images} --workdir=W",)


def evaluate(*flags: str) -> str:
    """Returns the command that evaluates a finished model; `flags` without dashes."""
    return " ".join(
        ["./run_evaluate.sh", *(f"--{flag}" for flag in flags), "--workdir=W/evaluation"]
    )


def study(name: str) -> str:
    """Returns the command of a study on the digits, `NAME.py` or `NAME.py:VARIANT`."""
    return f"./run_experiment.sh study --config=configs/studies/{name} --workdir=W"


def test(path: str) -> str:
    """Returns the command of a test file below tests/."""
    return f"./run_tests.sh tests/{path}"
