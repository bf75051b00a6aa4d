"""What a training stage does around its method: flags, checks, the run itself, and what it leaves."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from cli import workdir as workdirs
from cli.errors import InputError
from cli.json_files import read_json, read_json_lines
from data import pipeline, records
from data.preprocessing import Preprocessing
from data.records import Manifest
from training import model_dir, models, strategy, workers
from training import resolve as resolving
from training.checkpoints import Checkpoints
from training.fit import METRICS, best, fit
from training.trainer import Trainer

FLAGS = {
    "workdir": "Directory for checkpoints, logs and the trained model.",
    "data": "Directory made by run_prepare_data.sh.",
    "strategy": "auto, one_device, mirrored, multi_worker or tpu.",
    "cpu_devices": "Logical CPU devices to split the CPU into, to try out --strategy=mirrored.",
    "tpu": "Name or address of the TPU.",
    "profile_steps": "FIRST,LAST: steps to profile, for TensorBoard.",
}
OPTIONAL = {"strategy": "auto", "cpu_devices": "1", "tpu": "", "profile_steps": None}

SAMPLES = 8
"""Images of each split in TensorBoard."""

Build = Callable[..., Trainer]
"""(steps_per_epoch, seed, sync) -> the compiled trainer; called in the strategy's scope."""

Batches = Callable[[int, tuple[int, int], int], tf.data.Dataset]
"""(finished steps, (input pipelines, index), replicas) -> what the trainer eats from there on."""


def resolve(config: ConfigDict, section: str, data: str, *, unlabeled: bool, iteration: int = 0) -> dict[str, Any]:
    """The resolved config of one training: seed, preprocessing and section (`train`), with nothing left open.

    Args:
      config: the recipe.
      section: the name of its train section; `preprocessing` in it overrides the recipe's.
      data: a finished data directory.
      unlabeled: whether the run has an unlabelled stream.
      iteration: tells trainings of one recipe apart, in their seeds.

    Raises:
      InputError: no such training, or values that don't fit.
    """
    known = sorted(name for name, value in config.items() if isinstance(value, ConfigDict) and "final_weights" in value)
    if section not in known:
        raise InputError(f"--section: no training {section!r} in the config; it has {', '.join(known)}")
    data_summary = read_json(Path(data) / "summary.json", {"median_height": float, "median_width": float})
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    own = config[section].get("preprocessing", ConfigDict()).to_dict()
    medians = {name: data_summary[name] for name in ("median_height", "median_width")}
    preprocessing = resolving.preprocessing(config.preprocessing.to_dict(), own, **medians)
    train = {key: value for key, value in config[section].to_dict().items() if key != "preprocessing"}
    train = resolving.section(train, labeled_examples=labeled.num_records, unlabeled=unlabeled)
    require_validation(section, train, (Path(data) / "validation").is_dir())
    return {"seed": 100 * config.seed + iteration, "preprocessing": preprocessing, "train": train}


def require_validation(section: str, train: dict[str, Any], there: bool) -> None:
    """Raises InputError where the resolved section `train` chooses by a validation split, and it has no evaluations or none is `there`."""
    if train["final_weights"] == "best" and not (train["evaluate_every"] and there):
        raise InputError(f"{section}.final_weights=best needs {section}.evaluate_every and a validation split (data.validation_size)")


def start(workdir: str, resolved: dict[str, Any], inputs: dict[str, str], strategy: str) -> bool:
    """Claims the work directory; False, after saying so, where the training is done."""
    schema = {"steps": int, "parameters": int}
    done = workdirs.start(workdir, resolved, inputs, shared=strategy == "multi_worker", summary_schema=schema)
    if done:
        print(f"{workdir} is done: {done['steps']} steps, {done['parameters']:,} parameters")
    return not done


