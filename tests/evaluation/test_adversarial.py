"""FGSM and PGD: gradients against finite differences, bounds, a closed form, and damage.

The closed form is that of a linear model.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from data.preprocessing import Preprocessing, eval_image
from evaluation import adversarial
from evaluation.examples import Examples
from evaluation.settings import NORMS
from evaluation.suites import attacked_pixels
from tests.evaluation.images import png

RNG = np.random.Generator(np.random.PCG64(0))
IMAGES = tf.constant(RNG.integers(0, 256, (6, 4, 4, 3)), tf.float32)
LABELS = tf.constant([0, 1, 2, 0, 1, 2], tf.int64)
KERNEL = tf.constant(RNG.normal(size=(48, 3)) / 400, tf.float32)


def linear(images):
    return tf.reshape(images, [-1, 48]) @ KERNEL


@pytest.fixture(scope="module")
def network():
    """Has normalization inside, BatchNorm, dropout, and statistics that training has moved."""
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input((4, 4, 3)),
            layers.Rescaling(1 / 64, -2),
            layers.Conv2D(8, 3, padding="same"),
        ]
    )
    for layer in (
        layers.BatchNormalization(),
        layers.Activation("swish"),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.Dense(3),
    ):
        model.add(layer)
    for _ in range(3):
        model(IMAGES, training=True)
    return lambda images: model(images, training=False)


def loss(logits, images):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits(images)).numpy()


def test_gradient_against_finite_differences(network):
    gradient = adversarial.input_gradient(network, IMAGES, LABELS).numpy()
    direction = RNG.normal(size=IMAGES.shape).astype(np.float32)
    step = 0.25  # gray levels
    difference = (
        loss(network, IMAGES + step * direction) - loss(network, IMAGES - step * direction)
    ) / (2 * step)
    np.testing.assert_allclose(
        difference, (gradient * direction).sum((1, 2, 3)), rtol=2e-2, atol=2e-4
    )
    assert np.abs(difference).max() > 1e-2


@pytest.mark.parametrize("norm", NORMS)
def test_epsilon_0_changes_nothing(network, norm):
    gradient = adversarial.input_gradient(network, IMAGES, LABELS)
    np.testing.assert_array_equal(
        adversarial.fgsm(IMAGES, gradient, tf.constant(0.0), norm), IMAGES
    )
    attacked = adversarial.pgd(network, IMAGES, LABELS, 0.0, iterations=3, step=2.0, norm=norm)
    np.testing.assert_array_equal(attacked, IMAGES)


@pytest.mark.parametrize("epsilon", [1.0, 7.0, 16.0])
def test_maximum_norm_and_range_hold_exactly(network, epsilon):
    gradient = adversarial.input_gradient(network, IMAGES, LABELS)
    start = adversarial.random_start(IMAGES, tf.constant(list("abcdef")), 0, epsilon)
    for attacked in (
        adversarial.fgsm(IMAGES, gradient, tf.constant(epsilon)),
        adversarial.pgd(
            network, IMAGES, LABELS, epsilon, iterations=10, step=0.3 * epsilon, start=start
        ),
    ):
        change = np.abs(attacked.numpy() - IMAGES.numpy())
        assert change.max() == epsilon  # whole gray levels: float32 is exact
        assert attacked.numpy().min() >= 0 and attacked.numpy().max() <= 255


def test_euclidean_norm(network):
    attacked = adversarial.pgd(
        network, IMAGES, LABELS, 40.0, iterations=10, step=10.0, norm="2"
    ).numpy()
    length = np.sqrt(((attacked - IMAGES.numpy()) ** 2).sum((1, 2, 3)))
    assert (length <= 40.0 * (1 + 1e-5)).all() and length.max() > 20
    assert attacked.min() >= 0 and attacked.max() <= 255


def test_linear_model_in_closed_form():
    """Tests that with two classes, the worst image for class 1 is x − ε·sign(w₁ − w₀).

    FGSM finds it at once, and PGD arrives there.
    """
    kernel = KERNEL[:, :2]
    labels = tf.ones([6], tf.int64)
    inside = tf.clip_by_value(IMAGES, 16.0, 239.0)  # so that the range does not bind

    def two(images):
        return tf.reshape(images, [-1, 48]) @ kernel

    expected = inside - 16 * tf.reshape(tf.sign(kernel[:, 1] - kernel[:, 0]), [1, 4, 4, 3])
    gradient = adversarial.input_gradient(two, inside, labels)
    np.testing.assert_array_equal(adversarial.fgsm(inside, gradient, tf.constant(16.0)), expected)
    start = adversarial.random_start(inside, tf.constant(list("abcdef")), 3, 16.0)
    attacked = adversarial.pgd(two, inside, labels, 16.0, iterations=10, step=4.0, start=start)
    np.testing.assert_array_equal(attacked, expected)


def test_pgd_does_at_least_the_damage_of_fgsm(network):
    gradient = adversarial.input_gradient(network, IMAGES, LABELS)
    clean, fgsm = (
        loss(network, IMAGES),
        loss(network, adversarial.fgsm(IMAGES, gradient, tf.constant(16.0))),
    )
    pgd = loss(network, adversarial.pgd(network, IMAGES, LABELS, 16.0, iterations=20, step=2.0))
    assert (fgsm > clean).all()
    assert (pgd >= fgsm - 1e-4).all() and pgd.mean() > fgsm.mean()


def test_one_step_of_pgd_is_fgsm():
    gradient = adversarial.input_gradient(linear, IMAGES, LABELS)
    one = adversarial.pgd(linear, IMAGES, LABELS, 8.0, iterations=1, step=8.0)
    np.testing.assert_array_equal(one, adversarial.fgsm(IMAGES, gradient, tf.constant(8.0)))


def test_random_start_belongs_to_the_image():
    keys = tf.constant(["a", "b", "c", "d", "e", "f"])
    whole = adversarial.random_start(IMAGES, keys, 5, 16.0)
    part = adversarial.random_start(IMAGES[2:4], keys[2:4], 5, 16.0)
    np.testing.assert_array_equal(whole[2:4], part)
    noise = (whole - IMAGES).numpy()
    assert np.abs(noise).max() <= 16 and np.abs(noise).max() > 15 and noise.std() > 8
    assert not np.array_equal(adversarial.random_start(IMAGES, keys, 6, 16.0), whole)


def files(size):
    encoded = [png(np.uint8(RNG.integers(0, 256, (*size, 3)))) for _ in range(3)]
    return encoded, Examples(
        "clean",
        "here",
        3,
        3,
        lambda: tf.data.Dataset.from_tensor_slices((encoded, list("abc"), [0, 1, 2])),
    )


def test_small_images_are_attacked_as_they_are_stored():
    """Tests that images without an attack reach the network as in the clean suite.

    The gradient is that of the stored pixels, through the resizing.
    """
    encoded, examples = files((4, 5))
    preprocessing = Preprocessing(image_size=8)
    pixels, to_input = attacked_pixels(examples, preprocessing)
    images = tf.stack([pixels.of(x) for x in encoded])
    assert images.shape == (3, 4, 5, 3) == (3, *pixels.shape)
    np.testing.assert_array_equal(
        to_input(images), tf.stack([eval_image(x, preprocessing) for x in encoded])
    )

    kernel = tf.constant(RNG.normal(size=(8 * 8 * 3, 3)) / 1000, tf.float32)

    def logits(x):
        return tf.reshape(to_input(x), [-1, 8 * 8 * 3]) @ kernel

    def losses(x):
        return tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 2], logits(x)).numpy()

    gradient = adversarial.input_gradient(logits, images, tf.constant([0, 1, 2], tf.int64)).numpy()
    direction = RNG.normal(size=images.shape).astype(np.float32)
    difference = (losses(images + direction) - losses(images - direction)) / 2
    np.testing.assert_allclose(
        difference, (gradient * direction).sum((1, 2, 3)), rtol=1e-2, atol=1e-5
    )
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("style", ["imagenet", "small"])
def test_photographs_are_attacked_at_the_networks_resolution(style):
    """Small images of several sizes, as folders have them, are attacked there too."""
    encoded = [*files((40, 50))[0], *files((44, 40))[0]]
    examples = Examples(
        "clean",
        "here",
        6,
        3,
        lambda: tf.data.Dataset.from_tensor_slices((encoded, list("abcdef"), [0, 1, 2] * 2)),
    )
    pixels, to_input = attacked_pixels(examples, Preprocessing(image_size=16, style=style))
    image = pixels.of(encoded[0]).numpy()
    assert image.shape == pixels.shape == (16, 16, 3)
    assert image.min() >= 0 and image.max() <= 255 and (image == image.round()).all()
    np.testing.assert_array_equal(to_input(image), image)
