"""Attacks on an image's pixels: the fast gradient sign method and projected gradient descent.

Images are float32 [B, H, W, 3] on the scale 0–255, before any normalization. ε, the step and the
attacked images have the same scale. Attacked images stay within 0–255. `logits` is the network with
the preprocessing of its images, in inference mode (BatchNorm with its moving statistics, no
dropout).

Sources: Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples" (FGSM); Madry et
al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks" (PGD); both as used by Xie
et al. 2020, Section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

Logits = Callable[[tf.Tensor], tf.Tensor]


def input_gradient(logits: Logits, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns ∇ₓ of each image's own cross-entropy, float32 [B, H, W, 3]; labels int64 [B]."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, tf.cast(logits(images), tf.float32)
        )  # (B,)
    return tape.gradient(losses, images)


def _direction(gradient: tf.Tensor, norm: str) -> tf.Tensor:
    """Returns the change of unit norm that raises a linear loss most.

    It is sign(g) in the maximum norm, and g / ‖g‖₂ in the Euclidean norm.
    """
    if norm == "inf":
        return tf.sign(gradient)
    length = tf.sqrt(tf.reduce_sum(gradient**2, axis=[1, 2, 3], keepdims=True))
    return tf.math.divide_no_nan(gradient, length)


def project(attacked: tf.Tensor, images: tf.Tensor, epsilon: tf.Tensor, norm: str) -> tf.Tensor:
    """Projects `attacked` onto the ε-ball around `images`, then clips it to 0–255.

    The clipping moves no image farther away from `images`.
    """
    if norm == "inf":
        attacked = tf.clip_by_value(attacked, images - epsilon, images + epsilon)
    else:
        change = attacked - images
        length = tf.sqrt(tf.reduce_sum(change**2, axis=[1, 2, 3], keepdims=True))
        attacked = images + change * tf.minimum(
            1.0, tf.math.divide_no_nan(epsilon, length) + tf.cast(length == 0, tf.float32)
        )
    return tf.clip_by_value(attacked, 0.0, 255.0)


def fgsm(
    images: tf.Tensor, gradient: tf.Tensor, epsilon: tf.Tensor, norm: str = "inf"
) -> tf.Tensor:
    """Returns x + ε · sign(∇ₓ L), within 0–255.

    The gradient is taken once and serves every ε.
    """
    return project(images + epsilon * _direction(gradient, norm), images, epsilon, norm)


def pgd(
    logits: Logits,
    images: tf.Tensor,
    labels: tf.Tensor,
    epsilon: float,
    *,
    iterations: int,
    step: float,
    norm: str = "inf",
    start: tf.Tensor | None = None,
) -> tf.Tensor:
    """Repeats x ← Π(x + step · sign(∇ₓ L)) `iterations` times.

    Π projects onto the ε-ball around the image, and onto 0–255.

    Args:
      logits: the network.
      images: float32 [B, H, W, 3] in 0–255.
      labels: int64 [B], the true classes; the attack leads away from them.
      epsilon: radius of the ball.
      iterations: at least 0.
      step: length of a step in `norm`.
      norm: "inf" or "2".
      start: images to begin with; None: the images themselves.
    """
    attacked = images if start is None else project(start, images, epsilon, norm)
    for _ in tf.range(iterations):
        gradient = input_gradient(logits, attacked, labels)
        attacked = project(attacked + step * _direction(gradient, norm), images, epsilon, norm)
    return attacked


def random_start(images: tf.Tensor, keys: tf.Tensor, seed: int, epsilon: float) -> tf.Tensor:
    """Returns each image moved by uniform noise in ±ε, a function of (seed, the image's key)."""
    numbers = tf.strings.to_hash_bucket_strong(keys, 2**62, [seed, 0])  # (B,)

    def noise(number: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_uniform(
            images.shape[1:], tf.stack([tf.constant(seed, tf.int64), number]), -epsilon, epsilon
        )

    return images + tf.map_fn(noise, numbers, fn_output_signature=tf.float32)
