"""The training stage as a command: killed and continued, on two replicas, with unusable input."""

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli import recipes
from cli.errors import InputError
from cli.files import file_digest
from cli.work_dirs import finish
from data import pipeline, prepare, protos, records
from meta_pseudo_labels.method import META_PSEUDO_LABELS
from noisy_student.method import NOISY_STUDENT
from tests import networks, training_runs
from tests.training_runs import metrics
from tests.weights import legacy
from training import model_dir, run
from training.supervised import SUPERVISED
from weights import names
from workflow import train

STEPS = 12
SMALL = [
    "--config=configs/noisy_student/digits.py",
    "--config.data.out_of_domain=20",
    *networks.flags("student"),
    f"--config.student.steps={STEPS}",
    "--config.student.batch_size=8",
    "--config.student.unlabeled_ratio=2",
    "--config.student.log_every=1",
    "--config.student.checkpoint_every=5",
]


def config(*overrides):
    return recipes.from_flags(*SMALL, *overrides)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Makes a data directory of digits, and a pseudo-labeled one of its unlabeled images."""
    root = tmp_path_factory.mktemp("train")
    data, pseudo_labeled = root / "data", root / "pseudo_labeled"
    prepare.main(config(), str(data))
    unlabeled, labeled = (
        records.read_manifest(data / "unlabeled"),
        records.read_manifest(data / "labeled"),
    )
    rng = np.random.default_rng(0)

    def examples():
        for serialized in records.read_shard(unlabeled.paths[0]):
            feature = tf.train.Example.FromString(serialized).features.feature
            encoded, key = (
                feature[name].bytes_list.value[0] for name in ("image/encoded", "image/key")
            )
            yield protos.make_example(
                encoded, key.decode(), probabilities=rng.dirichlet(np.ones(10)).astype("float32")
            )

    records.write_split(
        pseudo_labeled,
        "pseudo_labeled",
        examples(),
        2,
        unlabeled.num_records,
        kind="pseudo_labeled",
        label_names=labeled.label_names,
    )
    finish(pseudo_labeled, {"total": unlabeled.num_records})
    return {"data": str(data), "pseudo_labeled": str(pseudo_labeled)}


def start(workdir, directories, *extra):
    inputs = [f"--{name}={path}" for name, path in directories.items()]
    return training_runs.start(
        "student", *SMALL, f"--workdir={workdir}", "--section=student", *inputs, *extra
    )


@pytest.fixture(scope="module")
def uninterrupted(directories, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "student"
    main(workdir, directories)  # in this process, which has imported TensorFlow
    return workdir


def weights(workdir):
    return model_dir.load(workdir)[0].get_weights()


def test_two_replicas_follow_one(directories, uninterrupted, tmp_path):
    """Covers two replicas: the same global batch, synchronized BatchNorm, and all noise on.

    The noise belongs to the example, not to the replica. The student is rematerialized.
    """
    mirrored = ("--strategy=mirrored", "--cpu_devices=2", "--config.student.rematerialize=True")
    process = start(tmp_path / "student", directories, *mirrored)
    output, _ = process.communicate()
    assert process.returncode == 0 and "2 replicas, each on one CPU" in output
    one, two = metrics(uninterrupted)[:5], metrics(tmp_path / "student")[:5]
    for name in ("loss", "labeled_loss", "unlabeled_loss", "l2"):
        np.testing.assert_allclose(
            [row[name] for row in two], [row[name] for row in one], rtol=1e-4
        )
    assert json.loads((tmp_path / "student" / "summary.json").read_text())["replicas"] == 2


def test_a_finished_run_says_so(directories, uninterrupted, capsys):
    main(uninterrupted, directories)
    assert f"is done: {STEPS} steps" in capsys.readouterr().out


def main(workdir, directories, *overrides, section="student", **flags):
    values = {
        "iteration": 0,
        "init": None,
        "strategy": "auto",
        "cpu_devices": 1,
        "tpu": "",
        "profile_steps": None,
        "pseudo_labeled": None,
        "teacher": None,
    }
    train.main(
        config(*overrides),
        workdir=str(workdir),
        section=section,
        **{**values, **directories, **flags},
    )


def test_another_config_is_refused(directories, uninterrupted):
    with pytest.raises(InputError, match=r"another config \(train.batch_size: 8 -> 10\)"):
        main(uninterrupted, directories, "--config.student.batch_size=10")


def test_a_student_needs_pseudo_labels(directories, tmp_path):
    with pytest.raises(InputError, match=r"run_balance.sh"):
        main(tmp_path / "w", {"data": directories["data"]})


def test_an_online_teacher_gives_the_labels_that_it_would_have_stored(
    directories, uninterrupted, tmp_path
):
    """Covers two sources with the images in the same order, in as many shards.

    These are the pool itself, and a split with the teacher's predictions in full.
    """
    teacher, spec = model_dir.load(uninterrupted)
    pool = records.read_manifest(f"{directories['data']}/unlabeled")
    images = [batch["image"] for batch in pipeline.eval_batches(pool, 100, spec.preprocessing)]
    labels = tf.nn.softmax(
        tf.concat([teacher(image, training=False) for image in images], 0)
    ).numpy()

    def labeled():
        for serialized, label in zip(records.read_shard(pool.paths[0]), labels):
            feature = tf.train.Example.FromString(serialized).features.feature
            encoded, key = (
                feature[name].bytes_list.value[0] for name in ("image/encoded", "image/key")
            )
            yield protos.make_example(encoded, key.decode(), probabilities=label)

    stored = {"kind": "pseudo_labeled", "label_names": spec.label_names}
    records.write_split(
        tmp_path / "stored",
        "pseudo_labeled",
        labeled(),
        len(pool.files),
        pool.num_records,
        **stored,
    )
    finish(tmp_path / "stored", {})
    few = ("--config.student.steps=3", "--config.student.schedule.base=0.5")
    data = {"data": directories["data"]}
    main(tmp_path / "offline", data, *few, pseudo_labeled=str(tmp_path / "stored"))
    main(
        tmp_path / "online", data, *few, "--config.student.online=True", teacher=str(uninterrupted)
    )
    for a, b in zip(weights(tmp_path / "offline"), weights(tmp_path / "online")):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)
    for name in ("unlabeled_loss", "confidence"):
        rows = [[row[name] for row in metrics(tmp_path / run)] for run in ("offline", "online")]
        np.testing.assert_allclose(*rows, rtol=1e-4)


def test_an_online_student_needs_its_teacher_alone(directories, uninterrupted, tmp_path):
    with pytest.raises(
        InputError, match=r"--teacher is missing: noisy_student that is online needs"
    ):
        main(tmp_path / "w", directories, "--config.student.online=True")
    with pytest.raises(
        InputError,
        match=(
            r"--pseudo_labeled has no effect on student, which trains by noisy_student with"
            r" online=True"
        ),
    ):
        main(
            tmp_path / "w", directories, "--config.student.online=True", teacher=str(uninterrupted)
        )
    with pytest.raises(
        InputError,
        match=r"--teacher has no effect on student, which trains by noisy_student with"
        " online=False",
    ):
        main(tmp_path / "w", directories, teacher=str(uninterrupted))
    with pytest.raises(InputError, match=r"label_data_sample_prob is 0\.0; it must be above 0"):
        main(tmp_path / "w", directories, "--config.student.label_data_sample_prob=0.0")
    assert not (tmp_path / "w").exists()


def test_float16_is_not_for_a_tpu(directories, tmp_path, monkeypatch):
    monkeypatch.setattr(run.strategy, "device_kind", lambda strategy: "TPU")
    with pytest.raises(
        InputError, match=r"precision=mixed_float16 is for GPUs; on a TPU take mixed_bfloat16"
    ):
        main(tmp_path / "w", directories, "--config.student.precision=mixed_float16")


def test_missing_data_and_unknown_section(directories, tmp_path):
    with pytest.raises(InputError, match=r"run_prepare_data.sh"):
        main(tmp_path / "w", {**directories, "data": str(tmp_path / "nothing")})
    for section in ("student_9", "data", "seed"):
        with pytest.raises(
            InputError, match=f"no training '{section}' in the config; it has finetune, .*teacher"
        ):
            main(tmp_path / "w", directories, section=section)
    for name in ("loss_normalization", "pseudo_labels"):
        with pytest.raises(InputError, match=f"student.{name} is 'mean'; it can be "):
            main(tmp_path / "w", directories, f"--config.student.{name}=mean")
    assert not (tmp_path / "w").exists()


def test_pre_training_takes_the_student_s_unlabeled_images_as_labeled_ones(directories):
    found = []
    for together in ("True", "False"):
        overrides = (
            f"--config.student.labeled={together}",
            "--config.student.temperature=0.5",
            "--config.student.label_smoothing=0.2",
        )
        resolved = train.resolve_training(config(*overrides), "student", directories["data"])
        inputs = train.open_inputs(
            NOISY_STUDENT, resolved, directories["data"], directories["pseudo_labeled"]
        )
        preprocessing = train.Preprocessing.from_dict(resolved["preprocessing"])
        section = ConfigDict(resolved["train"])
        found.append(
            next(iter(run.batches(NOISY_STUDENT, section, preprocessing, inputs, 0, 3, (1, 0), 1)))
        )
    (_, (x_u, q)), (x, targets) = found
    assert x.shape[0] == 16
    np.testing.assert_array_equal(x, x_u)
    np.testing.assert_allclose(
        targets, q.numpy() ** 2 / (q.numpy() ** 2).sum(1, keepdims=True), rtol=1e-5
    )
    alone = config("--config.student.labeled=False", "--config.student.unlabeled_ratio=0")
    with pytest.raises(InputError, match=r"student\.labeled=False needs"):
        train.resolve_training(alone, "student", directories["data"])


def test_fine_tuning_starts_from_a_trained_model(directories, uninterrupted, tmp_path):
    with pytest.raises(InputError, match="--init is missing"):
        main(tmp_path / "w", {"data": directories["data"]}, section="finetune")
    data = {"data": directories["data"]}
    # The learning rate is 0, and the statistics' momentum does not decay: the weights must stay.
    still = ["--config.finetune.epochs=1", "--config.finetune.schedule.base=0.0"]
    main(tmp_path / "w", data, *still, section="finetune", init=str(uninterrupted))
    before, after = (model_dir.load(path)[0] for path in (uninterrupted, tmp_path / "w"))
    for a, b in zip(before.trainable_variables, after.trainable_variables):
        np.testing.assert_array_equal(a, b)


def test_fine_tuning_is_on_the_images_as_they_are_evaluated(directories):
    labeled = records.read_manifest(f"{directories['data']}/labeled")
    resolved = train.resolve_training(
        config("--config.finetune.batch_size=50"), "finetune", directories["data"]
    )
    preprocessing = train.Preprocessing.from_dict(resolved["preprocessing"])
    section, inputs = ConfigDict(resolved["train"]), run.Inputs(Path(directories["data"]), labeled)
    (images, labels) = next(
        iter(run.batches(SUPERVISED, section, preprocessing, inputs, 0, 0, (1, 0), 1))
    )
    (expected,) = pipeline.eval_batches(labeled, 50, preprocessing)
    order, expected_order = (
        sorted(range(50), key=lambda i: (int(y[i]), x[i].numpy().tobytes()))
        for x, y in ((images, labels), (expected["image"], expected["label"]))
    )
    np.testing.assert_array_equal(images.numpy()[order], expected["image"].numpy()[expected_order])


def test_fine_tuning_keeps_the_normalization_of_the_weights_and_can_freeze_blocks(
    directories, uninterrupted, tmp_path
):
    other = tmp_path / "other"
    model, spec = model_dir.load(uninterrupted)
    spec = dataclasses.replace(
        spec,
        preprocessing=dataclasses.replace(
            spec.preprocessing, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)
        ),
    )
    model_dir.save(other / "model", model, spec)
    finish(other, {})
    frozen = config(
        "--config.finetune.frozen_blocks=2", "--config.finetune.preprocessing.image_size=24"
    )
    resolved = train.resolve_training(frozen, "finetune", directories["data"], init=str(other))
    prepared = resolved["preprocessing"]
    assert (tuple(prepared["mean"]), tuple(prepared["std"]), prepared["image_size"]) == (
        (1.0, 2.0, 3.0),
        (4.0, 5.0, 6.0),
        24,
    )
    open_size = config("--config.preprocessing.image_size=None")
    resolved_open = train.resolve_training(
        open_size, "finetune", directories["data"], init=str(other)
    )
    assert (
        resolved_open["preprocessing"]["image_size"] == spec.preprocessing.image_size != 32
    )  # not the data's
    photos = config("--config.finetune.preprocessing.image_size=96").copy_and_resolve_references()
    with photos.unlocked():
        photos.preprocessing = ConfigDict({**photos.preprocessing.to_dict(), "pad": None})
    assert (
        train.resolve_training(photos, "finetune", directories["data"], init=str(other))[
            "preprocessing"
        ]["pad"]
        == 2
    )
    section = ConfigDict(resolved["train"])
    inputs = train.open_inputs(SUPERVISED, resolved, directories["data"], init=str(other))
    trainer = run.build_trainer(SUPERVISED, section, spec, 1.0, 0, False, inputs)
    for a, b in zip(
        model.get_weights(), trainer.model.get_weights()
    ):  # the release leaves the frozen ones random
        np.testing.assert_array_equal(a, b)
    assert len(trainer.model.trainable_variables) < len(model.trainable_variables)
    with pytest.raises(InputError, match=r"teacher.frozen_blocks=1 needs --init"):
        train.resolve_training(
            config("--config.teacher.frozen_blocks=1"), "teacher", directories["data"]
        )


def test_the_best_weights_of_the_validation_split_at_the_end(directories, tmp_path):
    best = [
        "--config.teacher.final_weights=best",
        "--config.teacher.evaluate_every=2",
        "--config.teacher.log_every=2",
    ]
    with pytest.raises(InputError, match=r"teacher.final_weights=best needs .* a validation split"):
        main(tmp_path / "w", {"data": directories["data"]}, *best, section="teacher")
    assert not (tmp_path / "w").exists()
    data = tmp_path / "data"
    small = ["--config.data.validation_size=50", *networks.flags("teacher")]
    short = [
        "--config.teacher.steps=8",
        "--config.teacher.batch_size=8",
        "--config.teacher.schedule.base=2.0",
    ]  # a rate that spoils
    prepare.main(config(*small), str(data))
    main(tmp_path / "w", {"data": str(data)}, *best, *small, *short, section="teacher")
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    rows = metrics(tmp_path / "w")
    assert (
        summary["best"] == max(rows, key=lambda row: row["eval_top1"])
        and summary["model_step"] == summary["best"]["step"]
    )
    model, spec = model_dir.load(tmp_path / "w")
    model.compile(
        metrics=["accuracy"], loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    batches = pipeline.eval_batches(
        records.read_manifest(data / "validation"), 50, spec.preprocessing
    )
    _, top1 = model.evaluate(batches.map(lambda b: (b["image"], b["label"])), verbose=0)
    assert top1 == pytest.approx(summary["best"]["eval_top1"], abs=1e-6)


def test_an_unfinished_input_is_refused(directories, tmp_path):
    unfinished = tmp_path / "pseudo_labeled"
    unfinished.mkdir()
    with pytest.raises(InputError, match=r"no summary.json"):
        main(tmp_path / "w", {**directories, "pseudo_labeled": str(unfinished)})


def test_a_truncated_shard_is_named(directories, tmp_path):
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", directories["data"], data], check=True)
    shard = next((data / "labeled").glob("labeled-*-of-?????"))
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"labeled-00000-of-00001.*record 49"):
        main(
            tmp_path / "w",
            {"data": str(data)},
            "--config.teacher.steps=3",
            *networks.flags("teacher"),
            section="teacher",
        )


def test_a_reordered_shard_is_refused_before_the_first_step(directories, tmp_path):
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", directories["data"], data], check=True)
    shard = next((data / "labeled").glob("labeled-*-of-?????"))
    records.write_shard(shard, list(records.read_shard(shard))[::-1])
    with pytest.raises(
        InputError, match=r"labeled-00000-of-00001 is not the file that manifest\.json describes"
    ):
        main(
            tmp_path / "w",
            {"data": str(data)},
            "--config.teacher.steps=3",
            *networks.flags("teacher"),
            section="teacher",
        )
    assert not list((tmp_path / "w").glob("checkpoints/*"))


TINY = {"name": "lite0", "width": 0.25, "depth": 0.1}


def write_weights(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes published weights of a small network with 5 classes; returns them by Keras's names."""
    rng = np.random.default_rng(seed)
    rows = names.of_architecture(TINY, 5)
    values = {row.keras: rng.uniform(0.5, 1.5, row.shape).astype(np.float32) for row in rows}
    legacy.save(path, {row.pytorch: row.to_timm(values[row.keras]) for row in rows})
    return values


