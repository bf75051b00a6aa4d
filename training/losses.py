"""Losses as pure functions of tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import tensorflow as tf

from cli.errors import InputError

NOT_DECAYED = r"(^|/)(gamma|beta)(:\d+)?$"
"""Pattern of the variables that weight decay leaves alone: BatchNorm's scale and shift."""


def one_hot(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Returns labels as distributions, float32 (B, K).

    Args:
      labels: class ids, int (B,) or (B, 1), or distributions, float (B, K).
      num_classes: K.

    Raises:
      ValueError: another shape or type.
      InvalidArgumentError: when it runs, a class id outside of 0 … K − 1. XLA leaves that check
        out.
    """
    ids = labels.dtype.is_integer and (labels.shape.rank in (1, None) or labels.shape[1:] == [1])
    distributions = (
        labels.dtype.is_floating
        and labels.shape.rank in (2, None)
        and labels.shape[-1:] in ([num_classes], [None], None)
    )
    if not (ids or distributions):
        found = f"{labels.dtype.name} {labels.shape}"
        raise ValueError(
            f"labels must be class ids, int (B,), or distributions, float (B, {num_classes}); got"
            f" {found}"
        )
    if distributions:
        return tf.cast(labels, tf.float32)
    flat = tf.cast(tf.reshape(labels, [-1]), tf.int64)  # the labels' own type may not hold K
    message = f"a label is not a class id from 0 to {num_classes - 1}"
    checks = [
        tf.debugging.assert_non_negative(flat, message),
        tf.debugging.assert_less(flat, tf.cast(num_classes, tf.int64), message),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.one_hot(flat, num_classes, dtype=tf.float32)


def smooth(targets: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Smooths float (B, K) targets y with ε: (1 − ε)·y + ε/K (Szegedy et al. 2016, Section 7)."""
    if not label_smoothing:
        return targets
    return targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]


def log_priors(
    counts: Sequence[int], weight: float, label_names: Sequence[str] = ()
) -> tuple[float, ...] | None:
    """Returns τ log π_k of each class for logit adjustment; None with τ = 0.

    Logit adjustment adds these numbers to the logits of labeled images.

    Args:
      counts: number of labeled images of each class, K numbers; π is a class's share of them.
      weight: τ, at least 0.
      label_names: names of the classes, for the message; (): their numbers.

    Raises:
      InputError: a class has no labeled image.
    """
    if not weight:
        return None
    if min(counts) < 1:
        names = label_names or range(len(counts))
        without = [repr(name) for name, count in zip(names, counts) if count < 1]
        shown = ", ".join(without[:10]) + (", ..." if len(without) > 10 else "")
        raise InputError(
            f"logit_adjustment={weight:g}: no labeled image of class {shown}; label some, or set"
            " logit_adjustment to 0"
        )
    total = sum(counts)
    return tuple(weight * math.log(count / total) for count in counts)


def adjusted(logits: tf.Tensor, adjustment: Sequence[float] | None) -> tf.Tensor:
    """Returns the logits (B, K) with which the loss on labeled images is computed: z_k + τ log π_k.

    A network trained in this way answers by z as if all classes were equally frequent (Menon et al.
    2021, eq. 10). `adjustment` is what `log_priors` returns; None leaves the logits as they are.
    """
    return (
        logits
        if adjustment is None
        else logits + tf.constant([float(value) for value in adjustment], logits.dtype)
    )


def cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes −Σ_k q_k log softmax(z)_k of each example, in float32: (B, K), (B, K) -> (B,)."""
    return tf.nn.softmax_cross_entropy_with_logits(
        labels=tf.stop_gradient(targets), logits=tf.cast(logits, tf.float32)
    )


def decayed(variables: Sequence[tf.Variable]) -> list[tf.Variable]:
    """Returns the variables that the papers decay: all except BatchNorm's gamma and beta.

    `variables` are trainable variables. Biases are decayed.
    """
    return [v for v in variables if not re.search(NOT_DECAYED, v.name)]


def l2(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Computes Σ ½‖v‖² over the `decayed` variables."""
    return tf.add_n([tf.nn.l2_loss(tf.cast(v, tf.float32)) for v in decayed(variables)])
