"""Runs one resolved training of any method: strategy, trainer, fit, and the files it leaves."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from cli import work_dirs
from cli.errors import InputError
from cli.json_files import read_json, read_json_lines
from data import pipeline, records
from data.preprocessing import Preprocessing
from data.records import Manifest
from training import (
    estimates,
    fixres,
    initial,
    losses,
    model_dir,
    models,
    optimizers,
    processor,
    schedules,
    spatial,
    strategy,
    workers,
)
from training.checkpoints import Checkpoints
from training.fit import fit
from training.initial import Initial
from training.method import Method, Parts, Streams
from training.metrics_log import METRICS, best
from training.trainer import Trainer

SAMPLES = 8
"""Number of images of each split in TensorBoard."""


class Inputs(NamedTuple):
    """The inputs of a training.

    Attributes:
      data: the prepared data, for its validation split.
      labeled: the labeled split.
      unlabeled: the split of the second stream, or None.
      init: the weights to start from, or None.
      teacher: directory of the trained model that labels within the step, or None.
    """

    data: Path
    labeled: Manifest
    unlabeled: Manifest | None = None
    init: Initial | None = None
    teacher: str | None = None


class Devices(NamedTuple):
    """The devices of a training; see `training.strategy.create`.

    `profile_steps` is FIRST,LAST: the first and the last step to profile.
    """

    strategy: str = "auto"
    cpu_devices: int = 1
    tpu: str = ""
    profile_steps: str | None = None
    replica_cores: int = 1


def says_done(workdir: str | Path, summary: Mapping[str, Any]) -> str:
    """Returns what a finished training says when it is asked for again."""
    return f"{workdir} is done: {summary['steps']} steps, {summary['parameters']:,} parameters"


@workers.leaving_with_the_lost()
def train(
    workdir: Path,
    resolved: Mapping[str, Any],
    method: Method,
    spec: model_dir.ModelSpec,
    inputs: Inputs,
    devices: Devices,
) -> None:
    """Runs one resolved training from wherever it stopped, and leaves `model/` and `summary.json`.

    Args:
      workdir: work directory, claimed with `cli.work_dirs.start`.
      resolved: `seed`, `preprocessing` and the section `train`, as
        `workflow.train.resolve_training` returns them.
      method: method of the section.
      spec: spec of the model that is kept.
      inputs: what the training reads.
      devices: where the training runs.

    Raises:
      InputError: the batch does not divide among the replicas, or `fit` or the method raises it.
    """
    section, seed = ConfigDict(resolved["train"]), resolved["seed"]
    labeled, unlabeled = inputs.labeled, inputs.unlabeled
    profile = _profile(devices.profile_steps, section.steps)
    batch, ratio = section.batch_size, section.unlabeled_ratio
    labeled_images, unlabeled_images = batch if section.get("labeled", True) else 0, batch * ratio
    cores = devices.replica_cores
    distribution = strategy.create(devices.strategy, devices.cpu_devices, devices.tpu, cores)
    if section.precision == "mixed_float16" and strategy.device_kind(distribution) == "TPU":
        raise InputError("precision=mixed_float16 is for GPUs; on a TPU take mixed_bfloat16")
    replicas = distribution.num_replicas_in_sync
    digest = zlib.crc32(json.dumps(resolved, sort_keys=True).encode())
    workers.require_same(
        distribution, digest, "the workers run different configs; give all of them the same flags"
    )
    parts = section.get("accumulation", 1)
    if batch % (replicas * parts):
        among = f"{replicas} replicas" + (f" with accumulation={parts}" if parts > 1 else "")
        raise InputError(f"batch_size={batch} does not divide among {among}")
    if section.jit_compile and replicas > 1 and strategy.device_kind(distribution) != "TPU":
        raise InputError(
            f"jit_compile=True works on one device only, but there are {replicas} replicas; set it "
            "to False"
        )
    if profile and section.steps_per_execution > 1:
        raise InputError("--profile_steps counts single steps; set steps_per_execution to 1")
    tf.keras.utils.set_random_seed(seed % 2**32)
    if section.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.mixed_precision.set_global_policy(section.precision)
    steps_per_epoch = labeled.num_records / batch
    with distribution.scope():  # everything that owns variables
        trainer = build_trainer(method, section, spec, steps_per_epoch, seed, replicas > 1, inputs)
    if cores > 1:
        trainer.train_step = spatial.splitting(trainer.train_step, distribution, cores)

    counted = estimates.parameters_of(trainer.model)
    parameters = counted.all
    print(
        f"{spec.architecture['name']}: {counted}, {spec.preprocessing.image_size} px,"
        f" {labeled.num_records} labeled images"
        + (f", {unlabeled.num_records} {unlabeled.name.replace('_', '-')}" if unlabeled else "")
        + f"; {section.steps} steps of {labeled_images} + {unlabeled_images} images,"
        f" {section.steps / steps_per_epoch:.1f} epochs, "
        + f"{replicas} replicas, each on one {_device(distribution)}",
        flush=True,
    )
    if inputs.init:
        head = "its" if inputs.init.keeps_head(spec.label_names) else "a new"
        begin = inputs.init.source.get("weights", inputs.init.text)
        print(
            f"starts from {begin}, with {head} classifier for {spec.num_classes} classes",
            flush=True,
        )
    warning = models.warning(spec.architecture, spec.preprocessing.image_size)
    if warning and workers.is_chief(distribution):
        print(warning)
    manifests = [manifest for manifest in (labeled, unlabeled) if manifest]
    evaluate = None
    if section.evaluate_every and (inputs.data / "validation").is_dir():
        manifests.append(records.read_manifest(inputs.data / "validation", "labeled"))
        evaluate = _evaluator(trainer, manifests[-1], spec, batch)
    splits = {"labeled": labeled, "unlabeled": unlabeled}
    samples = {
        shown: (manifest, noise)
        for shown, (split, noise) in method.samples(section, spec.preprocessing).items()
        if (manifest := splits[split])
    }
    fit(
        trainer,
        lambda finished: pipeline.distribute(
            distribution,
            lambda *share: batches(
                method, section, spec.preprocessing, inputs, seed, finished, *share
            ),
        ),
        workdir,
        steps=section.steps,
        images_per_step=labeled_images + unlabeled_images,
        log_every=section.log_every,
        checkpoint_every=section.checkpoint_every,
        evaluate_every=section.evaluate_every,
        evaluate=evaluate,
        stop_after=section.stop_after,
        keep=section.keep_checkpoints,
        keep_every=section.keep_every,
        manifests=manifests,
        profile=profile,
        images=lambda step: {
            shown: pipeline.samples(manifest, noise, count=SAMPLES, seed=seed, step=step)
            for shown, (manifest, noise) in samples.items()
        },
    )
    best_row = best(workdir) if workers.is_chief(distribution) else None
    best_step = max(workers.gather(distribution, int(best_row["step"]) if best_row else 0))
    if section.final_weights == "best" and best_step:
        Checkpoints(workdir / "checkpoints", tf.train.Checkpoint(trainer=trainer)).restore_step(
            best_step
        )
    with trainer.ema.swapped(), workers.kept_by_chief(distribution, workdir / "model") as directory:
        model_dir.save(directory, trainer.model, spec)
    if not workers.is_chief(distribution):
        return
    last = read_json_lines(workdir / "metrics.jsonl", METRICS)[-1][1]
    model_step = best_row["step"] if section.final_weights == "best" and best_row else last["step"]
    if last["step"] < section.steps:
        print(
            f"stopped at step {last['step']} of {section.steps}: {section.stop_after} evaluations"
            f" without a better top-1; the weights of step {model_step} are kept"
            f" (final_weights={section.final_weights})",
            flush=True,
        )
    summary = {
        "steps": last["step"],
        "parameters": parameters,
        "images_seen": last["step"] * (labeled_images + unlabeled_images),
        "replicas": replicas,
        "seconds": last["seconds"],  # of the steps and their evaluations, over all starts
        "last": last,
        "best": best_row,  # on the validation split
        "model_step": model_step,
        **({"init": dict(inputs.init.source)} if inputs.init and inputs.init.source else {}),
    }
    work_dirs.finish(workdir, summary, says_done(workdir, summary))
    print(f"trained in {summary['seconds']} s; model in {workdir / 'model'}")


def build_trainer(
    method: Method,
    section: ConfigDict,
    spec: model_dir.ModelSpec,
    steps_per_epoch: float,
    seed: int,
    sync: bool,
    inputs: Inputs | None = None,
) -> Trainer:
    """Builds the method's compiled trainer; call inside the strategy's scope.

    Args:
      method: method of the section.
      section: the resolved section.
      spec: spec of the model that is kept.
      steps_per_epoch: labeled images / batch_size.
      seed: seed of the run.
      sync: whether there is more than one replica.
      inputs: where the models to start from and to label by are found.

    Raises:
      InputError: a model in `inputs` has other classes, or fewer blocks than are to be frozen.
    """
    sync = section.sync_batch_norm and sync

    begin = inputs.init if inputs else None
    trained = begin.load() if begin else None

    def build(model: Mapping[str, Any], seed: int) -> tf.keras.Model:
        network = model_dir.ModelSpec(dict(model), spec.preprocessing, spec.label_names).build(
            seed=seed, sync_batch_norm=sync
        )
        if begin:
            initial.start(network, begin, trained, spec.label_names)
            fixres.freeze_blocks(network, section.get("frozen_blocks", 0))
            if section.get("frozen_batch_norm"):
                fixres.freeze_batch_norm(network)
        return network

    model = build(spec.architecture, seed)
    rates = schedules.of_section(section, steps_per_epoch)
    settings = {name: section[name].optimizer if name else section.optimizer for name in rates}
    by_name = {name: optimizers.build(settings[name], rate) for name, rate in rates.items()}
    teacher = model_dir.load(inputs.teacher)[0] if inputs and inputs.teacher else None
    adjustment = None
    if inputs and section.get("logit_adjustment"):
        adjustment = losses.log_priors(
            labels_per_class(inputs), section.logit_adjustment, spec.label_names
        )
    trainer = method.build(
        section, Parts(model, by_name, build, teacher, seed, spec.num_classes, adjustment)
    )
    if begin:
        trainer.set_layer_rates(section.get("layer_decay", 1.0), section.get("head_steps", 0))
    if section.jit_compile:
        trainer.jit_compile = True
    if section.steps_per_execution > 1:
        trainer.steps_per_execution = section.steps_per_execution
    return trainer


def labels_per_class(inputs: Inputs) -> list[int]:
    """Counts the labeled images of each class, in the classes' order.

    The counts come from the summary of the prepared data.
    """
    names = inputs.labeled.label_names
    schema = {"splits": {"labeled": {"per_class": dict.fromkeys(names, int)}}}
    counts = read_json(inputs.data / "summary.json", schema)["splits"]["labeled"]["per_class"]
    return [counts[name] for name in names]


def batches(
    method: Method,
    section: ConfigDict,
    preprocessing: Preprocessing,
    inputs: Inputs,
    seed: int,
    start_step: int,
    pipelines: tuple[int, int],
    replicas: int,
) -> tf.data.Dataset:
    """Returns the data for the method's trainer from step `start_step` on.

    For `start_step`, `pipelines` and `replicas` see `pipeline.train_batches`.
    """
    options = {"seed": seed, "start_step": start_step, "pipelines": pipelines, "replicas": replicas}
    unlabeled_images = section.batch_size * section.unlabeled_ratio
    clean = model_dir.read_spec(inputs.teacher).preprocessing if inputs.teacher else None
    return method.batches(
        section,
        Streams(
            inputs.labeled,
            inputs.unlabeled,
            preprocessing,
            section.batch_size,
            unlabeled_images,
            options,
            clean,
        ),
    )


def _device(distribution: tf.distribute.Strategy) -> str:
    """Returns what a replica computes on: GPU, TPU, or CPU with its instructions and kernels."""
    kind = strategy.device_kind(distribution)
    kernels = processor.describe() if kind == "CPU" else ""
    return f"{kind} ({kernels})" if kernels else kind


def _profile(steps: str | None, last: int) -> tuple[int, int] | None:
    """Returns the first and the last step of the flag --profile_steps. Raises InputError."""
    if not steps:
        return None
    parts = steps.split(",")
    if (
        len(parts) != 2
        or not all(part.isdecimal() for part in parts)
        or not 1 <= int(parts[0]) <= int(parts[1]) <= last
    ):
        raise InputError(f"--profile_steps={steps} must be FIRST,LAST: two steps from 1 to {last}")
    return int(parts[0]), int(parts[1])


def _evaluator(
    trainer: Trainer, manifest: Manifest, spec: model_dir.ModelSpec, batch_size: int
) -> Callable[[], dict[str, float]]:
    """Returns a function that measures the averaged weights on a split, every example once."""

    def batches(pipelines: tuple[int, int], replicas: int) -> tf.data.Dataset:
        data = pipeline.eval_batches(manifest, batch_size, spec.preprocessing, pipelines, replicas)
        return data.map(lambda b: (b["image"], b["label"], b["weight"]))

    data = pipeline.distribute(trainer.distribute_strategy, batches)
    steps = -(-manifest.num_records // batch_size)

    def evaluate() -> dict[str, float]:
        with trainer.ema.swapped():
            values = trainer.evaluate(data, steps=steps, verbose=0, return_dict=True)
        if values["examples"] != manifest.num_records:
            records.verify_split(manifest)  # names the damaged file
        assert values.pop("examples") == manifest.num_records, (
            "an example was left out or counted twice"
        )
        return values

    return evaluate
