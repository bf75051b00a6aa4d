"""Trains a teacher or a student: `run_teacher.sh`, `run_student.sh` and `run_finetune.sh`.

The three are one program on different sections of a recipe: a teacher is a student without unlabelled images, and
fine-tuning starts from trained weights.
"""

from __future__ import annotations

import stages  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

# isort: split

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from data import pipeline, records
from data.preprocessing import Preprocessing
from data.records import Manifest
from noisy_student.model import NoisyStudent
from stages import app
from stages import workdir as workdirs
from stages.errors import InputError
from stages.files import read_json
from training import model_dir, optimizers, schedules
from training import resolve as resolving
from training.fit import fit
from training.strategy import create

FLAGS = {
    "workdir": "Directory for checkpoints, logs and the trained model.",
    "data": "Directory made by run_prepare_data.sh.",
    "section": "Section of the config to train: teacher, student, student_2, ..., finetune.",
    "iteration": "Which student this is, from 1; those of one recipe differ in initial weights, order and noise.",
    "pseudo_labeled": "Directory made by run_balance.sh; none for a teacher.",
    "init": "Trained model (work directory) to start from: its architecture and weights, in place of the section's.",
    "strategy": "auto, one_device, mirrored, multi_worker or tpu.",
    "cpu_devices": "Logical CPU devices to split the CPU into, to try out --strategy=mirrored.",
    "tpu": "Name or address of the TPU.",
}
OPTIONAL = {"section": "teacher", "iteration": "0", "pseudo_labeled": None, "init": None, "strategy": "auto", "cpu_devices": "1", "tpu": ""}


def resolve(
    config: ConfigDict, section: str, data: str, has_unlabeled: bool, init: str | None = None, iteration: int = 0
) -> dict[str, Any]:
    """The resolved config of one training: seed, section and preprocessing, with nothing left open. Raises InputError."""
    if section not in config:
        raise InputError(f"--section: no section {section!r} in the config; it has {', '.join(sorted(config))}")
    data_summary = read_json(Path(data) / "summary.json")
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    preprocessing = {**config.preprocessing.to_dict(), **config[section].get("preprocessing", ConfigDict()).to_dict()}
    medians = {name: data_summary[name] for name in ("median_height", "median_width")}
    preprocessing = resolving.preprocessing(preprocessing, **medians)
    train = {key: value for key, value in config[section].to_dict().items() if key != "preprocessing"}
    if init:
        train["model"] = model_dir.read_spec(init).architecture
    train = resolving.section(train, labeled_examples=labeled.num_records, unlabeled=has_unlabeled)
    return {"seed": 100 * config.seed + iteration, "preprocessing": preprocessing, "train": train}


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
    section: str,
    iteration: str,
    pseudo_labeled: str | None,
    init: str | None,
    strategy: str,
    cpu_devices: str,
    tpu: str,
    arguments: list[str],
) -> None:
    """Trains the section, or goes on with it, or says that it is done."""
    if arguments:
        raise InputError(f"unexpected argument {arguments[0]!r}; flags are written --name=value")
    for name, value in (("iteration", iteration), ("cpu_devices", cpu_devices)):
        if not value.isdigit():
            raise InputError(f"--{name}={value}: a whole number is needed")
    if section.startswith("student") and not pseudo_labeled:
        raise InputError("--pseudo_labeled is missing: a student needs the directory made by run_balance.sh")
    if section.startswith("finetune") and not init:
        raise InputError("--init is missing: fine-tuning starts from the directory of a trained model")
    inputs = {name: path for name, path in (("data", data), ("pseudo_labeled", pseudo_labeled), ("init", init)) if path}
    made_by = {"data": "run_prepare_data.sh", "pseudo_labeled": "run_balance.sh", "init": "run_teacher.sh or run_student.sh"}
    for name, path in inputs.items():
        workdirs.require_finished(path, f"--{name}", made_by[name])
    resolved = resolve(config, section, data, bool(pseudo_labeled), init, int(iteration))
    done = workdirs.start(workdir, resolved, inputs)
    if done:
        print(f"{workdir} is done: {done['steps']} steps, {done['parameters']:,} parameters")
        return
    train(Path(workdir), resolved, data, pseudo_labeled, init, strategy=strategy, cpu_devices=int(cpu_devices), tpu=tpu)