def by_name(model):
    return {weight.name.partition(":")[0]: weight.numpy() for weight in model.weights}


def is_head(name):
    return name.startswith("predictions/")


def tiny(section):
    return [f"--config.{section}.model.{key}={value}" for key, value in TINY.items()]


def test_published_weights_get_a_new_classifier(directories, tmp_path):
    values = write_weights(tmp_path / "w.pth")
    small = config(
        *tiny("teacher"),
        "--config.teacher.model.dropout=0.3",
        "--config.preprocessing.image_size=None",
    )
    resolved = train.resolve_training(
        small, "teacher", directories["data"], init=str(tmp_path / "w.pth")
    )
    assert resolved["train"]["model"]["dropout"] == 0.3  # the recipe's noise
    assert resolved["preprocessing"]["image_size"] == 32  # the data's, not that of the weights
    inputs = train.open_inputs(
        SUPERVISED, resolved, directories["data"], init=str(tmp_path / "w.pth")
    )
    spec = train.spec_of(SUPERVISED, resolved, inputs)
    section = ConfigDict(resolved["train"])
    started, fresh = (
        by_name(run.build_trainer(SUPERVISED, section, spec, 1.0, 7, False, given).model)
        for given in (inputs, inputs._replace(init=None))
    )
    assert started.keys() == values.keys()
    for name, value in started.items():
        np.testing.assert_array_equal(
            value, np.float32(0.01) * fresh[name] if is_head(name) else values[name]
        )


