"""What a recipe would do, without doing it: `run_noisy_student.sh ... --dry_run`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data import records, sources
from efficientnet import architectures
from stages.errors import InputError
from stages.files import read_json
from training import resolve, schedules

GIB = 2.0**30


def images(config: ConfigDict, data: Path) -> dict[str, Any]:
    """Images a split, class count, and median size in pixels, of the prepared data, or else of a full copy as the recipe expects it.

    Returns:
      `labeled`, `unlabeled`, `classes`, `median_height`, `median_width`; the last two are None where only the data could tell.

    Raises:
      InputError: the data are not there and the recipe does not say how many there will be.
    """
    if (data / "summary.json").exists():
        summary = read_json(data / "summary.json")
        counts = {name: split["images"] for name, split in summary["splits"].items()}
        return {
            "labeled": counts["labeled"],
            "unlabeled": counts.get("unlabeled", 0),
            "classes": len(summary["label_names"]),
            **{name: summary[name] for name in ("median_height", "median_width")},
        }
    expected = config.expected.to_dict()
    if None in expected.values():
        raise InputError(
            f"--dry_run: {data} is not there yet; run the first stage, run_prepare_data.sh, or say how many images it will hold with "
            "--config.expected.labeled=N --config.expected.unlabeled=N --config.expected.classes=N"
        )
    return {**expected, "median_height": None, "median_width": None}


def training(config: ConfigDict, section: str, counts: dict[str, Any], model_of: str) -> dict[str, Any]:
    """One training in numbers: network, steps, learning rates, memory.

    Args:
      config: the recipe.
      section: its section to describe.
      counts: what `images` returns.
      model_of: the section that names the network.

    Returns:
      Among them `weights_gib`: weights, their average, two optimizer slots and gradients, in float32, and `activations_gib`: what a step
      over all images of the global batch keeps for its backward pass (`architectures.count_activations`). Where only the data could
      tell, `image_size` and `activations_gib` are None.
    """
    values = {key: value for key, value in config[section].to_dict().items() if key != "preprocessing"}
    train = resolve.section(values, labeled_examples=counts["labeled"], unlabeled=section.startswith("student"))
    own = config[section].get("preprocessing", ConfigDict()).to_dict()
    size = own.get("image_size") or config.preprocessing.image_size
    if size is None and counts["median_height"]:
        size = resolve.image_size(counts["median_height"], counts["median_width"])
    model = config[model_of].model.to_dict()
    if model["name"] not in architectures.ARCHITECTURES:
        raise InputError(f"--dry_run counts the weights of EfficientNets; {model['name']} is none")
    architecture = architectures.ARCHITECTURES[model["name"]]
    width, depth = model["width"] or architecture.width, model["depth"] or architecture.depth
    parameters = architectures.count_parameters(width, depth, counts["classes"])[0]
    strides = model["strides"] or architectures.BASELINE_STRIDES
    activations = architectures.count_activations(width, depth, size, model["stem_stride"] or 2, strides) if size else None
    batch = train["batch_size"] * (1 + train["unlabeled_ratio"])
    schedule = schedules.build(
        ConfigDict(train["schedule"]),
        batch_size=train["batch_size"],
        steps=train["steps"],
        steps_per_epoch=counts["labeled"] / train["batch_size"],
    )
    at = [round(i * train["steps"] / 9) for i in range(10)]
    bytes_each = 4 if train["precision"] == "float32" else 2
    return {
        "section": section,
        "network": model["name"],
        "parameters": parameters,
        "image_size": size,
        "steps": train["steps"],
        "epochs": train["steps"] * train["batch_size"] / counts["labeled"],
        "batch": train["batch_size"],
        "unlabeled_batch": train["batch_size"] * train["unlabeled_ratio"],
        "learning_rate": [(step, float(schedule(step))) for step in at],
        "weights_gib": 5 * 4 * parameters / GIB,
        "activations_gib": activations and bytes_each * activations * batch / GIB,
    }


def missing(config: ConfigDict, folders: dict[str, str], data: Path) -> list[str]:
    """What the first stage needs and does not find."""
    if config.data.source == "digits" or (data / "summary.json").exists():
        return []
    found = []
    for role in ("labeled", "unlabeled", "test"):
        location = folders.get(role) or config.data.get(role)
        if location:
            name, path = sources.split_location(location, config.data.source)
            if name not in sources.WITHOUT_PATH and not (os.path.exists(path) or glob.glob(path)):
                found.append(f"--{role}: no {path}")
        elif role == "labeled" or (role == "unlabeled" and config.data.labeled_as_unlabeled == "nothing"):
            found.append(f"--{role} is not given")
    return found


def describe(config: ConfigDict, workdir: Path, folders: dict[str, str], stages: Iterable[Any]) -> str:
    """The plan as text: stages, trainings, shards, what is missing. `stages`: `loop.plan`'s."""
    data = workdir / "data"
    counts = images(config, data)
    lines = [f"{counts['labeled']:,} labelled and {counts['unlabeled']:,} unlabelled images, {counts['classes']:,} classes", "", "stages:"]
    trainings, previous = [], ""
    for stage in stages:
        done = "done" if (stage.directory / "summary.json").exists() else "to do"
        lines.append(f"  {stage.name:<16}{done:<7}{stage.directory}")
        if stage.script in ("run_teacher.sh", "run_student.sh", "run_finetune.sh"):
            section = stage.arguments.get("section", "teacher")
            model = previous if "init" in stage.arguments else section  # fine-tuning keeps its student's network
            trainings.append((stage.name, training(config, section, counts, model)))
            previous = section
    for name, t in trainings:
        known = t["image_size"] is not None
        pixels = f"{t['image_size']} px" if known else "as many pixels as the data will suggest"
        activations = f"{t['activations_gib']:,.1f} GiB for activations over all replicas" if known else "activations by the pixels"
        rates = ", ".join(f"{rate:.3g} at {step:,}" for step, rate in t["learning_rate"])
        lines += [
            "",
            f"{name}: {t['network']}, {t['parameters']:,} parameters, {pixels}",
            f"  {t['steps']:,} steps of {t['batch']:,} + {t['unlabeled_batch']:,} images ({t['epochs']:.1f} labelled epochs)",
            f"  learning rate: {rates}",
            f"  memory: {t['weights_gib']:.1f} GiB for weights, average, slots and gradients on each replica; {activations}",
        ]
    shards = {name: config.data.num_shards or records.num_shards_for(counts[name]) for name in ("labeled", "unlabeled")}
    width = 2 * counts["classes"] if not config.pseudo_label.top_k else 8 * config.pseudo_label.top_k
    lines += [
        "",
        f"shards: {shards['labeled']:,} labelled, {shards['unlabeled']:,} unlabelled and as many of predictions "
        f"({counts['unlabeled'] * width / GIB:,.1f} GiB an iteration)",
    ]
    absent = missing(config, folders, data)
    lines.append(f"missing: {'; '.join(absent) if absent else 'nothing'}")
    return "\n".join(lines)
