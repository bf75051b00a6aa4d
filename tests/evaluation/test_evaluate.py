"""The evaluation stage on 23 digits with a tiny model.

Tests its counts, its files, mistakes of input, and going on after a kill.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil

import ml_collections
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from sklearn import datasets
from sklearn import metrics as sklearn_metrics

from cli.errors import InputError
from cli.json_files import write_json
from data import protos, records
from data.preprocessing import Preprocessing, eval_image
from evaluation import evaluate, suites, tables
from evaluation.classifiers import Classifier
from evaluation.examples import from_records
from evaluation.settings import Settings
from evaluation.suites import Folder, Inputs
from training import model_dir
from training.model_dir import ModelSpec

NAMES = tuple(str(i) for i in range(10))
N = 23  # no multiple of the batch size: the last batch is filled up
BATCH_SIZE = 8


def png(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(np.uint8(pixels * 15)).save(file, "PNG")
    return file.getvalue()


def write_data(directory, labels=None, keys=None, names=NAMES):
    """Writes a finished data directory with the split `test`, in 3 shards."""
    digits = datasets.load_digits()
    labels = digits.target[:N] if labels is None else labels
    keys = [f"digit/{i}" for i in range(N)] if keys is None else keys
    examples = [
        protos.make_example(png(image), key, int(label))
        for image, key, label in zip(digits.images, keys, labels)
    ]
    records.write_split(
        directory / "test",
        "test",
        examples,
        num_shards=3,
        num_records=N,
        label_names=names,
        kind="labeled",
    )
    write_json(directory / "summary.json", {})
    return directory


def linear(num_classes, seed):
    """Stands in for the network where only the stage is tested: it is built in milliseconds.

    Building the network takes a second.
    """
    kernel = tf.keras.initializers.RandomNormal(stddev=0.002, seed=seed)
    return tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(num_classes, kernel_initializer=kernel),
        ]
    )


def load_linear(directory):
    spec = model_dir.read_spec(directory)
    model = linear(spec.num_classes, seed=0)
    path = directory if (directory / model_dir.WEIGHTS).exists() else directory / "model"
    model.load_weights(path / model_dir.WEIGHTS)
    return model, spec


def write_model(directory, names=NAMES, seed=0, bias=0.0):
    """Writes a finished training directory."""
    model = linear(len(names), seed)
    model.layers[-1].bias.assign([bias] * len(names))
    model_dir.save(
        directory / "model",
        model,
        ModelSpec({"name": "b0"}, Preprocessing(image_size=8), tuple(names)),
    )
    write_json(directory / "summary.json", {"seed": seed})
    return directory


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(model_dir, "load", load_linear)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return (
        write_data(root / "data"),
        write_model(root / "teacher"),
        write_model(root / "student", seed=1),
    )


def run(workdir, data, *models, batch_size=BATCH_SIZE, evaluate_config=None, **flags):
    config = ml_collections.ConfigDict(
        {"evaluate": {"batch_size": batch_size, **(evaluate_config or {})}}
    ).lock()
    evaluate.main(config, str(workdir), ",".join(map(str, models)), str(data), **flags)
    return json.loads((workdir / "summary.json").read_text())


def test_every_example_once_and_right(quick, inputs, tmp_path, capsys):
    data, teacher, student = inputs
    summary = run(tmp_path / "w", data, teacher, student)
    printed = capsys.readouterr().out

    assert list(summary["models"]) == ["teacher", "student"]
    digits = datasets.load_digits()
    for name, directory in zip(summary["models"], (teacher, student)):
        stored = np.load(tmp_path / "w" / name / "predictions.npz")
        assert stored["keys"].tolist() == [f"digit/{i}" for i in range(N)]
        np.testing.assert_array_equal(stored["labels"], digits.target[:N])
        kernel, _ = load_linear(directory)[0].get_weights()
        logits = np.repeat(digits.images[:N] * 15, 3).reshape(N, -1) @ kernel.astype(
            np.float64
        )  # (N, K)
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert np.ptp(expected, axis=0).max() > 0.1  # the images do get different answers
        assert stored["probabilities"].dtype == np.float32
        np.testing.assert_allclose(stored["probabilities"], expected, atol=1e-5)
        row = summary["models"][name]
        assert row["examples"] == N
        assert row["top1"] == pytest.approx(
            sklearn_metrics.accuracy_score(digits.target[:N], expected.argmax(1))
        )
        assert row["nll"] == pytest.approx(
            sklearn_metrics.log_loss(digits.target[:N], expected, labels=range(10)), abs=1e-4
        )
        assert row["top1_interval"][0] <= row["top1"] <= row["top1_interval"][1]
        balanced = sklearn_metrics.balanced_accuracy_score(digits.target[:N], expected.argmax(1))
        assert row["balanced_accuracy"] == pytest.approx(balanced)
        assert {"top5", "ece", "images_per_second"} < set(row)
        assert f"{name} " in printed
    assert "balanced %" in printed and "top-5" not in printed and f"{N} examples" in printed
    assert summary["chance"] == 0.1 and summary["majority"] == {"class": "0", "top1": 3 / N}
    assert "chance: 10.0 % (1 of 10 classes); majority: 13.0 % (always answering 0, " in printed
    for path in summary["figures"].values():
        with PIL.Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width > 300


def test_a_real_network(inputs, tmp_path):
    architecture = {
        "name": "b0",
        "width": 0.1,
        "depth": 0.1,
        "stem_stride": 1,
        "strides": [1, 1, 1, 2, 1, 1, 1],
    }
    spec = ModelSpec(architecture, Preprocessing(image_size=8), NAMES)
    model = spec.build(seed=0)
    classifier = model.get_layer("predictions")
    classifier.kernel.assign(
        classifier.kernel * 400
    )  # untrained, it would answer the same to every image
    model_dir.save(tmp_path / "b0" / "model", model, spec)
    write_json(tmp_path / "b0" / "summary.json", {})
    run(tmp_path / "w", inputs[0], tmp_path / "b0")
    images = tf.stack(
        [eval_image(png(image), spec.preprocessing) for image in datasets.load_digits().images[:N]]
    )
    expected = tf.nn.softmax(model(images, training=False)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(
        np.load(tmp_path / "w" / "b0" / "predictions.npz")["probabilities"], expected, atol=1e-5
    )


def test_batch_size_does_not_matter(quick, inputs, tmp_path):
    data, teacher, _ = inputs
    rows = [
        run(tmp_path / str(size), data, teacher, batch_size=size)["models"]["teacher"]
        for size in (1, 100)
    ]
    for key in ("top1", "top5", "ece", "nll"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=1e-6)


def test_again_says_done_and_writes_nothing(quick, inputs, tmp_path, capsys):
    data, teacher, _ = inputs
    run(tmp_path / "w", data, teacher)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").rglob("*")}
    capsys.readouterr()
    run(tmp_path / "w", data, teacher)
    assert "is done" in capsys.readouterr().out.splitlines()[0]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "w").rglob("*")} == before


def test_goes_on_after_a_kill(quick, inputs, tmp_path, monkeypatch):
    """Interrupts the second model's pass.

    The same command then evaluates that model only, and the answer is the same.
    """
    data, teacher, student = inputs
    whole = run(tmp_path / "whole", data, teacher, student)["models"]

    def interrupted(directory):
        if directory == student:
            raise KeyboardInterrupt
        return load_linear(directory)

    monkeypatch.setattr(model_dir, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "w", data, teacher, student)
    assert not (tmp_path / "w" / "summary.json").exists()
    loaded = []
    monkeypatch.setattr(
        model_dir, "load", lambda directory: loaded.append(directory) or load_linear(directory)
    )
    resumed = run(tmp_path / "w", data, teacher, student)["models"]
    assert loaded == [student]
    for name in whole:
        assert {**resumed[name], "images_per_second": 0} == {**whole[name], "images_per_second": 0}


def test_another_model_in_the_same_place_is_refused(quick, inputs, tmp_path):
    data, teacher, student = inputs
    run(tmp_path / "w", data, teacher)
    with pytest.raises(InputError, match="another config"):
        run(tmp_path / "w", data, student)


def test_models_of_one_name(quick, inputs, tmp_path):
    data, teacher, student = inputs
    other = shutil.copytree(student, tmp_path / "seed_1" / "teacher")
    summary = run(tmp_path / "w", data, teacher, f"{other}/model", student)
    assert list(summary["models"]) == ["teacher", "teacher-2", "student"]
    assert (
        summary["models"]["teacher-2"]["nll"]
        == summary["models"]["student"]["nll"]
        != summary["models"]["teacher"]["nll"]
    )


def test_shards_without_keys(quick, inputs, tmp_path):
    data = write_data(tmp_path / "data", keys=[""] * N)
    run(tmp_path / "w", data, inputs[1])
    assert np.load(tmp_path / "w" / "teacher" / "predictions.npz")["keys"][[0, -1]].tolist() == [
        "#0",
        "#22",
    ]


def assert_refused(workdir, match, data, *models, **arguments):
    with pytest.raises(InputError, match=match) as caught:
        run(workdir, data, *models, **arguments)
    assert "\n" not in str(caught.value)
    assert not (workdir / "summary.json").exists()


def test_classes_that_do_not_fit(inputs, tmp_path):
    data, teacher, _ = inputs
    fewer = write_model(tmp_path / "fewer", names=NAMES[:9])
    swapped = write_model(tmp_path / "swapped", names=("1", "0", *NAMES[2:]))
    assert_refused(tmp_path / "w", "10 classes.*has 9;", data, teacher, fewer)
    assert_refused(tmp_path / "w", "class 0 is '0' for .* but '1' for ", data, swapped)
    assert not (tmp_path / "w").exists()


def test_missing_and_unfinished_inputs(inputs, tmp_path):
    data, teacher, _ = inputs
    assert_refused(
        tmp_path / "w", "no split 'validation'; it has test", data, teacher, split="validation"
    )
    assert_refused(tmp_path / "w", "does not exist", tmp_path / "nothing", teacher)
    assert_refused(tmp_path / "w", "does not exist", data, tmp_path / "nothing")
    assert_refused(tmp_path / "w", "names no directory", data, "")
    assert_refused(tmp_path / "w", "batch_size", data, teacher, batch_size=0)
    unfinished = shutil.copytree(teacher, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    assert_refused(tmp_path / "w", "not finished", data, unfinished)
    assert_refused(tmp_path / "w", "not a finished", data, unfinished / "model")
    assert not (tmp_path / "w").exists()


def test_the_recipes_split_counts_unless_one_is_named(inputs, tmp_path):
    data, teacher, _ = inputs
    assert_refused(
        tmp_path / "w",
        "no split 'validation'",
        data,
        teacher,
        evaluate_config={"split": "validation"},
    )
    assert_refused(
        tmp_path / "w",
        "no split 'other'",
        data,
        teacher,
        evaluate_config={"split": "validation"},
        split="other",
    )


def test_attacks_refuse_what_a_clean_evaluation_refuses(quick, inputs, tmp_path, monkeypatch):
    """Otherwise a loss of no class, or the sign of no number, would pass for an attack."""
    teacher = inputs[1]
    wrong = write_data(tmp_path / "wrong", labels=[*datasets.load_digits().target[: N - 1], 10])
    assert_refused(
        tmp_path / "w1", f"digit/{N - 1} .*label 10", wrong, teacher, suite="adversarial"
    )
    broken = write_model(tmp_path / "broken", bias=np.nan)
    assert_refused(
        tmp_path / "w2",
        "gradient of broken for 'digit/0' is not finite",
        inputs[0],
        broken,
        suite="adversarial",
    )
    cut = write_data(tmp_path / "cut")
    sorted((cut / "test").glob("test-*-of-?????"))[0].write_bytes(b"")
    monkeypatch.setenv("TRUST_SHARDS", "1")
    assert_refused(
        tmp_path / "w3",
        f"holds .* examples, not the {N} announced",
        cut,
        teacher,
        suite="adversarial",
    )


def test_attacks_need_a_model_of_as_many_classes(quick, inputs):
    manifest = records.read_manifest(inputs[0] / "test", "labeled")
    examples = dataclasses.replace(from_records(manifest, "clean"), num_classes=11)
    model, spec = load_linear(inputs[1])
    folder = Folder(inputs[0].parent / "m", inputs[0].parent / "progress.jsonl")
    with pytest.raises(InputError, match=r"teacher has 10 classes, but .* has 11"):
        suites.run(
            Classifier("teacher", spec.preprocessing, model),
            ["adversarial"],
            Inputs(clean=examples),
            Settings(batch_size=8),
            folder,
        )
    assert not folder.path.exists()


def test_damaged_data(quick, inputs, tmp_path, monkeypatch):
    teacher = inputs[1]
    digits = datasets.load_digits()
    twice = write_data(tmp_path / "twice", keys=["same", "same", *map(str, range(N - 2))])
    assert_refused(tmp_path / "w1", "key 'same' 2 times", twice, teacher)
    wrong = write_data(tmp_path / "wrong", labels=[10, *digits.target[1:N]])
    assert_refused(tmp_path / "w2", "digit/0 .*label 10", wrong, teacher)
    cut = write_data(tmp_path / "cut")
    shard = sorted((cut / "test").glob("test-*-of-?????"))[-1]
    shard.write_bytes(shard.read_bytes()[:-5])
    assert_refused(
        tmp_path / "w5",
        r"test-00002-of-00003: record \d+ .counting from 0. is truncated; make the file again",
        cut,
        teacher,
    )
    monkeypatch.setenv("TRUST_SHARDS", "1")
    assert_refused(tmp_path / "w3", "damaged record", cut, teacher)
    records.write_shard(shard, list(records.read_shard(cut / "test" / "test-00001-of-00003"))[:1])
    assert_refused(tmp_path / "w4", f"not the {N} announced", cut, teacher)


def test_a_model_whose_answers_are_not_finite(quick, inputs, tmp_path):
    broken = write_model(tmp_path / "broken", bias=np.nan)
    assert_refused(tmp_path / "w", "not finite", inputs[0], broken)


@pytest.mark.parametrize(("classes", "shown"), [(3, False), (10, False), (11, True)])
def test_top5_is_shown_above_ten_classes(classes, shown):
    row = {
        "top1": 0.5,
        "top1_interval": [0.4, 0.6],
        "top5": 1.0,
        "ece": 0.1,
        "nll": 0.7,
        "examples": 4,
        "images_per_second": 1.0,
    }
    summary = {"split": "test", "examples": 4, "classes": classes, "models": {"m": row}}
    head, _ = tables.cells(summary)
    assert ("top-5 %" in head) == shown and "top-1 % (95 % interval)" in head


def test_a_class_without_examples_is_left_out_and_named(quick, inputs, tmp_path, capsys):
    labels = np.where(datasets.load_digits().target[:N] == 9, 1, datasets.load_digits().target[:N])
    summary = run(tmp_path / "w", write_data(tmp_path / "data", labels), inputs[1])
    stored = np.load(tmp_path / "w" / "teacher" / "predictions.npz")
    answers = stored["probabilities"].argmax(axis=1)
    recalls = [np.mean(answers[labels == label] == label) for label in range(9)]
    assert summary["models"]["teacher"]["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert summary["classes_without_examples"] == ["9"]
    assert (
        "no examples in split test, left out of balanced: 9" in capsys.readouterr().out.splitlines()
    )
