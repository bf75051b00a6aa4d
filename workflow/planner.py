r"""Plans a run for devices that are not here: what fits, what must change, and what it costs.

    ./run_noisy_student.sh --config=configs/noisy_student/imagenet.py:b7 --dry_run \
        --devices=8 --device=A100 --workdir=W

Each training keeps its epochs. The plan takes the first of these ways that fits:

1. the recipe as it is;
2. `rematerialize`, which changes no number and repeats the forward pass;
3. with it bfloat16, where the recipe computes in float32;
4. with these `accumulation`, so that BatchNorm normalizes each part by itself;
5. a smaller batch: half of it takes twice the steps. The learning rate follows the batch by itself.

Memory is computed as in the other dry runs: weights and all that goes with them, and every map
that the backward pass keeps. XLA, which compiles the steps of a TPU, keeps fewer maps.
`./run_benchmarks.sh planned_memory` compares. `RESERVE` of a device's memory is left for the
framework. Hours are operations / (devices · peak · share), see
`workflow.accelerators`. They leave out input, evaluation and waiting for other devices.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import to_json
from data import records
from training import architectures, estimates
from workflow import cost, plans, train
from workflow.accelerators import ACCELERATORS, GIB, Accelerator
from workflow.plans import Planned
from workflow.stages import Stage

RESERVE = 0.08
"""Share of a device's memory that the framework keeps for itself."""
MOST_PARTS = 16
"""Most parts of a batch, computed one after another. The step's graph grows as many times."""
IMAGE_BYTES = 110_000
"""Bytes of a stored image where they are not known: ImageNet's mean JPEG."""
UNITS = {"GiB": 2**30, "GB": 10**9, "TiB": 2**40, "TB": 10**12}


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices of a plan.

    Attributes:
      name: name of the device; "" where it is unknown: then the plan has no hours.
      devices: number of replicas, one a device.
      memory: bytes of each device.
    """

    name: str
    devices: int
    memory: float

    @classmethod
    def of_flags(cls, devices: int, memory: str | None, device: str | None) -> Target | None:
        """Returns the devices that the flags name; None where they name none.

        Raises:
          InputError: unknown device or memory, or no memory.
        """
        if not (devices or memory or device):
            return None
        if device is not None and device not in ACCELERATORS:
            raise InputError(f"--device: no device {device!r}; known: {', '.join(ACCELERATORS)}")
        if memory is None and device is None:
            raise InputError("--devices needs --memory, such as 80GiB, or --device")
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(GiB|GB|TiB|TB)", memory or "1GiB")
        if not found or float(found[1]) <= 0:
            raise InputError(
                f"--memory={memory}: a number with a unit is needed, such as 80GiB or 80GB"
            )
        of_flag = float(found[1]) * UNITS[found[2]]
        return cls(
            device or "", max(1, devices), of_flag if memory else ACCELERATORS[str(device)].memory
        )

    @property
    def accelerator(self) -> Accelerator | None:
        """Returns the accelerator with its peak rates; None where the device is unknown."""
        return ACCELERATORS.get(self.name)

    @property
    def fused(self) -> bool:
        """Tells whether XLA compiles every step on the device."""
        return bool(self.accelerator and self.accelerator.fused)

    def __str__(self) -> str:
        return f"{self.devices:,} x {self.name or 'device'} of {self.memory / GIB:,.1f} GiB"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The way a training runs on the devices.

    Attributes:
      training: the training with the values chosen.
      changes: setting -> (value of the recipe, value chosen).
      needed: bytes needed on each device; None where the activations are not known.
      fits: whether a device has that memory.
    """

    training: Planned
    changes: Mapping[str, tuple[Any, Any]]
    needed: float | None
    fits: bool


