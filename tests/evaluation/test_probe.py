"""The linear probe: against scikit-learn, in an evaluation beside other models, and over seeds."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from data import protos, records
from data.preprocessing import Preprocessing
from evaluation import compare, probe
from tests.evaluation import test_compare
from tests.evaluation.test_evaluate import NAMES, load_linear, png, run, write_data, write_model
from training import model_dir
from training.initial import Initial
from weights import pretrained


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 2)])
def test_the_fit_is_scikit_learns(classes):
    rng = np.random.Generator(np.random.PCG64(0))
    labels = np.repeat(classes, 12)
    features = rng.normal(3, 2, (len(labels), 5)).astype(np.float32)
    features[:, 0] += 3 * labels
    features[:, 4] = 1.0  # never varies
    fitted = probe.fit(features, labels, 4)
    assert fitted.inverse_penalty in probe.INVERSE_PENALTIES and fitted.folds == probe.FOLDS
    assert fitted.images == len(labels) and fitted.kernel.dtype == np.float32
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    model = LogisticRegression(C=fitted.inverse_penalty, max_iter=1000).fit(scaled, labels)
    expected = np.zeros([len(labels), 4])
    expected[:, classes] = model.predict_proba(scaled)
    np.testing.assert_allclose(softmax(features @ fitted.kernel + fitted.bias), expected, atol=1e-4)
    assert (expected.argmax(axis=1) == labels).mean() > 0.8


def test_few_images_leave_nothing_to_cross_validate():
    once = probe.fit(np.array([[0.0], [1.0], [2.0]]), np.array([0, 1, 2]), 3)
    assert (once.inverse_penalty, once.folds) == (probe.NOT_CHOSEN, 0)
    seldom = probe.fit(np.arange(6.0)[:, np.newaxis], np.array([0, 0, 0, 0, 1, 2]), 3)
    assert seldom.folds == 2
    alone = probe.fit(np.ones([2, 3]), np.array([1, 1]), 3)
    np.testing.assert_allclose(softmax(np.ones([1, 3]) @ alone.kernel + alone.bias), [[0, 1, 0]])


def published():
    """Returns a network with the pixels as its pooled features.

    It has three other classes.
    """
    layers = [tf.keras.Input((8, 8, 3)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(3)]
    return tf.keras.Sequential(layers)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Returns directories of the data, with a labeled split, and of two models.

    No file is read for --init.
    """
    monkeypatch.setattr(model_dir, "load", load_linear)
    monkeypatch.setattr(probe, "INVERSE_PENALTIES", (1e-2, 1.0))
    spec = model_dir.ModelSpec({"name": "b0"}, Preprocessing(image_size=8), ("x", "y", "z"))
    monkeypatch.setattr(
        pretrained,
        "find",
        lambda text, model: Initial(text, spec, published, {"weights": f"{text}:{model['name']}"}),
    )
    digits, chosen = datasets.load_digits(), range(100, 200)
    examples = [
        protos.make_example(png(digits.images[i]), f"own/{i}", int(digits.target[i]))
        for i in chosen
    ]
    data = write_data(tmp_path / "data")
    records.write_split(
        data / "labeled",
        "labeled",
        examples,
        num_shards=2,
        num_records=100,
        label_names=NAMES,
        kind="labeled",
    )
    return data, write_model(tmp_path / "teacher"), write_model(tmp_path / "student_1", seed=1)


def test_beside_the_models(inputs, tmp_path, capsys, monkeypatch):
    data, *models = inputs
    summary = run(tmp_path / "w", data, *models, init="some_weights")
    printed = capsys.readouterr().out
    assert list(summary["models"]) == ["teacher", "student_1", "probe"]
    digits = datasets.load_digits()
    images, labels = digits.images.reshape(-1, 64), digits.target
    pixels = np.repeat(images * 15, 3, axis=1)  # (N, 192)
    fitted = probe.fit(pixels[100:200], labels[100:200], 10)
    answers = (pixels[:23] @ fitted.kernel + fitted.bias).argmax(axis=1)
    row = summary["models"]["probe"]
    assert row["top1"] == pytest.approx(np.mean(answers == labels[:23])) and row["top1"] > 0.7
    assert row["versus"]["clean"]["difference"] == pytest.approx(
        row["top1"] - summary["models"]["teacher"]["top1"]
    )
    found = summary["models"]["student_1"]["versus_probe"]["clean"]["difference"]
    assert found == pytest.approx(summary["models"]["student_1"]["top1"] - row["top1"])
    assert f"student_1 minus probe: {100 * found:+.1f} points (95 % interval " in printed
    assert "192 frozen features of some_weights at 8 px, 100 labeled images" in printed
    page = (tmp_path / "w" / "report.html").read_text(encoding="utf-8")
    assert "Against the linear probe" in page and "<h1>teacher, student_1</h1>" in page

    (tmp_path / "w" / "summary.json").unlink()  # as after a kill in the midst of the last pass
    (tmp_path / "w" / "probe" / "predictions.npz").unlink()
    monkeypatch.setattr(probe, "fit", None)
    again = run(tmp_path / "w", data, *models, init="some_weights")
    assert again["models"]["probe"]["nll"] == row["nll"] and again["probe"] == summary["probe"]


def test_only_where_it_is_asked_for(inputs, tmp_path, monkeypatch, capsys):
    data, teacher, _ = inputs
    assert "probe" not in run(tmp_path / "without", data, teacher)["models"]
    off = run(
        tmp_path / "off", data, teacher, init="some_weights", evaluate_config={"probe": False}
    )
    assert "probe" not in off["models"] and "probe" not in off
    monkeypatch.setattr(probe, "MOST_IMAGES", 99)
    assert "probe" not in run(tmp_path / "many", data, teacher, init="some_weights")["models"]
    assert (
        "the probe is left out: 100 labeled images are more than 99"
        in capsys.readouterr().out.splitlines()
    )


def test_every_suite_can_be_run_on_it(inputs, tmp_path):
    data, teacher, _ = inputs
    summary = run(
        tmp_path / "w",
        data,
        teacher,
        init="some_weights",
        suite="clean,adversarial",
        evaluate_config={"pgd_iterations": 1},
    )
    row = summary["models"]["probe"]
    assert row["adversarial"]["fgsm_top1"][0] == row["top1"] and set(row["versus"]) == {
        "clean",
        "pgd",
        "fgsm",
    }
    # One model and the probe: there is no pair to look at picture by picture.
    assert "not enough values" not in (tmp_path / "w" / "report.html").read_text(encoding="utf-8")


def test_over_seeds():
    rows = [
        {**row, "probe": test_compare.row(top1, 0.3, 100.0, 0.1)}
        for row, top1 in zip(test_compare.ROWS, (0.9, 0.9, 0.95))
    ]
    names = ["teacher", "student_1"]
    summary = {"runs": dict.fromkeys("abc", ""), "models": names, **compare.aggregate(rows, names)}
    assert summary["gains_over_probe"]["top1"]["values"] == pytest.approx([5, 4, -2])
    assert summary["gains"]["top1"]["values"] == pytest.approx([5, 2, -1])
    head, body = compare.cells(summary)
    assert head == [
        "",
        *names,
        "probe",
        "student_1 − teacher",
        "seeds better",
        "p",
        "student_1 − probe",
        "seeds better",
        "p",
    ]
    assert all(len(line) == len(head) for line in body) and body[0][8] == "2 of 3"
    assert compare.body(summary)["models"] == [*names, "probe"]
