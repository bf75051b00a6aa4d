"""Reduced Meta Pseudo Labels (Pham et al. 2021, Appendix E): the large teacher is trained once, and its predictions are stored.

What learns from the feedback is a small network that corrects those predictions. So only one large network, the student, is in memory.
The appendix could not be consulted; the calibrator's form and its start are this project's.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from meta_pseudo_labels.student import FeedbackTrainer
from training.losses import one_hot
from training.trainer import alike, pairs

TINY = 1e-6
"""Least probability that is told from 0; stored ones are float16."""


def Calibrator(num_classes: int, *, hidden: int = 128, layers: int = 2, seed: int = 0) -> tf.keras.Model:
    """A perceptron beside the identity, log q (B, K) -> logits (B, K): z = log q + W φ(log q) with W = 0 at the start.

    Args:
      num_classes: K.
      hidden: units of each hidden layer.
      layers: hidden layers.
      seed: of the initial weights.
    """
    inputs = x = tf.keras.Input([num_classes])
    for i in range(layers):
        initializer = tf.keras.initializers.HeNormal(seed=1000 * seed + i)
        x = tf.keras.layers.Dense(hidden, "relu", kernel_initializer=initializer)(x / 4.0 if i == 0 else x)  # log q: -14 to 0
    correction = tf.keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32")(x)
    return tf.keras.Model(inputs, tf.keras.layers.Add(dtype="float32")([inputs, correction]), name="calibrator")


class ReducedMetaPseudoLabels(FeedbackTrainer):
    """Trains a student on stored predictions, and a calibrator of these on what they did to the student.

    Elements of the data set given to `fit`: `((x, y), (x_u, q))`: labelled images (B, H, W, 3) with class ids (B,) or distributions
    (B, K), and unlabelled images (B_u, H, W, 3), strongly augmented, with the teacher's predictions (B_u, K).

    At the start the labels are those predictions. With `feedback="none"` they stay so: ordinary pseudo-labels of a fixed teacher.

    Args:
      calibrator: `Calibrator`, or any built Keras model log q (B, K) -> logits (B, K).
      student: a built Keras classifier, images -> logits (B, K).
      options: see `FeedbackTrainer`; `weight_decay` is the student's alone, since beside the small gradients of the feedback it would be
        most of what an optimizer like Adam follows.
    """

    def __init__(self, calibrator: tf.keras.Model, student: tf.keras.Model, **options: Any):
        super().__init__(calibrator, student, logged=("teacher_loss", "moved"), name="reduced_meta_pseudo_labels", **options)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step: student, feedback, calibrator."""
        (x, y), (x_u, q) = pairs(data, "((x, y), (x_u, q))")
        (x, x_u), q = alike(x, x_u), tf.cast(q, tf.float32)
        step = self.step_sizes(x, x_u)
        with tf.GradientTape() as tape:
            z = self.teacher(tf.math.log(q + TINY), training=True)  # (B_u, K)
            with tape.stop_recording():
                pseudo, h = self.teach(z, x_u, x, one_hot(y, z.shape[-1]), step)
            loss = self.feedback_loss(h, pseudo, z, step)
            share = loss / step.replicas
        self.step_teacher(tape, share, step)
        self.logged["teacher_loss"].update_state(loss)
        self.logged["moved"].update_state(tf.reduce_sum(tf.abs(tf.nn.softmax(z) - q), -1) / 2)  # total variation, in [0, 1]
        return self.results()
