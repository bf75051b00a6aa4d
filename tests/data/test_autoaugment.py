"""AutoAugment: the policy as published, and how its pairs are drawn and applied."""

from __future__ import annotations

import collections

import numpy as np
import tensorflow as tf

from data import autoaugment, image_ops, randaugment
from data.autoaugment import POLICY_V0, auto_augment
from data.preprocessing import Preprocessing, eval_image, train_image
from tests.data.recipes import encode, pixels

IMAGE = pixels(0, (24, 31))


def test_the_policy():
    """Compares sums that a slip of one number would change. The published table has 25 pairs."""
    steps = [step for pair in POLICY_V0 for step in pair]
    assert len(POLICY_V0) == 25
    counts = collections.Counter(name for name, _, _ in steps)
    expected = {
        "Equalize": 12,
        "Color": 9,
        "Solarize": 8,
        "Rotate": 7,
        "ShearY": 4,
        "SolarizeAdd": 2,
        "ShearX": 2,
        "Posterize": 2,
    }
    assert counts == {**expected, "AutoContrast": 2, "Invert": 1, "TranslateY": 1}
    assert (
        sum(tenths for _, tenths, _ in steps) == 298 and sum(level for _, _, level in steps) == 240
    )


def test_both_operations_are_applied_in_order(monkeypatch):
    """Draws pairs of one certain operation each: the image is that of one after the other."""
    monkeypatch.setattr(autoaugment, "POLICY_V0", ((("Solarize", 10, 4), ("Posterize", 10, 5)),))
    expected = image_ops.posterize(image_ops.solarize(tf.constant(IMAGE), 102), 2)
    np.testing.assert_array_equal(auto_augment(tf.constant(IMAGE), tf.constant([1, 2])), expected)


def test_probabilities_and_the_drawing_of_pairs(monkeypatch):
    policy = (*POLICY_V0[:3], (("Invert", 3, 1), ("Invert", 0, 1)))
    monkeypatch.setattr(autoaugment, "POLICY_V0", policy)
    monkeypatch.setattr(
        randaugment,
        "operation",
        lambda name, *_: lambda image, _: 255 - image if name == "Invert" else image,
    )
    changed = tf.data.Dataset.range(2000).map(
        lambda i: auto_augment(tf.zeros([1, 1, 3], tf.uint8), tf.stack([i, 3]))[0, 0, 0] > 0
    )
    share = np.mean(list(changed.as_numpy_iterator()))
    assert abs(share - 0.3 / 4) < 4 * np.sqrt(0.075 * 0.925 / 2000)


def test_eager_and_dataset_agree():
    def augment(index):
        return auto_augment(tf.constant(IMAGE), tf.stack([index, 3]))

    graph = np.stack(list(tf.data.Dataset.range(40).map(augment).as_numpy_iterator()))
    np.testing.assert_array_equal(
        graph, np.stack([augment(tf.constant(i, tf.int64)) for i in range(40)])
    )
    assert len({image.tobytes() for image in graph}) > 15


def test_as_a_preprocessing():
    encoded = tf.constant(encode(IMAGE))
    off = Preprocessing(24, randaugment_table="autoaugment_v0")
    np.testing.assert_array_equal(
        train_image(encoded, tf.constant([0, 0]), off), eval_image(encoded, off)
    )
    on = Preprocessing(24, randaugment_table="autoaugment_v0", randaugment_layers=1)
    images = [train_image(encoded, tf.constant([i, 0]), on).numpy() for i in range(12)]
    assert len({image.tobytes() for image in images}) > 5 and all(
        image.shape == (24, 24, 3) for image in images
    )