def ways(config: ConfigDict, training: Planned, devices: int) -> Iterator[Planned]:
    """Yields the ways to run a training, the recipe's first; see the module."""
    method, recipe = train.find(config, training.section), training.values

    def with_(**values: Any) -> Planned:
        changed = {**recipe, **values}
        return training._replace(values=changed, networks=method.networks(changed))

    yield training
    base: dict[str, Any] = {"rematerialize": True}
    if not recipe.get("rematerialize"):
        yield with_(**base)
    if recipe["precision"] == "float32":
        base["precision"] = "mixed_bfloat16"
        yield with_(**base)
    batch, steps = recipe["batch_size"], recipe["steps"]
    smaller: dict[str, Any] = {}
    while batch % devices == 0:
        if smaller:
            yield with_(**base, **smaller)
        parts = 2 * recipe.get("accumulation", MOST_PARTS)  # some methods cannot accumulate
        while parts <= MOST_PARTS and batch % (devices * parts) == 0:
            yield with_(**base, **smaller, accumulation=parts)
            parts *= 2
        if batch % 2:
            return
        batch, steps = batch // 2, steps * 2
        smaller = {"batch_size": batch, "steps": steps}


def choose(
    config: ConfigDict, training: Planned, counts: Mapping[str, Any], target: Target
) -> Choice:
    """Returns the first way that fits, or the one that needs least.

    Raises:
      InputError: the devices do not divide the batch.
    """
    batch, room = training.values["batch_size"], target.memory * (1 - RESERVE)
    if batch % target.devices:
        raise InputError(
            f"--devices={target.devices}: config.{training.section}.batch_size={batch} does not"
            " divide among them"
        )
    found: list[tuple[float, Planned]] = []
    for way in ways(config, training, target.devices):
        needed = cost.needs(
            way, counts, way.values["batch_size"], True, target.devices, target.fused
        )
        if needed is None:
            return Choice(training, {}, None, True)
        found.append((needed * GIB, way))
        if needed * GIB <= room:
            break
    needed, way = min(found, key=lambda pair: pair[0]) if found[-1][0] > room else found[-1]
    keys: tuple[str, ...] = ("rematerialize", "precision", "accumulation", "batch_size")
    section = config[training.section]
    # Otherwise the steps follow the epochs, or the batch.
    keys += ("steps",) if section.get("steps") and not section.get("steps_for_batch") else ()
    before, after = training.values, way.values
    changes = {
        key: (before[key], after[key]) for key in keys if key in after and before[key] != after[key]
    }
    return Choice(way, changes, needed, needed <= room)


def operations(training: Planned, counts: Mapping[str, Any]) -> float | None:
    """Counts a training's operations; None where they are not known.

    They are 6 per multiplication of the forward pass, 8 where the forward pass is repeated.
    """
    total = 0.0
    for network in training.networks:
        model = (
            training.model if not network.name else dict(network.settings(training.values)["model"])
        )
        each = _multiply_adds(model, training.size, counts)
        if each is None:
            return None
        total += (
            training.values["steps"] * network.images * each * (8 if network.rematerialize else 6)
        )
    return total


def _multiply_adds(
    model: Mapping[str, Any], size: int | None, counts: Mapping[str, Any]
) -> int | None:
    count = architectures.find(model["name"]).multiply_adds
    return (
        int(architectures.load(count)(model, size, counts["classes"])) if count and size else None
    )


