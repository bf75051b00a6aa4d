"""Logit adjustment: its loss by brute force, its optimum, and its place in every method's step."""

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import write_json
from data import records
from fixmatch.method import FixMatch
from meta_pseudo_labels.model import MetaPseudoLabels, Step
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from noisy_student.model import NoisyStudent
from training import losses, run
from training.supervised import Supervised
from training.uda import UDA

COUNTS = (70, 20, 10)
LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
LABELS = np.array([0, 1, 2, 0, 1, 2])


def brute_force(logits, labels, tau, counts=COUNTS):
    """Menon et al. 2021, eq. 10, by example: log(1 + Σ_{k≠y} (π_k / π_y)^τ e^{z_k − z_y})."""
    found = []
    for z, y in zip(np.asarray(logits, float), labels):
        others = [
            (counts[k] / counts[y]) ** tau * math.exp(z[k] - z[y]) for k in range(len(z)) if k != y
        ]
        found.append(math.log(1 + sum(others)))
    return np.mean(found)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_loss_is_the_paper_s(tau):
    adjusted = losses.adjusted(tf.constant(LOGITS), losses.log_priors(COUNTS, tau))
    found = tf.reduce_mean(losses.cross_entropy(losses.one_hot(tf.constant(LABELS), 3), adjusted))
    assert float(found) == pytest.approx(brute_force(LOGITS, LABELS, tau), rel=1e-5)
    assert losses.log_priors(COUNTS, 0.0) is None and losses.adjusted(LOGITS, None) is LOGITS


def test_its_optimum_answers_as_if_all_classes_were_equally_frequent():
    """Tests that the expected loss is least where the softmax is ∝ q / π (τ = 1).

    The images have p(class | image) = q.
    """
    q = np.array([0.5, 0.3, 0.2])
    z = tf.Variable(np.log(q / np.array(COUNTS))[np.newaxis].astype("float32"))
    with tf.GradientTape() as tape:
        adjusted = losses.adjusted(z, losses.log_priors(COUNTS, 1.0))
        loss = losses.cross_entropy(tf.constant(q[np.newaxis], tf.float32), adjusted)
    np.testing.assert_allclose(tape.gradient(loss, z), np.zeros([1, 3]), atol=1e-6)
    assert int(tf.argmax(z[0])) == 2, "the rarest class, whose share here is twice that in all"


def network(seed):
    """Returns a network from images (4, 4, 3) to three logits, without noise."""
    kernel = tf.keras.initializers.RandomNormal(stddev=0.01, seed=seed)
    inputs = tf.keras.Input([4, 4, 3])
    return tf.keras.Model(
        inputs,
        tf.keras.layers.Dense(3, kernel_initializer=kernel)(tf.keras.layers.Flatten()(inputs)),
    )


IMAGES = tf.random.stateless_uniform([6, 4, 4, 3], [1, 2], maxval=255.0)
MORE = tf.random.stateless_uniform([6, 4, 4, 3], [3, 4], maxval=255.0)
PAIR = (IMAGES, tf.constant(LABELS))
PSEUDO = tf.fill([6, 3], 1 / 3)
ADJUSTMENT = losses.log_priors(COUNTS, 1.0)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Supervised, PAIR),
        (NoisyStudent, (PAIR, (MORE, PSEUDO))),
        (UDA, (PAIR, (MORE, MORE))),
        (FixMatch, (PAIR, (MORE, MORE))),
    ],
)
def test_every_method_adjusts_its_loss_on_labeled_images_alone(kind, data):
    adjusted, plain = (
        kind(network(0), label_smoothing=0.0, adjustment=values) for values in (ADJUSTMENT, None)
    )
    logged = []
    for trainer in (adjusted, plain):
        trainer.compile(optimizer=tf.keras.optimizers.SGD(0.0))
        logged.append({name: float(value) for name, value in trainer.train_step(data).items()})
    logits = network(0)(IMAGES)
    assert logged[0]["labeled_loss"] == pytest.approx(brute_force(logits, LABELS, 1.0), rel=1e-4)
    assert logged[1]["labeled_loss"] == pytest.approx(brute_force(logits, LABELS, 0.0), rel=1e-4)
    for name in ("unlabeled_loss", "uda_loss", "top1"):
        assert logged[0].get(name) == logged[1].get(name)


def test_meta_pseudo_labels_adjusts_the_teacher_s_loss_and_the_one_that_the_feedback_measures():
    trainer = MetaPseudoLabels(network(0), network(1), label_smoothing=0.0, adjustment=ADJUSTMENT)
    optimizers = {
        name: tf.keras.optimizers.SGD(0.0) for name in ("student_optimizer", "teacher_optimizer")
    }
    trainer.compile(**optimizers)
    logged = trainer.train_step((PAIR, (MORE, MORE)))
    assert float(logged["labeled_loss"]) == pytest.approx(
        brute_force(network(0)(IMAGES), LABELS, 1.0), rel=1e-4
    )
    reduced = ReducedMetaPseudoLabels(Calibrator(3), network(1), adjustment=ADJUSTMENT)
    for one in (trainer, reduced):
        step = Step(tf.constant(0, tf.int64), tf.constant(6), tf.constant(6), 1)
        found = one._labeled_loss((IMAGES, losses.one_hot(tf.constant(LABELS), 3)), step)
        assert float(found) == pytest.approx(brute_force(network(1)(IMAGES), LABELS, 1.0), rel=1e-4)


def inputs(directory, **per_class):
    """Returns inputs of a training with the given number of labeled images of each class."""
    directory.mkdir()
    write_json(directory / "summary.json", {"splits": {"labeled": {"per_class": per_class}}})
    names = tuple(sorted(per_class))
    manifest = records.Manifest(directory, "labeled", (), (), names, 0, "labeled", {}, ())
    return run.Inputs(Path(directory), manifest)


def test_the_priors_are_counted_in_the_order_of_the_classes(tmp_path):
    counts = run.labels_per_class(inputs(tmp_path / "d", cat=1, ant=3, bee=4))
    assert counts == [3, 4, 1]
    assert losses.log_priors(counts, 2.0) == pytest.approx(2 * np.log(np.array([3, 4, 1]) / 8))
    with pytest.raises(InputError, match="=1: no labeled image of class 1; label some, or set"):
        losses.log_priors([3, 0], 1.0)
    with pytest.raises(InputError, match="no labeled image of class 'ant', 'cat'; label some"):
        losses.log_priors([0, 3, 0], 1.0, ("ant", "bee", "cat"))
