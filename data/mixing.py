"""MixUp and CutMix as pure functions of a key.

They are options for labeled images, in no recipe of the papers. keras-cv has both as layers, which
draw from TensorFlow's global generators: another mixture after every restart. So the arithmetic is
here. The tests feed those layers the same random numbers and compare. One thing differs: keras-cv
weighs CutMix's labels by the box as drawn. Here the part of the box inside the image counts, as in
Yun et al.'s code.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Draw(NamedTuple):
    """The random numbers for a batch of b examples.

    The fields are each example's partner (b,), its own share λ ~ Beta(α, α) (b,), and a point in
    [0, 1)² (b, 2).
    """

    partners: tf.Tensor
    shares: tf.Tensor
    centers: tf.Tensor


def draw(count: tf.Tensor | int, alpha: float, key: tf.Tensor) -> Draw:
    """Draws for `count` examples, as a function of `key`, int64 (2,)."""
    keys = tf.random.experimental.stateless_split(key, 4)
    partners = tf.random.experimental.stateless_shuffle(tf.range(count), keys[0])
    # Two gamma variates make a beta one. A tiny α may underflow both.
    a, b = (tf.maximum(tf.random.stateless_gamma([count], keys[i], alpha), 1e-30) for i in (1, 2))
    return Draw(partners, a / (a + b), tf.random.stateless_uniform([count, 2], keys[3]))


def mixup(images: tf.Tensor, targets: tf.Tensor, drawn: Draw) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes λ·x_i + (1 − λ)·x_j, and the same of the targets (Zhang et al. 2018).

    Args:
      images: float (b, S, S, 3).
      targets: distributions, float (b, K).
      drawn: the random numbers of b examples.
    """
    share = tf.reshape(drawn.shares, [-1, 1])
    pixels = tf.reshape(share, [-1, 1, 1, 1])
    mixed = pixels * images + (1.0 - pixels) * tf.gather(images, drawn.partners)
    return mixed, share * targets + (1.0 - share) * tf.gather(targets, drawn.partners)


def cutmix(images: tf.Tensor, targets: tf.Tensor, drawn: Draw) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces a box of 1 − λ of the area by another image's (Yun et al. 2019).

    The targets are weighed by the area that is left.

    Args:
      images: float (b, H, W, 3).
      targets: distributions, float (b, K).
      drawn: the random numbers of b examples; the point is the middle of the box.
    """
    inside = []
    for axis in (1, 2):
        side = tf.shape(images)[axis]
        middle = tf.floor(drawn.centers[:, axis - 1, None] * tf.cast(side, tf.float32))  # (b, 1)
        length = tf.floor(tf.sqrt(1.0 - drawn.shares)[:, None] * tf.cast(side, tf.float32))
        place = tf.range(side, dtype=tf.float32)[None]  # (1, side)
        inside.append((place >= middle - length / 2) & (place < middle + length / 2))
    box = inside[0][:, :, None] & inside[1][:, None, :]  # (b, H, W)
    share = 1.0 - tf.reduce_mean(tf.cast(box, tf.float32), [1, 2])[:, None]  # (b, 1)
    mixed = tf.where(box[..., None], tf.gather(images, drawn.partners), images)
    return mixed, share * targets + (1.0 - share) * tf.gather(targets, drawn.partners)


def mix(
    images: tf.Tensor, targets: tf.Tensor, mixup_alpha: float, cutmix_alpha: float, key: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies MixUp or CutMix; if both have an α above 0, each to half of the batches.

    Args:
      images: float (b, S, S, 3).
      targets: distributions, float (b, K).
      mixup_alpha: α of MixUp; 0 is off.
      cutmix_alpha: α of CutMix; 0 is off.
      key: int64 (2,).
    """
    count = tf.shape(images)[0]
    makers = [
        lambda kind=kind, alpha=alpha: kind(images, targets, draw(count, alpha, key))
        for kind, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha))
        if alpha
    ]
    if len(makers) < 2:
        return makers[0]() if makers else (images, targets)
    choice = tf.random.stateless_uniform([], tf.random.experimental.stateless_fold_in(key, 1)) < 0.5
    return tf.cond(choice, *makers)
