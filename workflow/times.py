"""Estimates how long a run takes on this machine, one line per stage, from measured steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from training import estimates, gpus
from workflow import choice, measure, plans
from workflow.measure import Rates
from workflow.plans import Planned
from workflow.stages import ENDING, Stage

BALANCED = 1000.0
"""Images per second that the balancing reads and writes at least."""

MEASURED_IMAGES = 32
"""Number of images of a measured step where the activations are not known."""

MEASURED_GIB = 3.0
"""GiB of activations up to which a whole step is measured; else a part of the batch is."""


@dataclasses.dataclass
class _Timed:
    """Knowledge of a training's time.

    Attributes:
      rates: rates of the training.
      how: "measured", or by which other training's measurement.
    """

    rates: Rates
    how: str


def _work(training: Planned) -> float | None:
    """Returns what a training step computes, to compare two steps; None where it is not known."""
    found = [
        estimates.activations(
            training.network(network),
            training.size,
            network.images,
            1,
            False,
            training.values.get("frozen_blocks", 0),
        )
        for network in training.networks
    ]
    return None if None in found else sum(number for number in found if number)


COSTLY = (
    *("method", "batch_size", "unlabeled_ratio", "labeled", "online", "feedback", "frozen_blocks"),
    *("accumulation", "precision", "rematerialize", "jit_compile"),
    *("frozen_batch_norm", "layer_decay", "head_steps"),
)
"""Settings of a training that change how long a step takes."""


def kind(training: Planned) -> str:
    """Returns a text that is equal for trainings with equally long steps."""
    networks = [training.network(network) for network in training.networks]
    return repr((networks, training.size, {name: training.values.get(name) for name in COSTLY}))


def measurable(training: Planned) -> int:
    """Returns how many labeled images of a step to measure; 0 where the image size is unknown."""
    batch, parts = training.values["batch_size"], training.values.get("accumulation", 1)
    if not training.size:
        return 0
    images = sum(network.images for network in training.networks)
    kept = estimates.activations(
        training.model, training.size, images, 4, False, training.values.get("frozen_blocks", 0)
    )
    share = MEASURED_GIB / kept if kept else MEASURED_IMAGES / images
    return batch if share >= 1 else max(1, int(batch * share) // parts) * parts


def _measured(
    config: ConfigDict, trainings: Sequence[Planned], counts: dict[str, Any]
) -> tuple[dict[str, _Timed], str]:
    """Measures steps of the trainings, the longest first, as long as there is time.

    Returns:
      Name of a training -> what is known of its time; and why a training could not be measured.
    """
    sample = counts["survey"].sample if counts["survey"] else ()
    by_kind: dict[str, tuple[Planned, _Timed]] = {}
    timed: dict[str, _Timed] = {}
    why = ""
    longest_first = sorted(
        trainings, key=lambda training: -training.values["steps"] * (_work(training) or 0)
    )
    try:
        with measure.Bench(config, counts, sample) as bench:
            for training in longest_first:
                measured_kind = kind(training)
                if (
                    measured_kind not in by_kind
                    and bench.spent < measure.BUDGET
                    and (batch := measurable(training))
                ):
                    try:
                        by_kind[measured_kind] = (
                            training,
                            _Timed(bench.rates(training, batch), "measured"),
                        )
                    except measure.Unmeasured as error:
                        why = str(error)
                if measured_kind in by_kind:
                    timed[training.stage.name] = by_kind[measured_kind][1]
    except measure.Unmeasured as error:
        why = str(error)
    for training in trainings:
        if training.stage.name not in timed and (
            found := _by_another(training, list(by_kind.values()))
        ):
            timed[training.stage.name] = found
    return timed, why


def _by_another(training: Planned, known: Sequence[tuple[Planned, _Timed]]) -> _Timed | None:
    """Estimates a training's time from another's, by what their steps and answers compute.

    A training of the same network goes first.
    """
    work, answers = (
        _work(training),
        estimates.activations(training.model, training.size, 1, 1, False),
    )
    for other, timed in sorted(
        known, key=lambda pair: (pair[0].model, pair[0].size) != (training.model, training.size)
    ):
        of_step, of_answer = (
            _work(other),
            estimates.activations(other.model, other.size, 1, 1, False),
        )
        if work and of_step and answers and of_answer:
            step, share = timed.rates.step * work / of_step, answers / of_answer
            first = timed.rates.first - timed.rates.step + step
            rates = Rates(first, step, timed.rates.first_answer, timed.rates.answer * share)
            return _Timed(rates, f"reckoned from {other.stage.name}")
    return None


def seconds(
    config: ConfigDict,
    stages: Sequence[Stage],
    trainings: Sequence[Planned],
    timed: Mapping[str, _Timed],
    counts: Mapping[str, Any],
) -> dict[str, float | None]:
    """Returns the seconds of each unfinished stage, in order; None where they are not known."""
    directories = {training.stage.directory: training.stage.name for training in trainings}
    found: dict[str, float | None] = {}

    def answers(models: Sequence[Path], images: int) -> float | None:
        known = [timed.get(directories.get(model, "")) for model in models]
        return (
            None
            if None in known
            else sum(of.rates.first_answer + images * of.rates.answer for of in known if of)
        )

    for stage in stages:
        if (stage.directory / "summary.json").exists():
            continue
        needed: float | None = 0.0
        if stage.script == "run_prepare_data.sh":
            needed = counts["survey"].seconds if counts["survey"] else None
        elif stage.script in plans.TRAINING:
            of = timed.get(stage.name)
            steps = next(
                training.values["steps"] for training in trainings if training.stage is stage
            )
            needed = of.rates.first + (steps - 1) * of.rates.step if of else None
        elif stage.script == "run_pseudo_label.sh":
            views = max(1, config[stage.arguments["section"]].views)
            needed = answers(
                [Path(stage.arguments["teacher"])],
                plans.images_labeled(config, stage, counts) * views,
            )
        elif stage.script == "run_balance.sh":
            needed = plans.images_labeled(config, stage, counts) / BALANCED
        elif stage.script == "run_evaluate.sh":
            models = [Path(model) for model in str(stage.arguments["model"]).split(",")]
            images = counts.get(stage.arguments.get("split", "test")) or 0
            needed = answers(models, images)
            # The network that the trainings start from gives the linear probe's features.
            probe = answers(models[:1], images + counts["labeled"])
            if "init" in stage.arguments and needed is not None and probe is not None:
                needed += probe
        found[stage.name] = None if needed is None else measure.STARTED + needed
    return found


def table(config: ConfigDict, stages: Sequence[Stage], counts: dict[str, Any]) -> str:
    """Measures, and returns the times as text.

    Raises:
      InputError: the recipe cannot be planned.
    """
    if any(stage.arguments.get("strategy") == "tpu" for stage in stages):
        return "time: not measured; a TPU trains, and a step is measured on this machine only"
    trainings = plans.trainings(config, stages, counts)
    timed, why = _measured(config, trainings, counts)
    found = seconds(config, stages, trainings, timed, counts)
    several = gpus.count() > 1 and not any(
        stage.arguments.get("strategy") == "one_device" for stage in stages
    )
    device = "one of this machine's GPUs; more of them share a batch" if several else "this machine"
    lines, total, open_ones = ["", f"time on {device}:"], 0.0, []
    for name, needed in found.items():
        if needed is None:
            open_ones.append(name)
        total += needed or 0.0
        lines.append(
            (
                f"  {name:<16}{'?' if needed is None else duration(needed):<15}"
                f"{_of_steps(name, trainings, timed)}"
            ).rstrip()
        )
    if choice.basis(config, counts.get("validation", 0)) == choice.CROSS_FITTING:
        again = config.crossfit.folds * sum(
            needed or 0.0 for name, needed in found.items() if name not in (*ENDING, "labels")
        )
        total += again
        lines.insert(
            2,
            f"  {'folds':<16}{duration(again):<15}{config.crossfit.folds} times all that is trained"
            " below, to choose the model",
        )
    lines.append(f"  {'total':<16}{'at least ' if open_ones else 'about '}{duration(total)}")
    if open_ones:
        lines.append(f"not measured: {', '.join(open_ones)}" + (f" ({why})" if why else ""))
    return "\n".join(lines)


def _of_steps(name: str, trainings: Sequence[Planned], timed: Mapping[str, _Timed]) -> str:
    """Returns what a training's time is made of; "" for another stage."""
    for training in trainings:
        if training.stage.name == name and (of := timed.get(name)):
            return (
                f"{training.values['steps']:,} steps; one step takes {of.rates.step:.2g} s,"
                f" {of.how}"
            )
    return ""


def duration(seconds: float) -> str:
    """Returns a time in the largest unit that leaves two digits.

    Examples: "95 s", "25 minutes", "7.5 hours".
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"