def test_both_networks_of_meta_pseudo_labels_start_from_published_weights(directories, tmp_path):
    values = write_weights(tmp_path / "w.pth")
    recipe = recipes.from_flags(
        "--config=configs/meta_pseudo_labels/digits.py"
    ).copy_and_resolve_references()
    with recipe.unlocked():
        recipe.train.student.model = ConfigDict(TINY)
        recipe.train.frozen_blocks = 2
    resolved = train.resolve_training(
        recipe, "train", directories["data"], init=str(tmp_path / "w.pth")
    )
    assert resolved["train"]["teacher"]["model"] == resolved["train"]["student"]["model"]
    inputs = train.open_inputs(
        META_PSEUDO_LABELS, resolved, directories["data"], init=str(tmp_path / "w.pth")
    )
    spec = train.spec_of(META_PSEUDO_LABELS, resolved, inputs)
    trainer = run.build_trainer(
        META_PSEUDO_LABELS, ConfigDict(resolved["train"]), spec, 1.0, 0, False, inputs
    )
    teacher, student = by_name(trainer.teacher), by_name(trainer.model)
    for name, value in student.items():
        if not is_head(name):
            np.testing.assert_array_equal(value, values[name])
            np.testing.assert_array_equal(teacher[name], values[name])
    assert np.all(teacher["predictions/kernel"] != student["predictions/kernel"])
    learning, kept = (
        [w.name for w in network.trainable_weights] for network in (trainer.teacher, trainer.model)
    )
    assert learning == kept and len(kept) > 2
    assert not any(name.startswith(("stem", "block1a", "block2a")) for name in kept)


