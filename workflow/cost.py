"""Computes what a run costs: time on this machine, memory and disk space, and whether it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from cli import machine
from cli.errors import InputError
from cli.machine import GIB
from training import architectures, estimates, gpus
from workflow import choice, crossfit, labels, plans, times
from workflow.plans import Planned
from workflow.stages import Stage

BASE = 0.9
"""GiB of a training process besides weights and activations: TensorFlow, input, images ahead."""

WORKSPACE = 1.0
"""Ratio: GiB used to GiB of activations that the backward pass keeps."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory that a training needs, and memory that there is.

    Attributes:
      training: the training that needs most.
      needed: GiB that it needs.
      there: GiB of the GPU or of the machine; None: not known.
      device: "the GPU" or "this machine".
      batch_size: batch size that would fit; 0: none.
    """

    training: Planned
    needed: float
    there: float | None
    device: str
    batch_size: int

    @property
    def fits(self) -> bool:
        """Tells whether the training fits, as far as is known."""
        return self.there is None or self.needed <= self.there

    def __str__(self) -> str:
        there = (
            f"{self.device} has {self.there:,.1f} GiB"
            if self.there is not None
            else f"the memory of {self.device} is unknown"
        )
        return f"{self.training.stage.name} needs about {self.needed:,.1f} GiB of memory; {there}"


@dataclasses.dataclass(frozen=True)
class Disk:
    """Disk space that a run needs, and free disk space, in GiB."""

    needed: float
    free: float

    @property
    def fits(self) -> bool:
        """Tells whether the run fits."""
        return self.needed <= self.free

    def __str__(self) -> str:
        return f"the run needs about {self.needed:,.1f} GiB of disk; {self.free:,.1f} GiB are free"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of the unfinished stages; `memory` is None where it is not known."""

    memory: Memory | None
    disk: Disk

    def problem(self) -> str:
        """Returns what cannot fit and which setting to lower; "" where all fits."""
        if self.memory and not self.memory.fits:
            section, batch = self.memory.training.section, self.memory.batch_size
            now = self.memory.training.values["batch_size"]
            lower = (
                f"set config.{section}.batch_size={batch} (now {now})"
                if batch
                else "choose a smaller network"
            )
            return (
                f"{self.memory}: {lower}, or lower config.preprocessing.image_size (now"
                f" {self.memory.training.size})"
            )
        if not self.disk.fits:
            return (
                f"{self.disk}: free some, name a --workdir on another disk, or lower"
                " keep_checkpoints of the trainings"
            )
        return ""


def needs(
    training: Planned,
    counts: Mapping[str, Any],
    batch_size: int,
    on_gpu: bool,
    devices: int,
    fused: bool = False,
) -> float | None:
    """Returns the GiB that a training takes on each device, with a batch of `batch_size`.

    None where its activations are not known. `fused`: XLA compiles the step, as on every TPU.
    """
    total, values = (0.0 if on_gpu else BASE), training.values
    fused = fused or values.get("jit_compile", False)
    for network in training.networks:
        model = training.network(network)
        images = (
            network.images
            * batch_size
            / values["batch_size"]
            / values.get("accumulation", 1)
            / devices
        )
        bytes_each, frozen = (
            (4 if values["precision"] == "float32" else 2),
            values.get("frozen_blocks", 0),
        )
        one_image = estimates.activations(
            model, training.size, 1, bytes_each, network.rematerialize, frozen, fused
        )
        if one_image is None:
            return None
        parameters = estimates.count_parameters(
            model, counts["classes"], training.size, frozen, values.get("frozen_batch_norm", False)
        )
        kept = network is training.networks[0]
        # The network that is kept has an average, too.
        fixed = 4 * (2 if kept else 1) * (parameters.all - parameters.trained) / GIB
        total += (
            estimates.of_weights(parameters.trained, kept) + fixed + WORKSPACE * images * one_image
        )
    if training.teacher and architectures.find(training.teacher["name"]).parameters:
        total += 4 * estimates.count_parameters(training.teacher, counts["classes"]).all / GIB
    return total


def _memory(trainings: Sequence[Planned], counts: Mapping[str, Any]) -> Memory | None:
    """Returns the need of the training that needs most.

    None where that is not known, or where another machine trains.
    """
    if any(training.stage.arguments.get("strategy") == "tpu" for training in trainings):
        return None
    devices = gpus.count()
    one = any(training.stage.arguments.get("strategy") == "one_device" for training in trainings)
    there, device = (gpus.memory(), "the GPU") if devices else (machine.memory(), "this machine")
    known = []
    for training in trainings:
        spread = 1 if one else max(1, devices)
        needed = needs(training, counts, training.values["batch_size"], devices > 0, spread)
        if needed is None:
            continue
        batch = training.values["batch_size"] // 2
        while (
            there
            and batch
            and (needs(training, counts, batch, devices > 0, spread) or 0) > there / GIB
        ):
            batch //= 2
        known.append(Memory(training, needed, there / GIB if there else None, device, batch))
    return max(known, key=lambda memory: memory.needed, default=None)