@workers.leaving_with_the_lost()
def train(
    workdir: Path,
    resolved: dict[str, Any],
    spec: model_dir.ModelSpec,
    build: Build,
    batches: Batches,
    *,
    data: Path,
    labeled: Manifest,
    unlabeled: Manifest | None,
    samples: Mapping[str, tuple[Manifest, Preprocessing]],
    strategy_name: str = "auto",
    cpu_devices: int = 1,
    tpu: str = "",
    profile_steps: str | None = None,
) -> None:
    """Runs one resolved training from wherever it stopped, and leaves `model/` and `summary.json`.

    Args:
      workdir: claimed with `start`.
      resolved: see `resolve`; the section has `steps`, `batch_size`, `unlabeled_ratio`, `precision` and the `..._every`s.
      spec: of the model that is kept.
      build: makes the trainer.
      batches: makes its data.
      data: the data directory, for its validation split.
      labeled: the labelled split.
      unlabeled: the unlabelled split, if the run has one.
      samples: splits and the noise of their images, by the names under which TensorBoard shows some of each.
      strategy_name: see `training.strategy.create`.
      cpu_devices: the same.
      tpu: the same.
      profile_steps: the flag.

    Raises:
      InputError: the batch does not divide among the replicas, and whatever `fit` and `build` raise.
    """
    section = ConfigDict(resolved["train"])
    profile = _profile(profile_steps, section.steps)
    batch, ratio = section.batch_size, section.unlabeled_ratio
    first, more = batch if section.get("labeled", True) else 0, batch * ratio  # images of a step
    where = strategy.create(strategy_name, cpu_devices, tpu)
    if section.precision == "mixed_float16" and strategy.device_kind(where) == "TPU":
        raise InputError("precision=mixed_float16 is for GPUs; on a TPU take mixed_bfloat16")
    replicas = where.num_replicas_in_sync
    digest = zlib.crc32(json.dumps(resolved, sort_keys=True).encode())
    workers.require_same(where, digest, "the workers run different configs; give all of them the same flags")
    parts = section.get("accumulation", 1)
    if batch % (replicas * parts):
        among = f"{replicas} replicas" + (f" with accumulation={parts}" if parts > 1 else "")
        raise InputError(f"batch_size={batch} does not divide among {among}")
    tf.keras.utils.set_random_seed(resolved["seed"] % 2**32)
    tf.config.experimental.enable_op_determinism()
    tf.keras.mixed_precision.set_global_policy(section.precision)
    steps_per_epoch = labeled.num_records / batch
    with where.scope():  # everything that owns variables
        trainer = build(steps_per_epoch=steps_per_epoch, seed=resolved["seed"], sync=replicas > 1)

    parameters = trainer.model.count_params()
    print(
        f"{spec.architecture['name']}: {parameters:,} parameters, {spec.preprocessing.image_size} px, {labeled.num_records} labelled images"
        + (f", {unlabeled.num_records} {unlabeled.name.replace('_', '-')}" if unlabeled else "")
        + f"; {section.steps} steps of {first} + {more} images, {section.steps / steps_per_epoch:.1f} epochs, "
        + f"{replicas} replicas, each on one {strategy.device_kind(where)}",
        flush=True,
    )
    warning = models.warning(spec.architecture, spec.preprocessing.image_size)
    if warning and workers.is_chief(where):
        print(warning)
    manifests = [manifest for manifest in (labeled, unlabeled) if manifest]
    evaluate = None
    if section.evaluate_every and (data / "validation").is_dir():
        manifests.append(records.read_manifest(data / "validation", "labeled"))
        evaluate = _evaluator(trainer, manifests[-1], spec, batch)
    fit(
        trainer,
        lambda finished: pipeline.distribute(where, lambda *share: batches(finished, *share)),
        workdir,
        steps=section.steps,
        images_per_step=first + more,
        log_every=section.log_every,
        checkpoint_every=section.checkpoint_every,
        evaluate_every=section.evaluate_every,
        evaluate=evaluate,
        keep=section.keep_checkpoints,
        keep_every=section.keep_every,
        manifests=manifests,
        profile=profile,
        images=lambda step: {
            name: pipeline.samples(manifest, noise, count=SAMPLES, seed=resolved["seed"], step=step)
            for name, (manifest, noise) in samples.items()
        },
    )
    best_row = best(workdir) if workers.is_chief(where) else None
    best_step = max(workers.gather(where, int(best_row["step"]) if best_row else 0))
    if section.final_weights == "best" and best_step:
        Checkpoints(workdir / "checkpoints", tf.train.Checkpoint(trainer=trainer)).restore_step(best_step)
    with trainer.ema.swapped(), workers.kept_by_chief(where, workdir / "model") as directory:
        model_dir.save(directory, trainer.model, spec)
    if not workers.is_chief(where):
        return
    last = read_json_lines(workdir / "metrics.jsonl", METRICS)[-1][1]
    summary = {
        "steps": section.steps,
        "parameters": parameters,
        "images_seen": section.steps * (first + more),
        "replicas": replicas,
        "seconds": last["seconds"],  # of the steps and their evaluations, over all starts
        "last": last,
        "best": best_row,  # on the validation split
        "model_step": best_row["step"] if section.final_weights == "best" and best_row else section.steps,
    }
    workdirs.finish(workdir, summary)
    print(f"trained in {summary['seconds']} s; model in {workdir / 'model'}")


def _profile(steps: str | None, last: int) -> tuple[int, int] | None:
    """First and last step of the flag --profile_steps. Raises InputError."""
    if not steps:
        return None
    parts = steps.split(",")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]) <= last:
        raise InputError(f"--profile_steps={steps}: two steps from 1 to {last} are needed, FIRST,LAST")
    return int(parts[0]), int(parts[1])


def _evaluator(trainer: Trainer, manifest: Manifest, spec: model_dir.ModelSpec, batch_size: int) -> Callable[[], dict[str, float]]:
    """A function that measures the averaged weights on a split, every example once."""

    def batches(pipelines: tuple[int, int], replicas: int) -> tf.data.Dataset:
        data = pipeline.eval_batches(manifest, batch_size, spec.preprocessing, pipelines, replicas)
        return data.map(lambda b: (b["image"], b["label"], b["weight"]))

    data = pipeline.distribute(trainer.distribute_strategy, batches)
    steps = -(-manifest.num_records // batch_size)

    def evaluate() -> dict[str, float]:
        with trainer.ema.swapped():
            values = trainer.evaluate(data, steps=steps, verbose=0, return_dict=True)
        if values["examples"] != manifest.num_records:
            records.verify_split(manifest)  # names the file that is to blame
        assert values.pop("examples") == manifest.num_records, "an example was left out or counted twice"
        return values

    return evaluate