def test_a_run_goes_on_with_the_weights_that_it_began_with_only(directories, tmp_path, capsys):
    data, path = {"data": directories["data"]}, tmp_path / "w.pth"
    write_weights(path)
    flags = (*tiny("teacher"), "--config.teacher.steps=1", "--config.teacher.batch_size=4")
    main(tmp_path / "w", data, *flags, section="teacher", init=str(path))
    assert f"starts from {path}, with a new classifier for 10 classes" in capsys.readouterr().out
    source = {"weights": str(path), "sha256": {"w.pth": file_digest(path)}}
    assert json.loads((tmp_path / "w" / "config.json").read_text())["init"] == {
        **source,
        "head": "new",
    }
    assert json.loads((tmp_path / "w" / "summary.json").read_text())["init"] == source
    assert (
        json.loads((tmp_path / "w" / "model" / "model.json").read_text())["metadata"]["init"]
        == source
    )
    main(tmp_path / "w", data, *flags, section="teacher", init=str(path))
    assert "is done: 1 steps" in capsys.readouterr().out
    write_weights(path, seed=1)
    with pytest.raises(InputError, match=r"holds a run of another config .*init\.sha256\.w\.pth"):
        main(tmp_path / "w", data, *flags, section="teacher", init=str(path))


def test_a_dry_run_says_where_the_weights_are(directories, capsys):
    main("", {"data": directories["data"]}, section="teacher", init="imagenet:b1", dry_run=True)
    text = capsys.readouterr().out
    assert (
        "teacher: b1, 6," in text
        and "starts from imagenet:b1, to be downloaded from https://" in text
    )


def test_which_weights_a_recipe_has_a_section_start_from():
    recipe = config("--config.init=imagenet")
    assert [train.initial_of(recipe, name) for name in ("teacher", "student_2", "finetune")] == [
        "imagenet",
        "imagenet",
        None,
    ]
    recipe = config("--config.init=imagenet", "--config.student_init=scratch")
    assert [train.initial_of(recipe, name) for name in ("teacher", "student")] == ["imagenet", None]
    assert train.initial_of(config(), "teacher") is None
