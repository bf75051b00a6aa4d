"""Trains a teacher or a student: `run_teacher.sh`, `run_student.sh` and `run_finetune.sh`.

The three are one program on different sections of a recipe: a teacher is a student without unlabelled images, fine-tuning starts from
trained weights, and pre-training on pseudo-labels (`labeled=False`) is the training of a teacher to whom they are the labels.
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
from noisy_student.model import LOSS_NORMALIZATIONS, PSEUDO_LABELS, NoisyStudent, pseudo_targets
from training import fixres, model_dir, models, optimizers, schedules, smoke, stage
from training import resolve as resolving

FLAGS = {
    **stage.FLAGS,
    "section": "Section of the config to train: teacher, student, student_2, ..., finetune.",
    "iteration": "Which student this is, from 1; those of one recipe differ in initial weights, order and noise.",
    "pseudo_labeled": "Directory made by run_balance.sh; none for a teacher.",
    "teacher": "Trained model (work directory) that labels within the step, for a section that is `online`, in place of --pseudo_labeled.",
    "init": "Trained model (work directory) to start from: its architecture and weights, in place of the section's.",
}
OPTIONAL = {**stage.OPTIONAL, "section": "teacher", "iteration": "0", "pseudo_labeled": None, "teacher": None, "init": None}


def check(config: ConfigDict, section: str, *, init: bool = False) -> None:
    """Raises InputError where a value of a train section is impossible, as far as it can be told without data and `init`."""
    values = config[section].to_dict()
    own = values.pop("preprocessing", {})
    of_small = any({**config.preprocessing.to_dict(), **own}.get(key) for key in ("pad", "extra_cutout"))
    side = 32 if of_small else 224  # of images that would do
    try:
        Preprocessing.from_dict(resolving.preprocessing(config.preprocessing.to_dict(), own, median_height=side, median_width=side))
        values = resolving.section(values, labeled_examples=1000, unlabeled=section.startswith("student"))
        models.builder(values["model"])
        schedules.of_section(values, 1.0)
    except InputError as error:
        raise InputError(f"config.{section}: {error}") from error
    if config[section].batch_size and config[section].batch_size % values["accumulation"]:
        raise InputError(f"{section}.batch_size={values['batch_size']} does not divide by {section}.accumulation={values['accumulation']}")
    stage.require_validation(section, values, bool(config.data.validation_size))
    _check(section, values, init)


def _check(section: str, values: dict[str, Any], init: bool) -> None:
    for name, known in {"loss_normalization": LOSS_NORMALIZATIONS, "pseudo_labels": PSEUDO_LABELS}.items():
        if values[name] not in known:
            raise InputError(f"{section}.{name}: no {values[name]!r}; known: {', '.join(known)}")
    if values["temperature"] <= 0:
        raise InputError(f"{section}.temperature is {values['temperature']}; it must be above 0")
    if not 0 < values["label_data_sample_prob"] <= 1:
        raise InputError(f"{section}.label_data_sample_prob is {values['label_data_sample_prob']}; it must be above 0 and at most 1")
    if values["online"] and not (values["labeled"] and values["unlabeled_ratio"]):
        raise InputError(f"{section}.online=True needs unlabeled_ratio above 0 and labeled=True")
    if values["frozen_blocks"] and not init:
        raise InputError(f"{section}.frozen_blocks={values['frozen_blocks']} needs --init: random weights must not be frozen")
    if not values["labeled"] and (not values["unlabeled_ratio"] or values["confidence_weighted"]):
        raise InputError(f"{section}.labeled=False needs pseudo-labelled images, unlabeled_ratio above 0 and confidence_weighted=False")


def resolve(config: ConfigDict, section: str, data: str, *, unlabeled: bool, init: str | None = None, iteration: int = 0) -> dict[str, Any]:
    """`stage.resolve`, for a start from the model in `init` if given: its network and normalisation, and what is left open."""
    if init and section in config:  # what is left open is as it was trained
        trained = model_dir.read_spec(init).preprocessing.to_dict()
        config = config.copy_and_resolve_references()
        for key in ("image_size", "style", "pad", "crop_padding"):
            if key in config.preprocessing and config.preprocessing[key] is None:
                config.preprocessing[key] = trained[key]
    resolved = stage.resolve(config, section, data, unlabeled=unlabeled, iteration=iteration)
    if "model" not in resolved["train"]:
        raise InputError(f"--section: {section} is trained by run_meta_pseudo_labels.sh")
    _check(section, resolved["train"], bool(init))
    if init:
        # The weights were trained on pixels normalised so: other numbers would be another network.
        spec = model_dir.read_spec(init)
        resolved["preprocessing"].update({"mean": spec.preprocessing.mean, "std": spec.preprocessing.std})
        resolved["train"]["model"] = spec.architecture
    return resolved


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
    section: str,
    iteration: str,
    pseudo_labeled: str | None,
    teacher: str | None,
    init: str | None,
    strategy: str,
    cpu_devices: str,
    tpu: str,
    profile_steps: str | None,
) -> None:
    """Trains the section, or goes on with it, or says that it is done."""
    number, devices = app.whole_number("iteration", iteration), app.whole_number("cpu_devices", cpu_devices, 1)
    online = isinstance(config.get(section), ConfigDict) and config[section].get("online", False)
    needed, other = ("teacher", "pseudo_labeled") if online else ("pseudo_labeled", "teacher")
    given = {"pseudo_labeled": pseudo_labeled, "teacher": teacher}
    if section.startswith("student") and not given[needed]:
        of = "the directory of a trained model" if online else "the directory made by run_balance.sh"
        raise InputError(f"--{needed} is missing: a student{' that is online' if online else ''} needs {of}")
    if given[other] and section in config:
        raise InputError(f"--{other} is for a student's section with online={not online}; {section} has online={online}")
    if section.startswith("finetune") and not init:
        raise InputError("--init is missing: fine-tuning starts from the directory of a trained model")
    inputs = {name: path for name, path in (("data", data), *given.items(), ("init", init)) if path}
    made_by = {"data": "run_prepare_data.sh", "pseudo_labeled": "run_balance.sh", "teacher": model_dir.MADE_BY, "init": model_dir.MADE_BY}
    for name, path in inputs.items():
        workdirs.require_finished(path, f"--{name}", made_by[name])
    resolved = resolve(config, section, data, unlabeled=any(given.values()), init=init, iteration=number)
    if stage.start(workdir, resolved, inputs, strategy):
        where = {"strategy_name": strategy, "cpu_devices": devices, "tpu": tpu, "profile_steps": profile_steps}
        train(Path(workdir), resolved, data, pseudo_labeled, init, teacher, **where)


def train(
    workdir: Path,
    resolved: dict[str, Any],
    data: str,
    pseudo_labeled: str | None,
    init: str | None,
    teacher: str | None = None,
    **where: Any,
) -> None:
    """Runs one resolved training; `where`: strategy, CPU devices, TPU and profile, see `stage.train`."""
    section = ConfigDict(resolved["train"])
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    unlabeled = records.read_manifest(pseudo_labeled, "pseudo_labeled") if pseudo_labeled and section.unlabeled_ratio else None
    if teacher:
        unlabeled = records.read_manifest(Path(data) / "unlabeled", "unlabeled")
        labeler = model_dir.read_spec(teacher)
        records.require_same_classes(labeler.label_names, f"--teacher={teacher}", labeled.label_names, data)
    elif unlabeled:
        records.require_same_classes(unlabeled.label_names, f"--pseudo_labeled={pseudo_labeled}", labeled.label_names, data)
    # Evaluation must tell a model that was fine-tuned at a larger resolution from one that was not.
    metadata = {"init_image_size": model_dir.read_spec(init).preprocessing.image_size} if init else {}
    spec = model_dir.ModelSpec(section.model.to_dict(), Preprocessing.from_dict(resolved["preprocessing"]), labeled.label_names, metadata)
    samples = {"labeled": (labeled, spec.preprocessing)} if section.labeled and section.labeled_augmentation else {}
    if unlabeled and section.unlabeled_augmentation:
        samples["unlabeled"] = (unlabeled, spec.preprocessing)
    clean = labeler.preprocessing if teacher else None
    stage.train(
        workdir,
        resolved,
        spec,
        lambda **run: build_trainer(section, spec, init=init, teacher=teacher, **run),
        lambda *share: batches(labeled, unlabeled, spec.preprocessing, section, resolved["seed"], *share, clean=clean),
        data=Path(data),
        labeled=labeled,
        unlabeled=unlabeled,
        samples=samples,
        **where,
    )


def build_trainer(
    section: ConfigDict,
    spec: model_dir.ModelSpec,
    *,
    steps_per_epoch: float,
    seed: int,
    sync: bool,
    init: str | None,
    teacher: str | None = None,
) -> NoisyStudent:
    """The compiled `NoisyStudent` of a resolved section; call inside the strategy's scope. Raises InputError for an unfit `init`."""
    model = spec.build(seed=seed, sync_batch_norm=section.sync_batch_norm and sync)
    if init:
        trained, trained_spec = model_dir.load(init)
        records.require_same_classes(trained_spec.label_names, f"--init={init}", spec.label_names, "the data")
        model.set_weights(trained.get_weights())
        fixres.freeze_blocks(model, section.frozen_blocks)
    trainer = NoisyStudent(
        model,
        teacher=model_dir.load(teacher)[0] if teacher else None,
        loss_normalization=section.loss_normalization,
        pseudo_labels=section.pseudo_labels,
        temperature=section.temperature,
        # Pseudo-labels in the labels' place need none: `batches` smooths hard ones.
        label_smoothing=section.label_smoothing if section.labeled else 0.0,
        weight_decay=section.weight_decay,
        ema_decay=section.ema_decay,
        label_data_sample_prob=section.label_data_sample_prob,
        confidence_weighted=section.confidence_weighted,
        unlabeled_model_noise=section.unlabeled_model_noise,
        rematerialize=section.rematerialize,
        accumulation=section.accumulation,
        seed=seed,
    )
    schedule = schedules.of_section(section, steps_per_epoch)[""]
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
    *,
    clean: Preprocessing | None = None,
) -> tf.data.Dataset:
    """What `NoisyStudent` eats, from step `start` on: `(x, y)`, or `((x, y), (x_u, q))` with pseudo-labelled images.

    With `clean`, the size of an online teacher's images, these images are in the place of q. Without the labelled images it is
    `(x_u, y_u)`, with the targets made of q.
    """
    common: dict[str, Any] = {"seed": seed, "start_step": start, "pipelines": pipelines, "replicas": replicas}
    own = {"mixup": section.mixup, "cutmix": section.cutmix, "augment": section.labeled_augmentation}
    images = pipeline.train_batches(labeled, preprocessing, batch_size=section.batch_size, **own, **common)
    if not unlabeled:
        return images
    size = section.batch_size * section.unlabeled_ratio
    common["augment"] = section.unlabeled_augmentation
    extra = pipeline.train_batches(unlabeled, preprocessing, batch_size=size, stream_id=1, targets="probabilities", clean=clean, **common)
    if section.labeled:
        return tf.data.Dataset.zip((images, extra))
    return extra.map(lambda x, q: (x, pseudo_targets(q, section.pseudo_labels, section.temperature, section.label_smoothing)))


if __name__ == "__main__":
    app.run(main, FLAGS, OPTIONAL, needs=("data", "preprocessing"), smoke=smoke.reduced)
