"""MixUp and CutMix: functions of the key, equal to keras-cv's layers for equal random numbers."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from data import mixing

KEY = tf.constant([3, 4], tf.int64)
IMAGES = tf.random.stateless_uniform([64, 12, 10, 3], [1, 2], 0, 255)
TARGETS = tf.one_hot(tf.range(64) % 5, 5)


def dealt(monkeypatch, drawn):
    """Makes keras-cv's sources of randomness give the numbers in `drawn`."""
    for layer in (keras_cv.layers.MixUp, keras_cv.layers.CutMix):
        monkeypatch.setattr(
            layer, "_sample_from_beta", lambda self, alpha, beta, shape: drawn.shares
        )
    monkeypatch.setattr(tf.random, "shuffle", lambda values, seed=None: drawn.partners)
    points = iter(tf.unstack(drawn.centers, axis=1))  # height, then width
    monkeypatch.setattr(
        tf.random,
        "uniform",
        lambda shape, minval, maxval, dtype: tf.cast(
            next(points) * tf.cast(maxval, tf.float32), dtype
        ),
    )


def test_mixup_is_keras_cv_s(monkeypatch):
    drawn = mixing.draw(64, 0.2, KEY)
    mixed, targets = mixing.mixup(IMAGES, TARGETS, drawn)
    dealt(monkeypatch, drawn)
    expected = keras_cv.layers.MixUp(alpha=0.2)({"images": IMAGES, "labels": TARGETS})
    np.testing.assert_allclose(mixed, expected["images"], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(targets, expected["labels"], rtol=1e-5, atol=1e-6)
    assert np.abs(mixed - IMAGES).max() > 50


def test_cutmix_is_keras_cv_s_but_for_boxes_over_the_edge(monkeypatch):
    drawn = mixing.draw(64, 1.0, KEY)
    mixed, targets = mixing.cutmix(IMAGES, TARGETS, drawn)
    dealt(monkeypatch, drawn)
    expected = keras_cv.layers.CutMix(alpha=1.0)({"images": IMAGES, "labels": TARGETS})
    np.testing.assert_array_equal(mixed, expected["images"])
    middle = np.floor(drawn.centers * [12.0, 10.0])
    half = np.floor(np.sqrt(1 - drawn.shares)[:, None] * [12.0, 10.0]) / 2
    whole = ((middle - half >= 0) & (middle + half <= [12, 10])).all(1)
    assert 3 < whole.sum() < 60
    np.testing.assert_allclose(targets[whole], expected["labels"][whole], atol=1e-6)
    foreign = (mixed != IMAGES).numpy().any(-1).mean((1, 2))  # where the partner is another image
    other = drawn.partners.numpy() != np.arange(64)
    different = other & (TARGETS.numpy().argmax(1) != TARGETS.numpy().argmax(1)[drawn.partners])
    np.testing.assert_allclose(
        1 - targets.numpy().max(1)[different & (foreign < 0.5)],
        foreign[different & (foreign < 0.5)],
        atol=1e-6,
    )


def test_shares_are_beta_distributed():
    for alpha in (0.2, 1.0):
        shares = mixing.draw(20_000, alpha, KEY).shares.numpy()
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
        assert np.isfinite(shares).all()


def test_a_function_of_the_key():
    compiled, chosen = tf.function(mixing.mix), []
    for number in range(12):
        key = tf.constant([7, number], tf.int64)
        mixed, targets = mixing.mix(IMAGES, TARGETS, 1.0, 1.0, key)
        again, _ = compiled(IMAGES, TARGETS, 1.0, 1.0, key)
        np.testing.assert_allclose(mixed, again, atol=1e-3)
        np.testing.assert_allclose(tf.reduce_sum(targets, 1), np.ones(64), rtol=1e-5)
        chosen.append(bool((mixed == IMAGES).numpy().any()))  # CutMix leaves pixels as they are
    assert {True, False} == set(chosen)
    assert mixing.mix(IMAGES, TARGETS, 0.0, 0.0, KEY)[0] is IMAGES
