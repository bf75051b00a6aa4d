"""Losses as pure functions of tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence

import tensorflow as tf

NOT_DECAYED = r"(^|/)(gamma|beta)(:\d+)?$"
"""Names of the variables that weight decay leaves alone: BatchNorm's scale and shift."""


def one_hot(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Labels as distributions: int (B,) becomes float32 (B, K); a float (B, K) is passed on."""
    if labels.dtype.is_integer:
        return tf.one_hot(tf.reshape(labels, [-1]), num_classes, dtype=tf.float32)
    return tf.cast(labels, tf.float32)


def smooth(targets: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Label smoothing ε: (1 − ε)·y + ε/K, for float (B, K) targets (Szegedy et al. 2016, Section 7)."""
    if not label_smoothing:
        return targets
    return targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]


def cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """−Σ_k q_k log softmax(z)_k of each example, in float32: (B, K) and (B, K) give (B,)."""
    return tf.nn.softmax_cross_entropy_with_logits(labels=tf.stop_gradient(targets), logits=tf.cast(logits, tf.float32))


def decayed(variables: Sequence[tf.Variable]) -> list[tf.Variable]:
    """What the papers decay: every trainable variable but BatchNorm's gamma and beta, biases included."""
    return [v for v in variables if not re.search(NOT_DECAYED, v.name)]


def l2(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Σ ½‖v‖² over the `decayed` ones of the variables."""
    return tf.add_n([tf.nn.l2_loss(tf.cast(v, tf.float32)) for v in decayed(variables)])
