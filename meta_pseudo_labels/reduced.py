"""Reduced Meta Pseudo Labels: the large teacher is trained once, and its predictions are stored.

See Pham et al. 2021, Appendix E. A network of two hidden layers corrects those predictions, and
learns from the feedback. So only one large network, the student, is in memory. The appendix could
not be consulted; the calibrator's form and its start are this project's.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from meta_pseudo_labels.model import FeedbackTrainer
from meta_pseudo_labels.student import Step
from training.parts import in_one_dtype, two_pairs

TINY = 1e-6
"""Least probability that differs from 0; stored probabilities are float16."""


def Calibrator(
    num_classes: int, *, hidden: int = 128, layers: int = 2, seed: int = 0
) -> tf.keras.Model:
    """Returns a perceptron beside the identity, log q (B, K) -> logits (B, K).

    z = log q + W φ(log q), with W = 0 at the start.

    Args:
      num_classes: K.
      hidden: units of each hidden layer.
      layers: number of hidden layers.
      seed: seed of the initial weights.
    """
    inputs = x = tf.keras.Input([num_classes])
    for i in range(layers):
        initializer = tf.keras.initializers.HeNormal(seed=1000 * seed + i)
        x = tf.keras.layers.Dense(hidden, "relu", kernel_initializer=initializer)(
            x / 4.0 if i == 0 else x
        )  # log q: -14 to 0
    correction = tf.keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32")(x)
    return tf.keras.Model(
        inputs, tf.keras.layers.Add(dtype="float32")([inputs, correction]), name="calibrator"
    )


class ReducedMetaPseudoLabels(FeedbackTrainer):
    """Trains a student on stored predictions, and a calibrator of these on the student's feedback.

    Elements of the data set given to `fit`: `((x, y), (x_u, q))`: labeled images (B, H, W, 3) with
    class ids (B,) or distributions (B, K), and unlabeled images (B_u, H, W, 3), strongly
    augmented, with the teacher's predictions (B_u, K).

    At the start the labels are those predictions. With `feedback="none"` they stay so: ordinary
    pseudo-labels of a fixed teacher.

    Args:
      calibrator: `Calibrator`, or any built Keras model log q (B, K) -> logits (B, K).
      student: a built Keras classifier, images -> logits (B, K).
      options: see `FeedbackTrainer`. `weight_decay` is the student's alone: beside the small
        gradients of the feedback it would be most of what an optimizer like Adam follows.
    """

    def __init__(self, calibrator: tf.keras.Model, student: tf.keras.Model, **options: Any):
        super().__init__(
            calibrator,
            student,
            logged=("teacher_loss", "moved"),
            name="reduced_meta_pseudo_labels",
            **options,
        )

    def _inputs(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        (x, y), (x_u, q) = two_pairs(data, "((x, y), (x_u, q))")
        x, x_u = in_one_dtype(x, x_u)
        return x, y, x_u, tf.cast(q, tf.float32)

    def _teacher_pass(
        self, x: tf.Tensor, x_u: tf.Tensor, given: tf.Tensor, step: Step
    ) -> tuple[tf.Tensor, tf.Tensor]:
        z = self.teacher(tf.math.log(given + TINY), training=True)  # (B_u, K)
        return z, z

    def _other_losses(
        self, z: tf.Tensor, targets: tf.Tensor, given: tf.Tensor, step: Step
    ) -> float:
        variation = tf.reduce_sum(tf.abs(tf.nn.softmax(z) - given), -1) / 2  # (B_u,), in [0, 1]
        self.logged["moved"].update_state(variation)
        return 0.0