def plan(
    config: ConfigDict,
    stages: Sequence[Stage],
    trainings: Sequence[Planned],
    counts: Mapping[str, Any],
    target: Target,
) -> list[dict[str, Any]]:
    """Returns a row for each stage that costs something, as JSON; `text` shows what it holds.

    Raises:
      InputError: the devices do not divide a batch.
    """
    survey = counts.get("survey")
    images = counts["labeled"] + counts["unlabeled"]
    each = survey.file_bytes / images if survey and images else IMAGE_BYTES
    by_stage = {
        training.stage.name: choose(config, training, counts, target) for training in trainings
    }
    models = {training.stage.directory: training for training in trainings}
    rows: list[dict[str, Any]] = []
    for stage in stages:
        row: dict[str, Any] = {"stage": stage.name}
        work: float | None = 0.0
        precision = "float32"
        if found := by_stage.get(stage.name):
            values, size = found.training.values, found.training.size
            precision, work = values["precision"], operations(found.training, counts)
            seen = (
                values["steps"]
                * values["batch_size"]
                * (bool(values.get("labeled", True)) + values["unlabeled_ratio"])
            )
            row |= {
                "batch_size": values["batch_size"],
                "steps": values["steps"],
                "image_size": size,
                "memory_gib": None if found.needed is None else found.needed / GIB,
                "fits": found.fits,
                "changes": {
                    f"{found.training.section}.{key}": value
                    for key, (_, value) in found.changes.items()
                },
            }
        elif stage.script == "run_pseudo_label.sh":
            section, teacher = (
                config[stage.arguments["section"]],
                models.get(stage.arguments["teacher"]),
            )
            precision, seen = section.precision, plans.images_labeled(config, stage, counts)
            one = _multiply_adds(teacher.model, teacher.size, counts) if teacher else None
            work = None if one is None else 2.0 * one * seen * max(1, section.views)
        elif stage.script == "run_balance.sh":
            seen = plans.images_labeled(config, stage, counts)
        elif stage.script == "run_prepare_data.sh":
            seen = images
        else:
            continue
        row |= {
            "terabytes_read": seen * each / 1e12,
            "requests": -(-seen // records.RECORDS_PER_SHARD),
        }
        rows.append(row | _hours(work, precision, target))
    return rows


def _hours(work: float | None, precision: str, target: Target) -> dict[str, float | None]:
    device = target.accelerator
    if work is None or device is None:
        return {"hours": None, "device_hours": None}
    rate = device.share * (device.float32 if precision == "float32" else device.bfloat16)
    return {"hours": work / rate / target.devices / 3600, "device_hours": work / rate / 3600}


def text(rows: Sequence[Mapping[str, Any]], target: Target) -> str:
    """Returns the plan as a table, the changed settings, and where the numbers come from."""
    head = (
        f"  {'stage':<16}{'batch':>8}{'steps':>12}{'GiB/device':>12}{'hours':>11}{'device-h':>12}"
        f"{'TB read':>10}"
    )
    lines = [f"plan for {target}:", head]

    def shown(row: Mapping[str, Any], key: str, digits: int, width: int) -> str:
        value = row.get(key, "")
        return (
            f"{value:,.{digits}f}".rjust(width)
            if value not in (None, "")
            else ("" if value == "" else "?").rjust(width)
        )

    for row in rows:
        cells = (
            ("batch_size", 0, 8),
            ("steps", 0, 12),
            ("memory_gib", 1, 12),
            ("hours", 1, 11),
            ("device_hours", 0, 12),
        )
        line = (
            f"  {row['stage']:<16}"
            + "".join(shown(row, *cell) for cell in cells)
            + shown(row, "terabytes_read", 2, 10)
        )
        lines.append(line if row.get("fits", True) else f"{line}  does not fit")
    changes = {key: value for row in rows for key, value in row.get("changes", {}).items()}
    lines.append(
        "changed against the recipe: "
        + (" ".join(f"--config.{key}={value}" for key, value in changes.items()) or "nothing")
    )
    device = target.accelerator
    if device:
        lines.append(
            f"peak {device.bfloat16 / 1e12:g} TFLOP/s in bfloat16, {device.float32 / 1e12:g} in"
            f" float32: {device.source}"
        )
        lines.append(f"reached {100 * device.share:g} % of it: {device.share_source}")
    else:
        lines.append(f"hours: name --device, one of {', '.join(ACCELERATORS)}")
    return "\n".join(lines)


def describe(
    config: ConfigDict,
    stages: Sequence[Stage],
    trainings: Sequence[Planned],
    counts: Mapping[str, Any],
    target: Target,
) -> str:
    """Returns the plan as text, and as one line of JSON.

    Raises:
      InputError: the devices do not divide a batch.
    """
    rows = plan(config, stages, trainings, counts, target)
    value = {
        "device": target.name or None,
        "devices": target.devices,
        "memory_gib": target.memory / GIB,
        "stages": rows,
    }
    return f"{text(rows, target)}\n{to_json(value)}"


def dry_run(
    config: ConfigDict,
    workdir: Path,
    folders: dict[str, str],
    stages: Sequence[Stage],
    target: Target,
) -> str:
    """Returns the plan of the stages for devices that are not here.

    Raises:
      InputError: it cannot be planned.
    """
    counts = estimates.images(config, workdir / "data", folders)
    plan = plans.describe(config, workdir, folders, stages, counts)
    return (
        f"{plan}\n\n"
        f"{describe(config, stages, plans.trainings(config, stages, counts), counts, target)}"
    )
