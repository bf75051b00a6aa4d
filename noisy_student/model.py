"""Noisy Student's training step (Xie et al. 2020, Algorithm 1) as a Keras model.

It trains any Keras classifier.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nets.noise import model_noise
from noisy_student.settings import LOSS_NORMALIZATIONS, PSEUDO_LABELS
from training.losses import cross_entropy, l2, one_hot, smooth
from training.optimizers import gradient
from training.parts import global_rows, in_one_dtype, two_pairs
from training.supervised import Supervised
from training.trainer import check_classifier, is_correct


def combine_losses(
    labeled: tf.Tensor, unlabeled: tf.Tensor, ratio: float, normalization: str
) -> tf.Tensor:
    """Combines the mean labeled and the mean unlabeled cross entropy (scalars) into one loss.

    Args:
      labeled: mean over the labeled batch, B examples.
      unlabeled: mean over the unlabeled batch, μB examples.
      ratio: μ.
      normalization: how the losses are combined:
        "joint": the average over the concatenated batch, (L_l + μ·L_u)/(1 + μ) (the paper, Section
        3.1).
        "algorithm_1": L_l + L_u (the paper, Algorithm 1, step 3).
        "release": L_l + μ·L_u (the released code: a sum over both batches divided by the labeled
        batch).

    Raises:
      ValueError: unknown normalization.
    """
    if normalization == "joint":
        return (labeled + ratio * unlabeled) / (1.0 + ratio)
    if normalization == "algorithm_1":
        return labeled + unlabeled
    if normalization == "release":
        return labeled + ratio * unlabeled
    raise ValueError(
        f"loss_normalization must be one of {LOSS_NORMALIZATIONS}, got {normalization!r}"
    )


def pseudo_targets(
    probabilities: tf.Tensor, kind: str, temperature: float, label_smoothing: float
) -> tf.Tensor:
    """Returns the student's targets from the teacher's distribution, float32 (μB, K).

    Args:
      probabilities: the teacher's softmax, float (μB, K).
      kind: "soft" (the paper's default, Section 2) or "hard" (one-hot at the maximum, smoothed like
        a label, as released).
      temperature: T of soft targets, q^(1/T) renormalized; 1 leaves them.
      label_smoothing: label smoothing of hard targets.

    Raises:
      ValueError: unknown kind.
    """
    probabilities = tf.cast(probabilities, tf.float32)
    if kind == "hard":
        return smooth(
            tf.one_hot(tf.argmax(probabilities, -1), probabilities.shape[-1]), label_smoothing
        )
    if kind != "soft":
        raise ValueError(f"pseudo_labels must be one of {PSEUDO_LABELS}, got {kind!r}")
    if temperature != 1.0:
        probabilities = tf.nn.softmax(tf.math.log(tf.maximum(probabilities, 1e-30)) / temperature)
    return probabilities


class NoisyStudent(Supervised):
    """Trains a classifier on labeled and pseudo-labeled images together, with noise.

    Elements of the data set given to `fit`:
      `((x, y), (x_u, q))`: labeled images (B, H, W, 3) with class ids (B,) or distributions (B,
        K), and augmented unlabeled images (μB, H, W, 3) with the teacher's probabilities (μB, K).
        With `teacher`, the second pair is `(x_u, x_clean)`: the teacher, unnoised, labels the clean
        images within the step.
      `(x, y)`: no unlabeled images. This is how the teacher is trained (Algorithm 1, step 1), with
        `Supervised`'s step.

    Input noise (RandAugment) comes with the data. Model noise (dropout, stochastic depth) is the
    classifier's. `ema` holds the averaged weights: use them with `with student.ema.swapped():
    student.evaluate(...)`.

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      teacher: a Keras classifier, images -> logits, for labels made on the fly; None if the data
        bring the labels.
      loss_normalization: see `combine_losses`.
      pseudo_labels: "soft" or "hard"; see `pseudo_targets`.
      temperature: temperature of soft pseudo-labels.
      unlabeled_model_noise: off leaves unlabeled examples without dropout and stochastic depth of
        `nets`' layers, as the paper's ablation does (Table 6).
      options: see `Supervised`; `label_smoothing` is that of hard pseudo-labels, too.

    Raises:
      ValueError: an unknown loss_normalization or pseudo_labels, or a model that is not built.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        teacher: tf.keras.Model | None = None,
        loss_normalization: str = "joint",
        pseudo_labels: str = "soft",
        temperature: float = 1.0,
        unlabeled_model_noise: bool = True,
        **options: Any,
    ):
        if loss_normalization not in LOSS_NORMALIZATIONS:
            raise ValueError(
                f"loss_normalization must be one of {LOSS_NORMALIZATIONS}, got"
                f" {loss_normalization!r}"
            )
        if pseudo_labels not in PSEUDO_LABELS:
            raise ValueError(f"pseudo_labels must be one of {PSEUDO_LABELS}, got {pseudo_labels!r}")
        super().__init__(
            model, logged=("unlabeled_loss", "confidence"), name="noisy_student", **options
        )
        # This goes past Keras, which would put what never changes into every checkpoint.
        object.__setattr__(self, "teacher", teacher)
        self.loss_normalization = loss_normalization
        self.pseudo_labels = pseudo_labels
        self.temperature = temperature
        self.unlabeled_model_noise = unlabeled_model_noise
        if teacher is not None:
            check_classifier(teacher, "teacher", trained=False)
            teacher.trainable = False

    def _gradients(self, data: Any, part: int) -> list[tf.Tensor | None]:
        """Returns the gradients of Algorithm 1, step 3, on one part of the batch.

        B and μB are the sizes of the part. The gradients are divided by parts and replicas, and are
        to be summed over both.
        """
        if not isinstance(data[0], tuple):
            return super()._gradients(data, part)  # step 1
        parts, replicas = self.accumulation, tf.distribute.get_strategy().num_replicas_in_sync
        (x, y), (x_u, q) = two_pairs(data, "((x, y), (x_u, q)), or (x, y)")
        batch = tf.shape(x)[0]  # B
        # Step 2, within the step: the second of the pair is the clean image.
        if self.teacher is not None:
            q = tf.nn.softmax(tf.cast(self.teacher(q, training=False), tf.float32))  # (μB, K)
        pseudo = pseudo_targets(
            q, self.pseudo_labels, self.temperature, self.label_smoothing
        )  # (μB, K)
        images = tf.concat(in_one_dtype(x, x_u), axis=0)  # (B + μB, H, W, 3)
        rows = global_rows(batch, 0, part, parts)  # (B,)
        rows_u = global_rows(tf.shape(x_u)[0], batch * parts * replicas, part, parts)  # (μB,)

        noised = (
            None if self.unlabeled_model_noise else tf.range(tf.shape(images)[0]) < batch
        )  # (B + μB,)
        with tf.GradientTape() as tape:
            # One forward pass over both batches: they share their BatchNorm statistics.
            num_rows = tf.shape(images)[0] * parts * replicas
            with model_noise(
                self.seed,
                self.optimizer.iterations,
                tf.concat([rows, rows_u], 0),
                num_rows,
                noised=noised,
            ):
                logits = tf.cast(self.forward(images), tf.float32)  # (B + μB, K)
            targets = one_hot(y, logits.shape[-1])  # (B, K)
            labeled_loss = self.labeled_loss(
                targets, logits[:batch], rows, batch * parts * replicas
            )
            unlabeled_loss = tf.reduce_mean(cross_entropy(pseudo, logits[batch:]))
            ratio = tf.cast(tf.shape(x_u)[0] / batch, tf.float32)  # μ
            loss = combine_losses(labeled_loss, unlabeled_loss, ratio, self.loss_normalization)
            decay = self.weight_decay * l2(self.model.trainable_variables)
            # Every part on every replica has the same number of examples, and the parts are summed.
            # So this is sum / global batch.
            objective = (loss + decay) / (parts * replicas)
        gradients = gradient(tape, objective, self.model.trainable_variables, self.optimizer)

        self.log(
            loss=loss + decay, labeled_loss=labeled_loss, unlabeled_loss=unlabeled_loss, l2=decay
        )
        self.log(top1=is_correct(targets, logits[:batch]), confidence=tf.reduce_max(q, -1))
        return gradients
