"""Trains a student by Meta Pseudo Labels, or by what it is compared with: `run_meta_pseudo_labels.sh`.

A recipe's `meta_pseudo_labels.method` says which. Its `model/` is the averaged student (or the one network of `uda`), which
fine-tuning, evaluation and export take like any other.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

# isort: split

from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from cli import app
from cli import workdir as workdirs
from cli.errors import InputError
from data import pipeline, records
from data.preprocessing import Preprocessing
from data.records import Manifest
from meta_pseudo_labels import feedback
from meta_pseudo_labels.model import FeedbackTrainer, MetaPseudoLabels
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from meta_pseudo_labels.uda import UDA
from training import dry_run as dry_runs
from training import model_dir, optimizers, resolve, schedules, stage
from training.trainer import Trainer

SECTION = "meta_pseudo_labels"
NETWORKS = {"meta_pseudo_labels": ("student", "teacher"), "reduced": ("student",), "uda": ("teacher",)}
"""Method -> the networks that it trains, first the one that is kept."""

FLAGS = {
    **stage.FLAGS,
    "pseudo_labeled": "Directory made by run_balance.sh from a fixed teacher's predictions: for the method reduced.",
    "dry_run": "Say what would be done, how long and how large it is and what is missing, and do nothing.",
}
OPTIONAL = {**stage.OPTIONAL, "pseudo_labeled": None, "dry_run": False}


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
    strategy: str,
    cpu_devices: str,
    tpu: str,
    profile_steps: str | None,
    pseudo_labeled: str | None = None,
    dry_run: bool = False,
) -> None:
    """Trains, or goes on with it, or says that it is done."""
    devices = app.whole_number("cpu_devices", cpu_devices, 1)
    if dry_run:
        print(describe(config, Path(data), pseudo_labeled))
        return
    inputs = {"data": data, **({"pseudo_labeled": pseudo_labeled} if pseudo_labeled else {})}
    for name, made_by in (("data", "run_prepare_data.sh"), ("pseudo_labeled", "run_balance.sh")):
        if name in inputs:
            workdirs.require_finished(inputs[name], f"--{name}", made_by)
    resolved = stage.resolve(config, SECTION, data, unlabeled=True)
    check(resolved["train"])
    if bool(pseudo_labeled) != (resolved["train"]["method"] == "reduced"):
        raise InputError(f"{SECTION}.method is {resolved['train']['method']}; --pseudo_labeled and the method reduced need each other")
    if stage.start(workdir, resolved, inputs, strategy):
        where = {"strategy_name": strategy, "cpu_devices": devices, "tpu": tpu, "profile_steps": profile_steps}
        train(Path(workdir), resolved, data, pseudo_labeled, **where)


def describe(config: ConfigDict, data: Path, pseudo_labeled: str | None = None) -> str:
    """What would be done, as text: the two trainings in numbers, and what is missing."""
    counts = dry_runs.images(config, data)
    train = resolve.section(config[SECTION].to_dict(), labeled_examples=counts["labeled"], unlabeled=True)
    check(train)
    size = dry_runs.image_size(config, SECTION, counts)
    rates = schedules.of_section(train, counts["labeled"] / train["batch_size"])
    lines = [f"{counts['labeled']:,} labelled and {counts['unlabeled']:,} unlabelled images, {counts['classes']:,} classes"]
    batch, more = train["batch_size"], train["batch_size"] * train["unlabeled_ratio"]
    kept = {"teacher": batch + 2 * more, "student": batch + more}
    for network in reversed(NETWORKS[train["method"]]):
        second_order = feedback.ESTIMATORS[train["feedback"]].second_order
        again = train["rematerialize"] and (network == "teacher" or not second_order)
        model, rate = train[network]["model"], rates[network]
        also = {"images_kept": kept[network], "rematerialize": again, "averaged": network == NETWORKS[train["method"]][0]}
        lines += ["", *dry_runs.describe(network, model, train, counts, size, rate, **also)]
    warning = check_feedback(train)
    if warning:
        lines += ["", f"warning: {warning}"]
    absent = dry_runs.missing(config, {}, data)
    if train["method"] == "reduced" and not pseudo_labeled:
        absent.append("--pseudo_labeled is not given")
    return "\n".join([*lines, "", f"missing: {'; '.join(absent) if absent else 'nothing'}"])


def check(section: dict[str, Any]) -> None:
    """Raises InputError where the resolved section cannot be trained."""
    if section["method"] not in NETWORKS:
        raise InputError(f"{SECTION}.method: no {section['method']!r}; known: {', '.join(NETWORKS)}")
    check_feedback(section)
    if section["unlabeled_ratio"] < 1:
        raise InputError(f"{SECTION}.unlabeled_ratio is {section['unlabeled_ratio']}; the student learns from unlabelled images only")
    if section["uda"]["temperature"] <= 0:
        raise InputError(f"{SECTION}.uda.temperature is {section['uda']['temperature']}; it must be above 0")
    if min(section["uda"]["ramp_steps"], section["uda"]["weight"]) < 0:
        raise InputError(f"{SECTION}.uda: weight and ramp_steps must be at least 0")
    if not 0 <= section["baseline_decay"] <= 1:
        raise InputError(f"{SECTION}.baseline_decay is {section['baseline_decay']}; it must be from 0 to 1 (no baseline)")
    calibrator = section["calibrator"]
    if calibrator["hidden"] < 1 or calibrator["layers"] < 0:
        raise InputError(f"{SECTION}.calibrator: hidden must be at least 1 and layers at least 0, got {calibrator}")
    for network in ("teacher",) if section["method"] == "uda" else ("teacher", "student"):  # a calibrator's are the teacher's
        schedule = section[network]["schedule"]
        if min(schedule["wait_steps"], schedule["warmup_steps"]) < 0:
            raise InputError(f"{SECTION}.{network}.schedule: wait_steps and warmup_steps must be at least 0")
        before = schedule["wait_steps"] + schedule["warmup_steps"]
        if before >= section["steps"]:
            raise InputError(f"{SECTION}.{network}.schedule: wait and warm-up take {before} steps of {section['steps']}; shorten them")


def check_feedback(section: dict[str, Any]) -> str | None:
    """Returns a warning where the section's feedback is an approximation; else None.

    Raises:
      InputError: no such feedback, with these pseudo-labels, or with the student's optimizer.
    """
    try:
        estimator = feedback.find_estimator(section["feedback"], section["pseudo_labels"])
        if section["method"] == "uda":
            return None
        name = section["student"]["optimizer"]["name"]
        known, approximate = name not in optimizers.NOT_LINEAR, section["approximate_feedback"]
        return feedback.check_factor(estimator, name, known, approximate)
    except ValueError as error:
        raise InputError(f"{SECTION}: {error}") from error


def train(workdir: Path, resolved: dict[str, Any], data: str, pseudo_labeled: str | None, **where: Any) -> None:
    """Runs one resolved training; `where`: strategy, CPU devices, TPU and profile, see `stage.train`."""
    section = ConfigDict(resolved["train"])
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    if pseudo_labeled:
        unlabeled = records.read_manifest(pseudo_labeled, "pseudo_labeled")
        records.require_same_classes(unlabeled.label_names, f"--pseudo_labeled={pseudo_labeled}", labeled.label_names, data)
    else:
        unlabeled = records.read_manifest(Path(data) / "unlabeled", "unlabeled")
    preprocessing = Preprocessing.from_dict(resolved["preprocessing"])
    spec = model_dir.ModelSpec(section[NETWORKS[section.method][0]].model.to_dict(), preprocessing, labeled.label_names)
    samples = {"labeled": (labeled, preprocessing.weak()), "unlabeled": (unlabeled, preprocessing)}
    if not pseudo_labeled:
        samples["unlabeled_weak"] = (unlabeled, preprocessing.weak())
    stage.train(
        workdir,
        resolved,
        spec,
        lambda steps_per_epoch, seed, sync: build_trainer(section, spec, steps_per_epoch, seed, sync),
        lambda *share: batches(labeled, unlabeled, preprocessing, section, resolved["seed"], *share),
        data=Path(data),
        labeled=labeled,
        unlabeled=unlabeled,
        samples=samples,
        **where,
    )


def build_trainer(section: ConfigDict, spec: model_dir.ModelSpec, steps_per_epoch: float, seed: int, sync: bool) -> Trainer:
    """The compiled trainer of a resolved section; call inside the strategy's scope. `spec` is of the network that is kept."""
    sync = section.sync_batch_norm and sync
    kept = spec.build(seed=seed, sync_batch_norm=sync)
    common: dict[str, Any] = {name: section[name] for name in ("weight_decay", "ema_decay", "rematerialize")}
    common["seed"] = seed
    objective = {
        "supervised_weight": section.supervised_weight,
        "uda_weight": section.uda.weight,
        "uda_temperature": section.uda.temperature,
        "uda_threshold": section.uda.threshold,
        "uda_ramp_steps": section.uda.ramp_steps,
        "label_smoothing": section.label_smoothing,
    }
    names = ("feedback", "pseudo_labels", "feedback_weight", "batch_factor", "baseline_decay", "approximate_feedback")
    feedback_of = {name: section[name] for name in names}
    rates = schedules.of_section(section, steps_per_epoch)
    optimizer = {name: optimizers.build(section[name].optimizer, rate) for name, rate in rates.items()}
    if section.method == "uda":
        trainer = UDA(kept, **common, **objective)
        trainer.compile(optimizer["teacher"])
        return trainer
    if section.method == "reduced":
        calibrator = Calibrator(len(spec.label_names), **section.calibrator, seed=seed + 50)
        pair: FeedbackTrainer = ReducedMetaPseudoLabels(calibrator, kept, **common, **feedback_of)
    else:
        teacher_spec = model_dir.ModelSpec(section.teacher.model.to_dict(), spec.preprocessing, spec.label_names)
        teacher = teacher_spec.build(seed=seed + 50, sync_batch_norm=sync)
        pair = MetaPseudoLabels(teacher, kept, **common, **objective, **feedback_of)
    pair.compile(student_optimizer=optimizer["student"], teacher_optimizer=optimizer["teacher"])
    return pair


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
    """What the trainer eats, from step `start` on: weak labelled images, and two views of the unlabelled ones or one and its prediction."""
    common: dict[str, Any] = {"seed": seed, "start_step": start, "pipelines": pipelines, "replicas": replicas}
    images = pipeline.train_batches(labeled, preprocessing.weak(), batch_size=section.batch_size, **common)
    size = section.batch_size * section.unlabeled_ratio
    targets = "probabilities" if section.method == "reduced" else "strong"
    extra = pipeline.train_batches(unlabeled, preprocessing, batch_size=size, targets=targets, stream_id=1, **common)
    return tf.data.Dataset.zip((images, extra))


if __name__ == "__main__":
    app.run(main, FLAGS, OPTIONAL, needs=("data", "preprocessing", SECTION))
