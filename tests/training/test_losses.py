"""Losses against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet import EfficientNet
from training import losses


def test_cross_entropy_of_smoothed_labels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)) * 3
    labels = np.array([0, 1, 2, 3, 0, 1])
    targets = np.eye(4)[labels] * 0.9 + 0.1 / 4
    expected = -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    smoothed = losses.smooth(losses.one_hot(tf.constant(labels), 4), 0.1)
    np.testing.assert_allclose(
        losses.cross_entropy(smoothed, tf.constant(logits)), expected, rtol=1e-5
    )


def test_labels_are_class_ids_or_distributions():
    ids = tf.constant([2, 0])
    expected = np.eye(3)[[2, 0]]
    for labels in (ids, ids[:, None], tf.cast(ids, tf.uint8), tf.constant(expected, tf.float64)):
        np.testing.assert_array_equal(losses.one_hot(labels, 3), expected)
    np.testing.assert_array_equal(
        losses.one_hot(tf.constant([255, 3], tf.uint8), 256), np.eye(256)[[255, 3]]
    )
    for labels in (
        tf.constant([2.0, 0.0]),
        tf.constant([[2.0], [0.0]]),
        tf.one_hot(ids, 3, dtype=tf.int32),
        tf.constant(["2", "0"]),
    ):
        with pytest.raises(
            ValueError,
            match=r"labels must be class ids, int \(B,\), or distributions, float \(B, 3\); got",
        ):
            losses.one_hot(labels, 3)
    for labels in ([3, 0], [-1, 0]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="is not a class id from 0 to 2"):
            tf.function(losses.one_hot)(tf.constant(labels), 3)


def test_cross_entropy_is_float32_under_half_precision():
    logits = tf.constant([[30000.0, -30000.0]], tf.float16)
    value = losses.cross_entropy(tf.constant([[0.0, 1.0]]), logits)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, [60000.0], rtol=1e-3)


def test_targets_get_no_gradient():
    q, z = tf.constant([[0.3, 0.7]]), tf.constant([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(q)
        loss = losses.cross_entropy(q, z)
    assert tape.gradient(loss, q) is None


def test_l2_leaves_batch_norm_out_and_keeps_biases():
    model = EfficientNet("b0", num_classes=3, image_size=32, width=0.25, depth=0.2, seed=0)
    decayed = [v for v in model.trainable_variables if "bn/" not in v.name]
    assert any("se_reduce/bias" in v.name for v in decayed)
    expected = sum(0.5 * (v.numpy().astype(np.float64) ** 2).sum() for v in decayed)
    np.testing.assert_allclose(float(losses.l2(model.trainable_variables)), expected, rtol=1e-5)
