"""Trains a student by Meta Pseudo Labels: `run_meta_pseudo_labels.sh`.

Its `model/` is the averaged student, which fine-tuning, evaluation and export take like any other.
"""

from __future__ import annotations

import stages  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

# isort: split

from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from data import pipeline, records
from data.preprocessing import Preprocessing
from data.records import Manifest
from meta_pseudo_labels import feedback
from meta_pseudo_labels.model import MetaPseudoLabels
from stages import app
from stages import workdir as workdirs
from stages.errors import InputError
from training import dry_run as dry_runs
from training import model_dir, optimizers, resolve, schedules, stage

SECTION = "meta_pseudo_labels"
FLAGS = {**stage.FLAGS, "dry_run": "Say what would be done, how long and how large it is and what is missing, and do nothing."}


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
    strategy: str,
    cpu_devices: str,
    tpu: str,
    profile_steps: str | None,
    dry_run: bool = False,
) -> None:
    """Trains, or goes on with it, or says that it is done."""
    devices = app.whole_number("cpu_devices", cpu_devices, 1)
    if dry_run:
        print(describe(config, Path(data)))
        return
    workdirs.require_finished(data, "--data", "run_prepare_data.sh")
    resolved = stage.resolve(config, SECTION, data, unlabeled=True)
    check(resolved["train"])
    if stage.start(workdir, resolved, {"data": data}):
        where = {"strategy_name": strategy, "cpu_devices": devices, "tpu": tpu, "profile_steps": profile_steps}
        train(Path(workdir), resolved, data, **where)


def describe(config: ConfigDict, data: Path) -> str:
    """What would be done, as text: the two trainings in numbers, and what is missing."""
    counts = dry_runs.images(config, data)
    train = resolve.section(config[SECTION].to_dict(), labeled_examples=counts["labeled"], unlabeled=True)
    check(train)
    size = dry_runs.image_size(config, SECTION, counts)
    rates = schedules.of_section(train, counts["labeled"] / train["batch_size"])
    lines = [f"{counts['labeled']:,} labelled and {counts['unlabeled']:,} unlabelled images, {counts['classes']:,} classes"]
    batch, more = train["batch_size"], train["batch_size"] * train["unlabeled_ratio"]
    for network, kept in (("teacher", batch + 2 * more), ("student", batch + more)):
        again = train["rematerialize"] and (network == "teacher" or train["feedback"] not in feedback.SECOND_ORDER)
        model, rate = train[network]["model"], rates[network]
        lines += ["", *dry_runs.describe(network, model, train, counts, size, rate, images_kept=kept, rematerialize=again)]
    absent = dry_runs.missing(config, {}, data)
    return "\n".join([*lines, "", f"missing: {'; '.join(absent) if absent else 'nothing'}"])


def check(section: dict[str, Any]) -> None:
    """Raises InputError where the resolved section cannot be trained."""
    try:
        feedback.check(section["feedback"], section["pseudo_labels"])
    except ValueError as error:
        raise InputError(f"{SECTION}: {error}") from error
    if section["unlabeled_ratio"] < 1:
        raise InputError(f"{SECTION}.unlabeled_ratio is {section['unlabeled_ratio']}; the student learns from unlabelled images only")
    for network in ("teacher", "student"):
        schedule = section[network]["schedule"]
        before = schedule["wait_steps"] + schedule["warmup_steps"]
        if before >= section["steps"]:
            raise InputError(f"{SECTION}.{network}.schedule: wait and warm-up take {before} steps of {section['steps']}; shorten them")


def train(workdir: Path, resolved: dict[str, Any], data: str, **where: Any) -> None:
    """Runs one resolved training; `where`: strategy, CPU devices, TPU and profile, see `stage.train`."""
    section = ConfigDict(resolved["train"])
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    unlabeled = records.read_manifest(Path(data) / "unlabeled", "unlabeled")
    preprocessing = Preprocessing.from_dict(resolved["preprocessing"])
    spec = model_dir.ModelSpec(section.student.model.to_dict(), preprocessing, labeled.label_names)
    stage.train(
        workdir,
        resolved,
        spec,
        lambda steps_per_epoch, seed, sync: build_trainer(section, spec, steps_per_epoch, seed, sync),
        lambda *share: batches(labeled, unlabeled, preprocessing, section, resolved["seed"], *share),
        data=Path(data),
        labeled=labeled,
        unlabeled=unlabeled,
        samples={
            "labeled": (labeled, preprocessing.weak()),
            "unlabeled_weak": (unlabeled, preprocessing.weak()),
            "unlabeled_strong": (unlabeled, preprocessing),
        },
        **where,
    )


def build_trainer(section: ConfigDict, spec: model_dir.ModelSpec, steps_per_epoch: float, seed: int, sync: bool) -> MetaPseudoLabels:
    """The compiled `MetaPseudoLabels` of a resolved section; call inside the strategy's scope."""
    sync = section.sync_batch_norm and sync
    teacher_spec = model_dir.ModelSpec(section.teacher.model.to_dict(), spec.preprocessing, spec.label_names)
    trainer = MetaPseudoLabels(
        teacher_spec.build(seed=seed + 50, sync_batch_norm=sync),
        spec.build(seed=seed, sync_batch_norm=sync),
        feedback=section.feedback,
        pseudo_labels=section.pseudo_labels,
        feedback_weight=section.feedback_weight,
        batch_factor=section.batch_factor,
        baseline_decay=section.baseline_decay,
        supervised_weight=section.supervised_weight,
        uda_weight=section.uda.weight,
        uda_temperature=section.uda.temperature,
        uda_threshold=section.uda.threshold,
        uda_ramp_steps=section.uda.ramp_steps,
        label_smoothing=section.label_smoothing,
        weight_decay=section.weight_decay,
        ema_decay=section.ema_decay,
        rematerialize=section.rematerialize,
        seed=seed,
    )
    rates = schedules.of_section(section, steps_per_epoch)
    trainer.compile(**{f"{network}_optimizer": optimizers.build(section[network].optimizer, rate) for network, rate in rates.items()})
    return trainer


def batches(
    labeled: Manifest,
    unlabeled: Manifest,
    preprocessing: Preprocessing,
    section: ConfigDict,
    seed: int,
    start: int,
    pipelines: tuple[int, int],
    replicas: int,
) -> tf.data.Dataset:
    """What `MetaPseudoLabels` eats, from step `start` on: weak labelled images, and two views of the unlabelled ones."""
    common: dict[str, Any] = {"seed": seed, "start_step": start, "pipelines": pipelines, "replicas": replicas}
    images = pipeline.train_batches(labeled, preprocessing.weak(), batch_size=section.batch_size, **common)
    size = section.batch_size * section.unlabeled_ratio
    views = pipeline.train_batches(unlabeled, preprocessing, batch_size=size, targets="strong", stream_id=1, **common)
    return tf.data.Dataset.zip((images, views))


if __name__ == "__main__":
    app.run(main, FLAGS, {**stage.OPTIONAL, "dry_run": False}, needs=("data", "preprocessing", SECTION))
