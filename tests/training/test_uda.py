"""UDA alone: its step against numpy, and a pair without feedback has the same teacher."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.meta_pseudo_labels.test_model import B, K, batch, classifier, flat, trainer
from training.uda import UDA


def one_step(uda_weight):
    model = UDA(
        classifier(1),
        uda_weight=uda_weight,
        uda_threshold=0.4,
        uda_ramp_steps=0,
        weight_decay=0.0,
        label_smoothing=0.0,
    )
    model.compile(tf.keras.optimizers.SGD(1.0))
    model.build_optimizers()
    before = flat(v.numpy() for v in model.model.trainable_variables)
    values = {name: float(value) for name, value in model.train_step(batch()).items()}
    return model, before - flat(v.numpy() for v in model.model.trainable_variables), values


def test_the_step_is_the_gradient_of_the_two_losses():
    _, moved, values = one_step(2.0)
    (x, y), (weak, strong) = batch()
    reference = classifier(1)
    with tf.GradientTape() as tape:
        z = reference(tf.concat([x, weak, strong], 0), training=True)
        z_weak, z_strong = tf.split(z[B:], 2)
        q = tf.stop_gradient(
            tf.exp(z_weak / 0.7) / tf.reduce_sum(tf.exp(z_weak / 0.7), 1, keepdims=True)
        )
        sure = tf.cast(tf.reduce_max(q, 1) >= 0.4, tf.float32)
        consistency = -tf.reduce_mean(sure * tf.reduce_sum(q * tf.nn.log_softmax(z_strong), 1))
        labeled = -tf.reduce_mean(tf.reduce_sum(tf.one_hot(y, K) * tf.nn.log_softmax(z[:B]), 1))
        loss = labeled + 2.0 * consistency
    np.testing.assert_allclose(
        moved, flat(tape.gradient(loss, reference.trainable_variables)), rtol=1e-4, atol=1e-6
    )
    assert values["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert 0 < values["uda_confident"] <= 1


def test_it_is_the_teacher_of_a_pair_without_feedback():
    alone, _, _ = one_step(2.0)
    options = {
        "uda_weight": 2.0,
        "uda_threshold": 0.4,
        "uda_ramp_steps": 0,
        "label_smoothing": 0.0,
        "ema_decay": 0.995,
    }
    pair = trainer(feedback="none", **options)
    pair.train_step(batch())
    for a, b in zip(alone.model.variables, pair.teacher.variables):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_average_follows():
    model, _, _ = one_step(0.0)
    start, now = (
        flat(v.numpy() for v in classifier(1).variables),
        flat(v.numpy() for v in model.model.variables),
    )
    with model.ema.swapped():
        averaged = flat(v.numpy() for v in model.model.variables)
    np.testing.assert_allclose(averaged, start + (1 - 2 / 11) * (now - start), rtol=1e-4, atol=1e-6)
