"""Trains the loop's teacher and students, and chooses the one to serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli.errors import InputError
from workflow import choice, crossfit
from workflow.stages import Stage, model_directories, validation


def require_unlabeled(data: Path) -> None:
    """Raises InputError where prepared data have no unlabeled images."""
    if not (data / "unlabeled").is_dir():
        raise InputError(
            f"{data} has no unlabeled images; delete it, and give --unlabeled or set"
            " config.data.labeled_as_unlabeled"
        )


def train_and_choose(
    config: ConfigDict,
    workdir: Path,
    folders: dict[str, str],
    strategy: str,
    stages: list[Stage],
    run: Callable[[Stage], None],
    write: bool = True,
) -> dict[str, Any]:
    """Runs the trainings `stages`, after those of the folds, and chooses the model to serve.

    `write` tells whether to keep the choice in `choice.json`.

    Returns:
      What `choice.json` holds; see `choice.SCHEMA`.
    """
    data = workdir / "data"
    on = choice.basis(config, choice.held_out(data))
    if on == choice.CROSS_FITTING:
        print(f"== {crossfit.announcement(config, choice.held_out(data))}", flush=True)
        for stage in crossfit.plan(config, workdir, folders, strategy):
            run(stage)
        answers = crossfit.collect(workdir, config.crossfit.folds, names_of(config.iterations))
    trained = _train(config, workdir, stages, run, evaluated=on == choice.VALIDATION)
    if on == choice.VALIDATION:
        answers = choice.of_evaluations(workdir, names_of(trained))
    chosen = (
        choice.last(trained, choice.held_out(data))
        if on == choice.LAST
        else choice.decide(on, answers)
    )
    if config.finetune_last:
        chosen["verdict"] += f"; {chosen['served']} is fine-tuned before the export"
    if on != choice.LAST and config.init and (Path(config.init) / "summary.json").exists():
        chosen["verdict"] += (
            f"; {config.init} may have learned from these images, so the numbers may be too high"
        )
    if write:
        choice.write(workdir, chosen)
    for line in choice.estimates(chosen):
        print(f"== {line}", flush=True)
    return chosen


def _train(
    config: ConfigDict,
    workdir: Path,
    stages: list[Stage],
    run: Callable[[Stage], None],
    evaluated: bool,
) -> int:
    """Runs the trainings; with `patience`, until it is exhausted. Returns the number of students.

    `evaluated` tells whether each model is evaluated on the validation split.
    """
    models = model_directories(workdir, config.iterations)
    for stage in stages:
        run(stage)
        if evaluated and stage.directory in models:
            number = models.index(stage.directory)
            run(validation(config, workdir, number, stage.directory))
            scores = choice.of_evaluations(workdir, names_of(number)).right().mean(axis=1).tolist()
            if config.patience and exhausted(scores, config.patience):
                print(
                    f"== stopped: the last {config.patience} students are no better than an "
                    "earlier model",
                    flush=True,
                )
                return number
    return int(config.iterations)


def names_of(students: int) -> list[str]:
    """Returns the names of the teacher and of each student."""
    return [model.name for model in model_directories(Path(), students)]


def exhausted(scores: list[float], patience: int) -> bool:
    """Tells whether the last `patience` scores are no better than the best one before them."""
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])
