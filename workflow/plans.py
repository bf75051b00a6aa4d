"""Describes what a recipe would do, without doing it: `run_noisy_student.sh ... --dry_run`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cli.json_files import read_json
from data import records
from training import estimates, gpus, resolve
from training.method import Network, set_model
from weights import pretrained
from workflow import choice, crossfit, train
from workflow.stages import Stage

TRAINING = {
    "run_teacher.sh": "teacher",
    "run_student.sh": "student",
    "run_finetune.sh": "finetune",
    "run_train.sh": "train",
}
"""Script of a training -> the section that it trains by default."""


class Planned(NamedTuple):
    """A training of the plan.

    Attributes:
      stage: its stage.
      section: its section of the recipe.
      model: `model` of the network that is kept.
      weights: published weights that it starts from, in words; "" for none.
      networks: networks of its method.
      values: the section as `training.resolve.section` returns it, with the networks of the weights
        that it starts from.
      size: size of the images in pixels; None where only the data could tell.
      teacher: `model` of the teacher that labels within the step, or None.
      length: what decided the number of steps, in words; "" where the recipe gives the number.
      warning: warning of the method, or "".
    """

    stage: Stage
    section: str
    model: dict[str, Any]
    weights: str
    networks: list[Network]
    values: dict[str, Any]
    size: int | None
    teacher: dict[str, Any] | None
    length: str
    warning: str = ""

    def network(self, part: Network) -> dict[str, Any]:
        """Returns `model` of one of its networks."""
        return dict(part.settings(self.values)["model"])


def trainings(config: ConfigDict, stages: Iterable[Stage], counts: dict[str, Any]) -> list[Planned]:
    """Returns the trainings among `stages`.

    Args:
      config: the recipe.
      stages: stages of the run.
      counts: what `estimates.images` returns.

    Raises:
      InputError: a training cannot be planned.
    """
    planned: list[Planned] = []
    for stage in stages:
        if stage.script not in TRAINING:
            continue
        section, init = (
            stage.arguments.get("section", TRAINING[stage.script]),
            stage.arguments.get("init"),
        )
        method, given, values = train.planned(config, section, counts["labeled"])
        networks = method.networks(values)
        model, weights = dict(networks[0].settings(values)["model"]), ""
        # A training that starts from a model keeps its network.
        if init and init != config.get("init"):
            started = [training for training in planned if training.stage.directory == init]
            model = (started or planned)[-1].model
        elif init:
            model, weights = pretrained.preview(init, model)
        if init:
            set_model(networks, values, model)
        length = resolve.length(given, counts["labeled"], values["batch_size"])
        size = estimates.image_size(config, section, counts)
        teacher = planned[-1].model if "teacher" in stage.arguments else None
        warning = method.check(values) or ""
        planned.append(
            Planned(
                stage, section, model, weights, networks, values, size, teacher, length, warning
            )
        )
    return planned


def _of_training(training: Planned, counts: dict[str, Any]) -> list[str]:
    """Returns lines about a training."""
    lines = estimates.trainings(
        training.stage.name, training.networks, training.values, counts, training.size
    )
    lines += [f"  {training.length}"] if training.length else []
    lines += [f"  starts from {training.weights}"] if training.weights else []
    lines += [f"  warning: {training.warning}"] if training.warning else []
    if training.teacher:
        teacher = estimates.count_parameters(training.teacher, counts["classes"]).all
        size = f"{4 * teacher / estimates.GIB:.1f} GiB of weights on each replica"
        lines.append(
            f"  online teacher: {size}, and its pass over the unlabeled images in every step"
        )
    return lines


def images_labeled(config: ConfigDict, stage: Stage, counts: Mapping[str, Any]) -> int:
    """Returns how many images a stage labels or balances.

    For a selection that does not exist yet, this is the largest possible number.

    Args:
      config: the recipe.
      stage: a stage that labels or balances.
      counts: what `estimates.images` returns.
    """
    unlabeled: int = counts["unlabeled"]
    if "selection" not in stage.arguments:
        return unlabeled
    summary = Path(stage.arguments["selection"]) / "summary.json"
    if summary.exists():
        return int(read_json(summary, {"num_unique": int})["num_unique"])
    per_class = config.balance.images_per_class if config.balance.balance else None
    return min(unlabeled, per_class * counts["classes"]) if per_class else unlabeled


def _of_selection(
    config: ConfigDict, stages: Iterable[Stage], counts: Mapping[str, Any]
) -> list[str]:
    """Returns a line about the set that is selected once; none where each teacher selects anew."""
    labelings = [stage for stage in stages if stage.script == "run_pseudo_label.sh"]
    again = [stage for stage in labelings if "selection" in stage.arguments]
    if not again:
        return []
    teacher = Path(labelings[0].arguments["teacher"]).name
    images, there = (
        images_labeled(config, again[0], counts),
        (Path(again[0].arguments["selection"]) / "summary.json").exists(),
    )
    return [
        f"selection: once, by {teacher} among {counts['unlabeled']:,} unlabeled images; "
        f"{len(again)} of {len(labelings)} labelings label only the "
        f"{'' if there else 'at most '}{images:,} selected images"
    ]


def prediction_bytes(config: ConfigDict, stages: Iterable[Stage], classes: int) -> int:
    """Returns the bytes of a stored prediction with its key and framing; 0 where none is stored.

    See docs/scaling.md, "Bytes".
    """
    kept = [
        config[stage.arguments["section"]].top_k
        for stage in stages
        if stage.script == "run_pseudo_label.sh"
    ]
    return max(
        (6 * top_k + 101 if 0 < top_k < classes else 2 * classes + 85 for top_k in kept), default=0
    )


def label_bytes(classes: int) -> int:
    """Returns the size of a pseudo-label with its framing (docs/scaling.md, "Bytes")."""
    return 4 * classes + 118


def _of_images(counts: dict[str, Any]) -> list[str]:
    """Returns lines about the images: how many, how large, and how that is known."""
    lines = [
        f"{counts['labeled']:,} labeled and {counts['unlabeled']:,} unlabeled images,"
        f" {counts['classes']:,} classes"
    ]
    held_out = [
        f"{counts[name]:,} {name} images" for name in ("test", "validation") if counts.get(name)
    ]
    lines += [f"held out: {', '.join(held_out)}"] if held_out else []
    if counts["median_height"]:
        lines.append(
            f"median size of the labeled images: {counts['median_width']:g} x"
            f" {counts['median_height']:g} pixels"
        )
    found = counts["survey"]
    if found and found.examined is not None:
        lines.append(
            f"examined: {found.examined:,} labeled files; the others were only listed, so damaged"
            " or repeated ones may change the numbers a little"
        )
    return lines


def advice(config: ConfigDict, counts: dict[str, Any]) -> list[str]:
    """Returns hints about other recipes for these images and this machine."""
    lines: list[str] = []
    if config.data.source != "image_folder" or not config.init:
        return lines
    side = min(counts["median_height"] or 64, counts["median_width"] or 64)
    if side < 64:
        lines.append(
            f"hint: the images' median side is {side:g} px; for less than 64 px try"
            " image_folder.py:small"
        )
    if config.init == "efficientnet-lite0" and gpus.count():
        lines.append(
            "a GPU is here: `image_folder.py:b0 --init=imagenet` at 224 px is worth trying"
        )
    return lines


def describe(
    config: ConfigDict,
    workdir: Path,
    folders: dict[str, str],
    stages: Iterable[Stage],
    counts: dict[str, Any] | None = None,
) -> str:
    """Returns the plan as text: stages, trainings, shards, what is missing.

    Args:
      config: the recipe.
      workdir: work directory of the run.
      folders: source directories by flag name.
      stages: stages that `loop.plan` or `one_method.plan` returns.
      counts: what `estimates.images` returns, if it has been called.

    Raises:
      InputError: see `estimates.images`.
    """
    data, stages = workdir / "data", list(stages)
    counts = counts or estimates.images(config, data, folders)
    lines = [*_of_images(counts), *advice(config, counts), "", "stages:"]
    for stage in stages:
        done = "done" if (stage.directory / "summary.json").exists() else "to do"
        lines.append(f"  {stage.name:<16}{done:<7}{stage.directory}")
    if choice.basis(config, counts.get("validation", 0)) == choice.CROSS_FITTING:
        lines.append(crossfit.announcement(config, counts.get("validation", 0)))
    for training in trainings(config, stages, counts):
        lines += _of_training(training, counts)
    shards = {
        name: config.data.num_shards or records.num_shards_for(counts[name])
        for name in ("labeled", "unlabeled")
    }
    predictions = ""
    if width := prediction_bytes(config, stages, counts["classes"]):
        labeled = [
            images_labeled(config, stage, counts)
            for stage in stages
            if stage.script == "run_pseudo_label.sh"
        ]
        first, *later = (
            f"{images * width / estimates.GIB:,.1f} GiB"
            for images in sorted(set(labeled), reverse=True)
        )
        predictions = (
            " and as many of predictions"
            f" ({first} {'an iteration' if not later else 'for the selection, then ' + later[0]})"
        )
    lines += _of_selection(config, stages, counts)
    lines += [
        "",
        f"shards: {shards['labeled']:,} labeled, {shards['unlabeled']:,} unlabeled{predictions}",
    ]
    absent = missing(config, workdir, folders, stages)
    lines.append(f"missing: {'; '.join(absent) if absent else 'nothing'}")
    return "\n".join(lines)


def missing(
    config: ConfigDict, workdir: Path, folders: dict[str, str], stages: Iterable[Stage]
) -> list[str]:
    """Returns what the run needs and does not find: images, and the devices of --strategy."""
    absent = estimates.missing(config, folders, workdir / "data")
    if any(stage.arguments.get("strategy") == "mirrored" for stage in stages) and not gpus.count():
        absent.append("--strategy=mirrored: TensorFlow sees no GPU")
    return absent
