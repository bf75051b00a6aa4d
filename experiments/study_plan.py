"""Plans a study: its trainings, steps, images, and their time on this machine.

The command is `run_experiment.sh study --dry_run`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cli import recipes
from cli.json_files import to_json
from experiments.study_runs import commands, linked
from training import estimates
from workflow import cost, loop, measure, one_method, plans, times, train
from workflow.plans import Planned
from workflow.stages import Stage

TRAINING = {"run_train.sh", "run_meta_pseudo_labels.sh", "run_noisy_student.sh"}
"""Scripts that count: a method's own.

In a run of several stages, a teacher's or a fine-tuning's script does not count.
"""

BUDGET = 300.0
"""Seconds after which no further kind of training is measured."""


class Part(NamedTuple):
    """A script's call in a run.

    Attributes:
      recipe: recipe of the call.
      counts: what `training.estimates.images` returns.
      trainings: trainings that it carries out itself, without trainings that are linked.
      times: how often it carries them out; more than once with cross-fitting.
    """

    recipe: ConfigDict
    counts: dict[str, Any]
    trainings: list[Planned]
    times: int


def plan(config: ConfigDict, workdir: Path) -> str:
    """Returns a line for each run, over all seeds, and the time of the trainings.

    What is linked is left out.

    A step of each kind of training is measured once, however many runs and seeds have it.

    Raises:
      InputError: the images or a recipe cannot be used.
    """
    lines, sums = (
        [f"{'run':<24}{'trainings':>10}{'steps':>10}{'images':>14}"],
        np.zeros(3, np.int64),
    )
    clock = _Clock()
    images: dict[str, dict[str, Any]] = {}
    hours: list[str] = []
    total, complete = 0.0, True
    for name, *_ in config.runs:
        counts, seconds = np.zeros(3, np.int64), 0.0
        for part in _parts(config, workdir, name, images):
            for training in part.trainings:
                steps = training.values["steps"]
                counts += part.times * np.array([1, steps, steps * _images(training)])
                needed = clock.seconds(part, training)
                complete = complete and needed is not None
                seconds += part.times * (needed or 0.0)
        lines.append(f"{name:<24}" + "{:>10,}{:>10,}{:>14,}".format(*counts * config.seeds))
        hours.append(f"  {name:<22}{times.duration(seconds * config.seeds)}")
        sums += counts * config.seeds
        total += seconds * config.seeds
    lines.append(f"{f'{config.seeds} seeds, all runs':<24}" + "{:>10,}{:>10,}{:>14,}".format(*sums))
    about = f"{'about' if complete else 'at least'} {times.duration(total)}"
    return "\n".join([*lines, "", f"time of the trainings on this machine: {about}", *hours])


def _images(training: Planned) -> int:
    """Returns the images of a step, each counted once."""
    values = training.values
    first = values["batch_size"] if values.get("labeled", True) else 0
    return int(first + values["batch_size"] * values["unlabeled_ratio"])


def _parts(
    config: ConfigDict, workdir: Path, name: str, known: dict[str, dict[str, Any]]
) -> Iterator[Part]:
    """Yields the calls of a run that train.

    `known` maps what the data depend on to what is known of the images.
    """
    for words, directory in commands(config, workdir, name, config.first_seed):
        if words[0] not in TRAINING:
            continue
        recipe = recipes.from_flags(*(word for word in words if word.startswith("--config")))
        flags = dict(
            word[2:].split("=", 1) for word in words[1:] if not word.startswith("--config")
        )
        folders: dict[str, str] = {
            role: flags[role] for role in ("labeled", "unlabeled", "test") if role in flags
        }
        data = Path(flags.get("data", directory / "data"))
        recipe, stages = _stages(recipe, words[0], directory, folders, alone="data" in flags)
        key = to_json([recipe.seed, recipe.data.to_dict(), recipe.expected.to_dict(), folders])
        if key not in known:
            known[key] = estimates.images(recipe, data, folders)
        trainings = plans.trainings(recipe, stages, known[key])
        counted = [
            training for training in trainings if training.stage.name not in linked(config, name)
        ]
        yield Part(recipe, known[key], counted, 1 + cost.again(recipe, directory, known[key]))


def _stages(
    recipe: ConfigDict, script: str, directory: Path, folders: dict[str, str], *, alone: bool
) -> tuple[ConfigDict, list[Stage]]:
    """Returns the recipe as `cost` reads it, and the stages of a script.

    `alone`: a training on prepared data, not all stages.

    Raises:
      InputError: the recipe's settings are impossible.
    """
    if script == "run_noisy_student.sh":
        loop.check_loop(recipe)
        return recipe, loop.plan(recipe, directory, folders, "auto")
    init = train.initial_of(recipe, "train")
    options = {"section": "train", **({"init": init} if init else {})}
    train.check_training(recipe, "train", init=bool(init))
    recipe = one_method.alone(recipe, init)
    if alone:
        return recipe, [Stage(directory.name, "run_train.sh", directory, options)]
    return recipe, one_method.plan(recipe, directory, folders, options)


class _Clock:
    """Measured steps, one for each kind of training."""

    def __init__(self) -> None:
        self._known: dict[str, measure.Rates | None] = {}
        self._began = time.perf_counter()

    def seconds(self, part: Part, training: Planned) -> float | None:
        """Returns the seconds of a training.

        Returns None where they cannot be measured, or the time for that is spent.
        """
        kind = times.kind(training)
        batch = times.measurable(training)
        if kind not in self._known and batch and time.perf_counter() - self._began < BUDGET:
            sample = part.counts["survey"].sample if part.counts["survey"] else ()
            try:
                with measure.Bench(part.recipe, part.counts, sample) as bench:
                    self._known[kind] = bench.rates(training, batch)
            except measure.Unmeasured:
                self._known[kind] = None
        found = self._known.get(kind)
        return found.first + (training.values["steps"] - 1) * found.step if found else None
