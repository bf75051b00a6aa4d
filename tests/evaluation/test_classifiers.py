"""Models of every kind give the answers they give at home, and fine-tuned models are known.

The options are those of the recipe.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import write_json
from configs.evaluation import default
from data.preprocessing import Preprocessing
from evaluation import adversarial
from evaluation.classifiers import open_candidate
from evaluation.evaluate import suites_of
from evaluation.settings import Settings
from evaluation.suites import Inputs
from serving import export
from training import model_dir
from training.model_dir import ModelSpec

SIDE = 12
NAMES = ("a", "b", "c")


def network(seed=0):
    model = tf.keras.Sequential(
        [tf.keras.Input((SIDE, SIDE, 3)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(3)]
    )
    model.layers[-1].kernel.assign(
        np.random.Generator(np.random.PCG64(seed)).normal(size=(SIDE * SIDE * 3, 3)) / 1000
    )
    return model


def train(directory, seed=0, style="small", **metadata):
    spec = ModelSpec({"name": "b0"}, Preprocessing(image_size=SIDE, style=style), NAMES, metadata)
    model_dir.save(directory / "model", network(seed), spec)
    write_json(directory / "summary.json", {"seed": seed})
    return directory


@pytest.mark.parametrize("style", ["small", "imagenet"])
def test_an_exported_model_answers_as_its_directory(tmp_path, monkeypatch, style):
    """Logits agree up to a constant, and so does the gradient.

    The SavedModel crops and resizes by itself.
    """
    directory = train(tmp_path / "student", style=style)
    monkeypatch.setattr(model_dir, "load", lambda path: (network(), model_dir.read_spec(path)))
    export.main(str(tmp_path / "export"), str(directory))
    images = tf.random.stateless_uniform([4, SIDE, SIDE, 3], [0, 0], 0.0, 255.0)
    labels = tf.constant([0, 1, 2, 0], tf.int64)
    answers, gradients = [], []
    served = tmp_path / "export" / "classifier"
    for path in (directory, tmp_path / "export", served, served / "1"):
        candidate = open_candidate("m", path, "imagenet")
        assert (
            candidate.label_names == NAMES
            and candidate.preprocessing.style == style
            and not candidate.finetuned
        )
        logits = candidate.load().logits
        answers.append(tf.nn.softmax(logits(images)).numpy())
        gradients.append(adversarial.input_gradient(logits, images, labels).numpy())
    assert np.ptp(answers[0], axis=0).max() > 0.1
    for answer, gradient in zip(answers[1:], gradients[1:]):
        np.testing.assert_allclose(answer, answers[0], atol=1e-6)
        np.testing.assert_allclose(gradient, gradients[0], atol=1e-7)


class Foreign(tf.Module):
    """A third-party model, with or without its own softmax."""

    def __init__(self, softmax, shape):
        super().__init__()
        self.model, self.softmax = network(), softmax
        self.serve = tf.function(
            self._serve, input_signature=[tf.TensorSpec(shape, tf.float32, name="x")]
        )

    def _serve(self, x):
        logits = self.model(x)
        return {"y": tf.nn.softmax(logits) if self.softmax else logits}


@pytest.mark.parametrize("softmax", [False, True])
def test_other_saved_models(tmp_path, softmax):
    module = Foreign(softmax, [None, SIDE, SIDE, 3])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    candidate = open_candidate("m", tmp_path / "m", "small")
    assert (
        candidate.preprocessing.image_size,
        candidate.preprocessing.style,
        candidate.label_names,
    ) == (SIDE, "small", ())
    images = tf.random.stateless_uniform([4, SIDE, SIDE, 3], [0, 0], 0.0, 255.0)
    np.testing.assert_allclose(
        tf.nn.softmax(candidate.load().logits(images)), tf.nn.softmax(network()(images)), atol=1e-6
    )


def test_a_saved_model_of_another_shape(tmp_path):
    module = tf.Module()
    module.serve = tf.function(
        lambda x: {"y": x}, input_signature=[tf.TensorSpec([None, 7], tf.float32)]
    )
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    with pytest.raises(InputError, match="takes no single float32"):
        open_candidate("m", tmp_path / "m", "small")


def test_damaged_saved_models_are_named(tmp_path):
    module = Foreign(False, [None, SIDE, SIDE, 3])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve)
    extra = tmp_path / "m" / "assets.extra"
    whole = (tmp_path / "m" / "saved_model.pb").read_bytes()

    def refused(match):
        with pytest.raises(InputError, match=match) as caught:
            open_candidate("m", tmp_path / "m", "small").load()
        assert str(tmp_path / "m") in str(caught.value) and "\n" not in str(caught.value)

    (tmp_path / "m" / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    refused("cannot be loaded")
    (tmp_path / "m" / "saved_model.pb").write_bytes(whole)
    (tmp_path / "m" / "variables" / "variables.index").unlink()
    refused("cannot be loaded")
    write_json(extra / "export.json", {"preprocessing": Preprocessing(image_size=SIDE).to_dict()})
    refused("damaged.*labels.txt")
    (extra / "labels.txt").touch()
    refused("names no class")
    (extra / "labels.txt").write_text("a\nb\nc\n")
    refused("cannot be loaded")
    write_json(extra / "export.json", {})
    refused("damaged.*preprocessing")


def test_another_model_in_the_same_place_has_another_digest(tmp_path):
    first = open_candidate("m", train(tmp_path / "m"), "small").digest
    assert open_candidate("m", train(tmp_path / "m", seed=1), "small").digest != first


def test_a_model_fine_tuned_at_a_larger_size_is_left_out_of_released_c_and_p(tmp_path):
    """Tests Xie et al. 2020, footnote 3."""
    larger = open_candidate("m", train(tmp_path / "larger", init_image_size=8), "small")
    same = open_candidate("m", train(tmp_path / "same", init_image_size=SIDE), "small")
    assert larger.finetuned and not same.finetuned
    chosen, released = ["clean", "c", "p"], Inputs(released_c=True, released_p=True)
    assert suites_of(larger, chosen, released, Settings()) == ["clean"]
    assert suites_of(larger, chosen, released, Settings(finetuned_on_c_and_p=True)) == chosen
    assert suites_of(larger, chosen, Inputs(), Settings()) == chosen
    assert suites_of(same, chosen, released, Settings()) == chosen


def test_the_recipe_has_the_defaults():
    section = default.get_config().evaluate
    assert Settings.from_config(section) == Settings()
    assert set(section) == set(Settings().to_dict())
    assert Settings().step == 4.0 and Settings(pgd_step=1.0).step == 1.0
