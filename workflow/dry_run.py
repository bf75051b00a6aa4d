"""What a recipe would do, without doing it: `run_noisy_student.sh ... --dry_run`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data import records
from training import dry_run, resolve
from weights import pretrained
from workflow import train


def training(config: ConfigDict, name: str, section: str, counts: dict[str, Any], network: dict[str, Any]) -> list[str]:
    """Lines about the training of `section`, with the `network`; `counts`: `dry_run.images`'s."""
    method = train.find(config, section)
    values = {key: value for key, value in config[section].to_dict().items() if key != "preprocessing"}
    values = resolve.section(values, labeled_examples=counts["labeled"], unlabeled=bool(method.unlabeled(values)))
    size = dry_run.image_size(config, section, counts)
    return dry_run.trainings(name, method.networks(values), values, counts, size, network)


def _prediction_bytes(top_k: int, classes: int) -> int:
    """Of a record with its key and framing (docs/scaling.md, "Bytes")."""
    return 6 * top_k + 101 if 0 < top_k < classes else 2 * classes + 85


def _of_images(counts: dict[str, Any]) -> list[str]:
    """Returns lines about the images: how many, how large, and how that is known."""
    lines = [f"{counts['labeled']:,} labelled and {counts['unlabeled']:,} unlabelled images, {counts['classes']:,} classes"]
    held_out = [f"{counts[name]:,} {name} images" for name in ("test", "validation") if counts.get(name)]
    lines += [f"held out: {', '.join(held_out)}"] if held_out else []
    if counts["median_height"]:
        lines.append(f"median size of the labelled images: {counts['median_width']:g} x {counts['median_height']:g} pixels")
    found = counts["survey"]
    if found and found.examined is not None:
        lines.append(
            f"examined: {found.examined:,} labelled files; the others were only listed, so damaged or repeated "
            "ones may change the numbers a little"
        )
    return lines


def describe(
    config: ConfigDict,
    workdir: Path,
    folders: dict[str, str],
    stages: Iterable[Any],
    counts: dict[str, Any] | None = None,
) -> str:
    """Returns the plan as text: stages, trainings, shards, what is missing.

    Args:
      config: the recipe.
      workdir: of the run.
      folders: source directories by flag name.
      stages: `loop.plan`'s.
      counts: what `dry_run.images` returns, if it has been called.

    Raises:
      InputError: see `dry_run.images`.
    """
    data = workdir / "data"
    counts = counts or dry_run.images(config, data, folders)
    lines = [*_of_images(counts), "", "stages:"]
    trainings: list[str] = []
    previous, sections = "", set()
    networks: dict[str, dict[str, Any]] = {}  # section -> the network that it trains
    for stage in stages:
        done = "done" if (stage.directory / "summary.json").exists() else "to do"
        lines.append(f"  {stage.name:<16}{done:<7}{stage.directory}")
        if stage.script == "run_pseudo_label.sh":
            sections.add(stage.arguments["section"])
        if stage.script in ("run_teacher.sh", "run_student.sh", "run_finetune.sh"):
            section = stage.arguments.get("section", "teacher")
            init = stage.arguments.get("init")
            published = init is not None and init == config.init
            network = previous if init and not published else section  # whoever starts from a model keeps its network
            networks[section] = networks[network] if network != section else config[section].model.to_dict()
            if published:
                networks[section], weights = pretrained.preview(config.init, networks[section])
            trainings += training(config, stage.name, section, counts, networks[section])
            trainings += [f"  starts from {weights}"] if published else []
            if "teacher" in stage.arguments:
                teacher = dry_run.count_parameters(networks[previous], counts["classes"])
                size = f"{4 * teacher / dry_run.GIB:.1f} GiB of weights on each replica"
                trainings.append(f"  online teacher: {size}, and its pass over the unlabelled images in every step")
            previous = section
    lines += trainings
    shards = {name: config.data.num_shards or records.num_shards_for(counts[name]) for name in ("labeled", "unlabeled")}
    predictions = ""
    if sections:
        width = max(_prediction_bytes(config[section].top_k, counts["classes"]) for section in sections)
        predictions = f" and as many of predictions ({counts['unlabeled'] * width / dry_run.GIB:,.1f} GiB an iteration)"
    lines += ["", f"shards: {shards['labeled']:,} labelled, {shards['unlabeled']:,} unlabelled{predictions}"]
    absent = dry_run.missing(config, folders, data)
    lines.append(f"missing: {'; '.join(absent) if absent else 'nothing'}")
    return "\n".join(lines)