def _disk(
    config: ConfigDict,
    workdir: Path,
    stages: Sequence[Stage],
    trainings: Sequence[Planned],
    counts: Mapping[str, Any],
) -> Disk:
    """Computes the disk space of the shards, stored predictions, checkpoints and models."""
    files = counts["survey"].file_bytes if counts["survey"] else 0
    needed = 0.0
    for stage in stages:
        if stage.name == "prepare":
            needed += files
        if stage.script == "run_balance.sh":
            images = plans.images_labeled(config, stage, counts)
            needed += images * plans.label_bytes(counts["classes"])
            if config.balance.copy_images:  # the images once more
                needed += files * images / max(1, counts["unlabeled"])
        if stage.script == "run_pseudo_label.sh":
            needed += plans.images_labeled(config, stage, counts) * plans.prediction_bytes(
                config, [stage], counts["classes"]
            )
    for training in trainings:
        for network in training.networks:
            model = training.network(network)
            if not architectures.find(model["name"]).parameters:
                continue
            parameters = estimates.count_parameters(model, counts["classes"])
            kept = training.values["keep_checkpoints"] + 1  # while one is written
            needed += 4 * (kept * (2 * parameters.all + 2 * parameters.trained) + parameters.all)
    needed *= 1 + again(config, workdir, counts)
    begun = [*(stage.directory for stage in stages), workdir / crossfit.FOLDER]
    there = sum(
        file.stat().st_size for place in begun for file in place.rglob("*") if file.is_file()
    )
    return Disk(max(0.0, needed - there) / GIB, machine.disk_free(workdir) / GIB)


def again(config: ConfigDict, workdir: Path, counts: Mapping[str, Any]) -> int:
    """Returns how many more times cross-fitting trains everything."""
    by_folds = choice.basis(config, counts.get("validation", 0)) == choice.CROSS_FITTING
    return (
        config.crossfit.folds
        if by_folds and not (workdir / crossfit.FOLDER / crossfit.ANSWERS).exists()
        else 0
    )


def cost(
    config: ConfigDict, workdir: Path, stages: Sequence[Stage], counts: dict[str, Any]
) -> tuple[Cost, list[Planned]]:
    """Returns what the unfinished stages need, and the trainings among them.

    Raises:
      InputError: they cannot be planned.
    """
    left = [stage for stage in stages if not (stage.directory / "summary.json").exists()]
    trainings = [
        training for training in plans.trainings(config, stages, counts) if training.stage in left
    ]
    return (
        Cost(_memory(trainings, counts), _disk(config, workdir, left, trainings, counts)),
        trainings,
    )


def announce(
    config: ConfigDict, workdir: Path, folders: dict[str, str], stages: Sequence[Stage]
) -> None:
    """Prints in one line what a run will cost, before its first stage.

    Prints nothing where the images are not known yet.

    Raises:
      InputError: the run cannot fit.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # the first stage reports on the files
    try:
        counts = estimates.images(config, workdir / "data", folders, quick=True)
    except InputError:  # the first stage reports this, too
        return
    finally:
        logging.set_verbosity(verbosity)
    if not (
        counts["survey"]
        or config.data.source == "digits"
        or (workdir / "data" / "summary.json").exists()
    ):
        return  # the recipe's expected counts may not be the real ones
    found, trainings = cost(config, workdir, stages, counts)
    if problem := found.problem():
        raise InputError(problem)
    if not trainings:
        return
    times_all = 1 + again(config, workdir, counts)
    steps = times_all * sum(training.values["steps"] for training in trainings)
    images = times_all * sum(
        training.values["steps"] * training.networks[0].images for training in trainings
    )
    memory = f", {found.memory.needed:,.1f} GiB of memory" if found.memory else ""
    disk = f"{found.disk.needed:,.1f} GiB of disk"
    count = times_all * len(trainings)
    number = f"{count} training{'s' if count > 1 else ''}"
    print(
        f"to come: {number}, {steps:,} steps, {images:,} images; about {disk}{memory}; --dry_run"
        " measures the time",
        flush=True,
    )
    for hint in plans.advice(config, counts):
        print(hint, flush=True)


def dry_run(
    config: ConfigDict, workdir: Path, folders: dict[str, str], stages: Sequence[Stage]
) -> None:
    """Prints the plan of a run, and what it costs in memory, disk and time; measures a step for it.

    Args:
      config: the recipe.
      workdir: work directory of the run.
      folders: source directories by flag name.
      stages: stages that `loop.plan` returns.

    Raises:
      InputError: the run would refuse its input, or cannot fit on this machine. Where something is
        missing, a run that cannot fit is reported, not refused: it may run on another machine.
    """
    counts = estimates.images(config, workdir / "data", folders)
    stages = labels.foreseen(config, workdir, folders, stages, counts["unlabeled"])
    print(plans.describe(config, workdir, folders, stages, counts))
    found, trainings = cost(config, workdir, stages, counts)
    if not trainings:
        return
    print(f"memory: {found.memory}" if found.memory else "memory: not known")
    print(f"disk: {found.disk}", flush=True)
    problem = found.problem()
    print(
        (
            f"time: not measured, because the run does not fit: {problem}"
            if problem
            else times.table(config, stages, counts)
        ),
        flush=True,
    )
    if problem:
        print("Add --devices=8 --device=A100, or the like, to plan for other devices.", flush=True)
    if problem and not plans.missing(config, workdir, folders, stages):
        raise InputError(problem)
