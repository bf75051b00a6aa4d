"""FixMatch: its loss and its step against numpy, and its recipe trains.

The equations are those of Sohn et al. 2020, Section 2.2.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cli import recipes
from cli.errors import InputError
from cli.json_files import read_json
from data import prepare
from fixmatch.method import FixMatch, fixmatch_loss
from tests.meta_pseudo_labels.test_model import B, K, batch, classifier, flat
from workflow import train


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_the_unlabeled_loss_is_equation_4(threshold):
    rng = np.random.default_rng(0)
    weak, strong = 2 * rng.normal(size=(2, 40, 5)).astype("float32")
    total = counted = 0
    for b in range(40):  # 1/μB Σ_b 1(max(q_b) ≥ τ) H(q̂_b, p_m(y | A(u_b)))
        q = np.exp(log_softmax(weak[b : b + 1])[0])
        if q.max() >= threshold:
            counted += 1
            total -= log_softmax(strong[b : b + 1])[0, q.argmax()]
    loss, confident = fixmatch_loss(tf.constant(weak), tf.constant(strong), threshold)
    assert float(loss) == pytest.approx(total / 40, rel=1e-5)
    assert float(confident) == pytest.approx(counted / 40)
    assert {0.0: counted == 40, 0.6: 0 < counted < 40, 1.0: counted == 0}[threshold]


def test_the_pseudo_label_has_no_gradient():
    weak, strong = tf.Variable([[2.0, 0.0]]), tf.Variable([[0.0, 1.0]])
    with tf.GradientTape() as tape:
        loss, _ = fixmatch_loss(weak, strong, 0.5)
    assert tape.gradient(loss, [weak, strong])[0] is None


def test_the_step_is_the_gradient_of_the_two_losses_and_the_decay():
    trainer = FixMatch(classifier(1), threshold=0.47, unlabeled_weight=3.0, weight_decay=0.1)
    trainer.compile(tf.keras.optimizers.SGD(1.0))
    trainer.build_optimizers()
    before = flat(v.numpy() for v in trainer.model.trainable_variables)
    values = {name: float(value) for name, value in trainer.train_step(batch()).items()}
    moved = before - flat(v.numpy() for v in trainer.model.trainable_variables)

    (x, y), (weak, strong) = batch()
    reference = classifier(1)
    with tf.GradientTape() as tape:
        z = reference(tf.concat([x, weak, strong], 0), training=True)
        z_weak, z_strong = tf.split(z[B:], 2)
        pseudo = tf.one_hot(tf.argmax(z_weak, 1), K)
        sure = tf.cast(tf.reduce_max(tf.nn.softmax(z_weak), 1) >= 0.47, tf.float32)
        unlabeled = -tf.reduce_mean(sure * tf.reduce_sum(pseudo * tf.nn.log_softmax(z_strong), 1))
        labeled = -tf.reduce_mean(tf.reduce_sum(tf.one_hot(y, K) * tf.nn.log_softmax(z[:B]), 1))
        decayed = [
            v
            for v in reference.trainable_variables
            if "gamma" not in v.name and "beta" not in v.name
        ]
        loss = (
            labeled + 3.0 * unlabeled + 0.1 * tf.add_n([tf.reduce_sum(v**2) / 2 for v in decayed])
        )
    np.testing.assert_allclose(
        moved, flat(tape.gradient(loss, reference.trainable_variables)), rtol=1e-4, atol=1e-6
    )
    assert values["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert (
        values["unlabeled_loss"] == pytest.approx(float(unlabeled), rel=1e-5)
        and values["unlabeled_loss"] > 0
    )
    assert 0 < values["confident"] < 1


def recipe(*overrides):
    return recipes.from_flags(
        "--config=configs/fixmatch/digits.py", "--config.smoke=True", *overrides
    )


def test_the_recipe_trains_and_its_impossible_values_are_refused(tmp_path):
    prepare.main(recipe(), str(tmp_path / "data"))
    train.main(recipe(), str(tmp_path / "run"), str(tmp_path / "data"), strategy="one_device")
    assert read_json(tmp_path / "run" / "summary.json")["images_seen"] == 4 * (1 + 2)
    for override, message in (
        ("threshold=1.5", r"train\.threshold is 1\.5"),
        ("unlabeled_weight=-1.0", r"train\.unlabeled_weight is -1"),
    ):
        with pytest.raises(InputError, match=message):
            train.main(
                recipe(f"--config.train.{override}"),
                str(tmp_path / "w"),
                str(tmp_path / "data"),
                strategy="one_device",
            )
    assert not (tmp_path / "w").exists()
