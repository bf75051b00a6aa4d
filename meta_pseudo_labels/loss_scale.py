"""The loss scale of the labeled loss: what mixed_float16 asks of the feedback.

The optimizers scale and check the gradients that they are given. No optimizer sees the student's
gradient of the labeled loss, so it has its own scale here. Without mixed_float16 every
function here passes its input on.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from meta_pseudo_labels.feedback import Gradients
from training.optimizers import loss_scale
from training.parts import all_reduced

LARGEST = 2.0**12
"""Maximum scale of the labeled loss. Halved when the feedback overflows, otherwise doubled every
2,000 steps."""


def labeled_factor(scale: tf.Variable | None) -> tf.Tensor | None:
    """Returns the factor () that enlarges the gradient of the labeled loss; None: 1."""
    return None if scale is None else scale.read_value()


def labeled_gradient(scaled: Gradients, factor: tf.Tensor | None) -> Gradients:
    """Returns the gradient of the labeled loss, summed over the replicas.

    Args:
      scaled: gradient of this replica's share, times the factor.
      factor: result of `labeled_factor`.
    """
    reduced = all_reduced(scaled)
    return reduced if factor is None else [g if g is None else g / factor for g in reduced]


def linear(
    function: Callable[[Gradients], tf.Tensor],
    gradients: Gradients,
    scale: tf.Variable | None,
    optimizer: tf.keras.optimizers.Optimizer,
) -> tf.Tensor:
    """Returns function(gradients), for a function that is linear in them and computes in float16.

    Small gradients would vanish there. They get the length of the student's own scaled gradient,
    or less where that has overflowed before. The result is divided by the same factor.
    """
    loss_scale_of = loss_scale(optimizer)
    if scale is None or loss_scale_of is None:
        return function(gradients)
    factor = loss_scale_of * (scale / LARGEST) / tf.linalg.global_norm(gradients)
    return function([g if g is None else factor * g for g in gradients]) / factor


def without_overflow(
    h: tf.Tensor,
    mean: tf.Tensor,
    usual: tf.Variable,
    unlabeled: Gradients,
    scale: tf.Variable | None,
    optimizer: tf.keras.optimizers.Optimizer,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (h, mean), or the usual h for both where float16 overflowed; adjusts the scale.

    Args:
      h: the feedback of this replica's examples.
      mean: its mean over the global batch, ().
      usual: the baseline of h, ().
      unlabeled: ∇L_u(θ_S). Where it is not finite the optimizer has left the student's step out.
      scale: scale of the labeled loss, (); None where no gradient of that loss is taken.
      optimizer: the student's.
    """
    if loss_scale(optimizer) is None:
        return h, mean
    moved = tf.math.is_finite(tf.linalg.global_norm(unlabeled))
    known = moved & tf.math.is_finite(mean)
    if scale is not None:
        value = scale.read_value()
        risen, fallen = tf.minimum(value * 2.0 ** (1 / 2000), LARGEST), tf.maximum(value / 2, 1.0)
        scale.assign(tf.where(moved, tf.where(known, risen, fallen), value))
    return tf.where(known, h, usual), tf.where(known, mean, usual)