def train(
    workdir: Path,
    resolved: dict[str, Any],
    data: str,
    pseudo_labeled: str | None,
    init: str | None,
    *,
    strategy: str = "auto",
    cpu_devices: int = 1,
    tpu: str = "",
) -> None:
    """Runs one resolved training from wherever it stopped, and leaves `model/` and `summary.json`."""
    began = time.time()
    seed, section = resolved["seed"], ConfigDict(resolved["train"])
    batch, ratio = section.batch_size, section.unlabeled_ratio
    where = create(strategy, cpu_devices, tpu)
    replicas = where.num_replicas_in_sync
    if batch % replicas or batch * ratio % replicas:
        raise InputError(f"batch_size={batch} (times unlabeled_ratio={ratio}) does not divide among {replicas} replicas")
    tf.keras.utils.set_random_seed(seed % 2**32)
    tf.config.experimental.enable_op_determinism()
    tf.keras.mixed_precision.set_global_policy(section.precision)

    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    unlabeled = records.read_manifest(pseudo_labeled, "pseudo_labeled") if pseudo_labeled and ratio else None
    if unlabeled and unlabeled.label_names != labeled.label_names:
        raise InputError(f"{pseudo_labeled} was labelled with other classes than {data}; make it again from this data")
    # Evaluation must tell a model that was fine-tuned at a larger resolution from one that was not.
    metadata = {"init_image_size": model_dir.read_spec(init).preprocessing.image_size} if init else {}
    spec = model_dir.ModelSpec(section.model.to_dict(), Preprocessing.from_dict(resolved["preprocessing"]), labeled.label_names, metadata)
    steps_per_epoch = labeled.num_records / batch
    with where.scope():  # everything that owns variables
        trainer = build_trainer(section, spec, steps_per_epoch=steps_per_epoch, seed=seed, sync=replicas > 1, init=init)

    def make_dataset(start: int) -> tf.data.Dataset:
        return pipeline.distribute(where, lambda *share: batches(labeled, unlabeled, spec.preprocessing, section, seed, start, *share))

    parameters = trainer.model.count_params()
    print(
        f"{section.model.name}: {parameters:,} parameters, {spec.preprocessing.image_size} px, {labeled.num_records} labelled images"
        + (f", {unlabeled.num_records} pseudo-labelled" if unlabeled else "")
        + f"; {section.steps} steps of {batch} + {batch * ratio} images, {section.steps / steps_per_epoch:.1f} epochs, {replicas} replicas",
        flush=True,
    )
    validation = Path(data) / "validation"
    fit(
        trainer,
        make_dataset,
        workdir,
        steps=section.steps,
        images_per_step=batch * (1 + ratio),
        log_every=section.log_every,
        checkpoint_every=section.checkpoint_every,
        evaluate_every=section.evaluate_every,
        evaluate=_evaluator(trainer, validation, spec, batch) if section.evaluate_every and validation.is_dir() else None,
        keep=section.keep_checkpoints,
        manifests=(labeled, unlabeled) if unlabeled else (labeled,),
    )
    with trainer.ema.swapped():
        model_dir.save(workdir / "model", trainer.model, spec)
    summary = {
        "steps": section.steps,
        "parameters": parameters,
        "images_seen": section.steps * batch * (1 + ratio),
        "replicas": replicas,
        "seconds": round(time.time() - began, 1),
        "last": json.loads((workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]),
    }
    workdirs.finish(workdir, summary)
    print(f"trained in {summary['seconds']} s; model in {workdir / 'model'}")


def build_trainer(
    section: ConfigDict, spec: model_dir.ModelSpec, *, steps_per_epoch: float, seed: int, sync: bool, init: str | None
) -> NoisyStudent:
    """The compiled `NoisyStudent` of a resolved section; call inside the strategy's scope. Raises InputError for an unfit `init`."""
    model = spec.build(seed=seed, sync_batch_norm=section.sync_batch_norm and sync)
    if init:
        trained, trained_spec = model_dir.load(init)
        if trained_spec.label_names != spec.label_names:
            raise InputError(f"--init: {init} knows other classes than the data; train on data of its own classes")
        model.set_weights(trained.get_weights())
    trainer = NoisyStudent(
        model,
        loss_normalization=section.loss_normalization,
        pseudo_labels=section.pseudo_labels,
        temperature=section.temperature,
        label_smoothing=section.label_smoothing,
        weight_decay=section.weight_decay,
        ema_decay=section.ema_decay,
        seed=seed,
    )
    schedule = schedules.build(section.schedule, batch_size=section.batch_size, steps=section.steps, steps_per_epoch=steps_per_epoch)
    trainer.compile(optimizer=optimizers.build(section.optimizer, schedule))
    return trainer


def batches(
    labeled: Manifest,
    unlabeled: Manifest | None,
    preprocessing: Preprocessing,
    section: ConfigDict,
    seed: int,
    start: int,
    pipelines: tuple[int, int],
    replicas: int,
) -> tf.data.Dataset:
    """What `NoisyStudent` eats, from step `start` on: `(x, y)`, or `((x, y), (x_u, q))` with pseudo-labelled images."""
    common: dict[str, Any] = {"seed": seed, "start_step": start, "pipelines": pipelines, "replicas": replicas}
    images = pipeline.train_batches(labeled, preprocessing, batch_size=section.batch_size, **common)
    if not unlabeled:
        return images
    size = section.batch_size * section.unlabeled_ratio
    extra = pipeline.train_batches(unlabeled, preprocessing, batch_size=size, targets="probabilities", stream_id=1, **common)
    return tf.data.Dataset.zip((images, extra))


def _evaluator(trainer: NoisyStudent, split: Path, spec: model_dir.ModelSpec, batch_size: int) -> Callable[[], dict[str, float]]:
    """A function that measures the averaged weights on a split, every example once."""
    manifest = records.read_manifest(split, "labeled")
    data = pipeline.eval_batches(manifest, batch_size, spec.preprocessing).map(lambda b: (b["image"], b["label"], b["weight"]))

    def evaluate() -> dict[str, float]:
        with trainer.ema.swapped():
            values = trainer.evaluate(data, verbose=0, return_dict=True)
        assert values.pop("examples") == manifest.num_records, "an example was left out or counted twice"
        return values

    return evaluate


if __name__ == "__main__":
    app.run(main, FLAGS, OPTIONAL)
