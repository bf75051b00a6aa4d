"""Noisy Student's training step (Xie et al. 2020, Algorithm 1) as a Keras model over any Keras classifier."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nets.noise import model_noise
from noisy_student.settings import LOSS_NORMALIZATIONS, PSEUDO_LABELS
from training.losses import cross_entropy, l2, one_hot, smooth
from training.optimizers import gradient
from training.trainer import Trainer, accumulated, alike, check_classifier, global_rows, hits, pairs


def combine_losses(labeled: tf.Tensor, unlabeled: tf.Tensor, ratio: float, normalization: str) -> tf.Tensor:
    """One loss from the mean labelled and the mean unlabelled cross entropy (scalars).

    Args:
      labeled: mean over the labelled batch, B examples.
      unlabeled: mean over the unlabelled batch, μB examples.
      ratio: μ.
      normalization: "joint", the average over the concatenated batch, (L_l + μ·L_u)/(1 + μ) (the paper, Section 3.1);
        "algorithm_1", L_l + L_u (the paper, Algorithm 1, step 3); "release", L_l + μ·L_u (the released code: a sum over
        both batches divided by the labelled batch).

    Raises:
      ValueError: unknown normalization.
    """
    if normalization == "joint":
        return (labeled + ratio * unlabeled) / (1.0 + ratio)
    if normalization == "algorithm_1":
        return labeled + unlabeled
    if normalization == "release":
        return labeled + ratio * unlabeled
    raise ValueError(f"loss_normalization must be one of {LOSS_NORMALIZATIONS}, got {normalization!r}")


def pseudo_targets(probabilities: tf.Tensor, kind: str, temperature: float, label_smoothing: float) -> tf.Tensor:
    """The student's targets from the teacher's distribution, float32 (μB, K).

    Args:
      probabilities: the teacher's softmax, float (μB, K).
      kind: "soft" (the paper's default, Section 2) or "hard" (one-hot at the maximum, smoothed like a label, as released).
      temperature: T of soft targets, q^(1/T) renormalised; 1 leaves them.
      label_smoothing: of hard targets.

    Raises:
      ValueError: unknown kind.
    """
    probabilities = tf.cast(probabilities, tf.float32)
    if kind == "hard":
        return smooth(tf.one_hot(tf.argmax(probabilities, -1), probabilities.shape[-1]), label_smoothing)
    if kind != "soft":
        raise ValueError(f"pseudo_labels must be one of {PSEUDO_LABELS}, got {kind!r}")
    if temperature != 1.0:
        probabilities = tf.nn.softmax(tf.math.log(tf.maximum(probabilities, 1e-30)) / temperature)
    return probabilities


class NoisyStudent(Trainer):
    """Trains a classifier on labelled and pseudo-labelled images together, with noise.

    Elements of the data set given to `fit`:
      `((x, y), (x_u, q))`: labelled images (B, H, W, 3) with class ids (B,) or distributions (B, K), and augmented unlabelled
        images (μB, H, W, 3) with the teacher's probabilities (μB, K). With `teacher`, the second pair is `(x_u, x_clean)` and
        the teacher, unnoised, labels the clean images within the step.
      `(x, y)`: no unlabelled images, which is how the teacher is trained (Algorithm 1, step 1).

    Input noise (RandAugment) is the data's, model noise (dropout, stochastic depth) the classifier's. `ema` holds the
    averaged weights: use them with `with student.ema.swapped(): student.evaluate(...)`.

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      teacher: a Keras classifier, images -> logits, for labels made on the fly; None where the data bring them.
      loss_normalization: see `combine_losses`.
      pseudo_labels: "soft" or "hard"; see `pseudo_targets`.
      temperature: of soft pseudo-labels.
      label_smoothing: of labelled examples (and of hard pseudo-labels).
      weight_decay: λ in λ·Σ½‖v‖², part of the loss.
      ema_decay: of the moving average; see `ExponentialMovingAverage`.
      label_data_sample_prob: of a labelled example to count; the loss of the others is 0, and stays in the mean. The release's mask.
      confidence_weighted: weigh each unlabelled example's cross entropy by the largest of the teacher's probabilities, beyond the paper.
      unlabeled_model_noise: off leaves unlabelled examples without dropout and stochastic depth of `efficientnet`'s layers, as the paper's
        ablation does (Table 6).
      rematerialize: keeps only the inputs of the classifier's blocks for the backward pass, which computes the rest again; for classifiers
        of this project's builders.
      accumulation: parts into which each batch is cut; their gradients are added up before the one optimizer step. BatchNorm
        normalises each part by itself, and its moving statistics move with each.
      seed: of the model noise of `efficientnet`'s layers, which is a function of (seed, step, example).

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
        label_smoothing: float = 0.1,
        weight_decay: float = 1e-5,
        ema_decay: float = 0.9999,
        label_data_sample_prob: float = 1.0,
        confidence_weighted: bool = False,
        unlabeled_model_noise: bool = True,
        rematerialize: bool = False,
        accumulation: int = 1,
        seed: int = 0,
    ):
        if loss_normalization not in LOSS_NORMALIZATIONS:
            raise ValueError(f"loss_normalization must be one of {LOSS_NORMALIZATIONS}, got {loss_normalization!r}")
        if pseudo_labels not in PSEUDO_LABELS:
            raise ValueError(f"pseudo_labels must be one of {PSEUDO_LABELS}, got {pseudo_labels!r}")
        logged = ("loss", "labeled_loss", "unlabeled_loss", "l2", "top1", "confidence")
        super().__init__(model, ema_decay=ema_decay, rematerialize=rematerialize, logged=logged, name="noisy_student")
        object.__setattr__(self, "teacher", teacher)  # past Keras, which would put what never changes into every checkpoint
        self.loss_normalization = loss_normalization
        self.pseudo_labels = pseudo_labels
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self.label_data_sample_prob = label_data_sample_prob
        self.confidence_weighted = confidence_weighted
        self.unlabeled_model_noise = unlabeled_model_noise
        self.accumulation = accumulation
        self.seed = seed
        if teacher is not None:
            check_classifier(teacher, "teacher", trained=False)
            teacher.trainable = False

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1, step 3 (or of step 1 where there are no unlabelled images)."""
        gradients = accumulated(self._gradients, data, self.accumulation)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with self.measured_update(replicas * tf.linalg.global_norm(gradients)):  # of each replica's own mean gradient
            self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables))
        self.ema.update(self.optimizer.iterations)
        return {name: metric.result() for name, metric in self.logged.items()}

    def _gradients(self, data: Any, part: int) -> list[tf.Tensor | None]:
        """Of the loss on one part of the batch, B and μB its sizes, divided by parts and replicas: to be summed over both."""
        parts, replicas = self.accumulation, tf.distribute.get_strategy().num_replicas_in_sync
        (x, y), (x_u, q) = pairs(data, "((x, y), (x_u, q)), or (x, y)") if isinstance(data[0], tuple) else (data, (None, None))
        batch, ratio = tf.shape(x)[0], 0.0
        images, rows = x, global_rows(batch, 0, part, parts)  # (B, H, W, 3), (B,)
        if x_u is not None:
            if self.teacher is not None:  # step 2, within the step: the second of the pair is the clean image
                q = tf.nn.softmax(tf.cast(self.teacher(q, training=False), tf.float32))  # (μB, K)
            images = tf.concat(alike(x, x_u), axis=0)  # (B + μB, H, W, 3)
            rows = tf.concat([rows, global_rows(tf.shape(x_u)[0], batch * parts * replicas, part, parts)], axis=0)  # (B + μB,)
            ratio = tf.cast(tf.shape(x_u)[0] / batch, tf.float32)  # μ

        noised = None if self.unlabeled_model_noise else tf.range(tf.shape(images)[0]) < batch  # (B + μB,)
        with tf.GradientTape() as tape:
            # One forward pass over both batches: they share their BatchNorm statistics.
            num_rows = tf.shape(images)[0] * parts * replicas
            with model_noise(self.seed, self.optimizer.iterations, rows, num_rows, noised=noised):
                logits = tf.cast(self.forward(images), tf.float32)  # (B + μB, K)
            targets = one_hot(y, logits.shape[-1])  # (B, K)
            labeled_losses = cross_entropy(smooth(targets, self.label_smoothing), logits[:batch])  # (B,)
            if self.label_data_sample_prob < 1.0:
                uniform = tf.random.stateless_uniform([batch * parts * replicas], [self.seed, self.optimizer.iterations], alg="philox")
                labeled_losses *= tf.cast(tf.gather(uniform, rows[:batch]) < self.label_data_sample_prob, tf.float32)
            labeled_loss = tf.reduce_mean(labeled_losses)
            if x_u is not None:
                pseudo = pseudo_targets(q, self.pseudo_labels, self.temperature, self.label_smoothing)  # (μB, K)
                unlabeled_losses = cross_entropy(pseudo, logits[batch:])  # (μB,)
                if self.confidence_weighted:
                    unlabeled_losses *= tf.cast(tf.reduce_max(q, -1), tf.float32)
                unlabeled_loss = tf.reduce_mean(unlabeled_losses)
                loss = combine_losses(labeled_loss, unlabeled_loss, ratio, self.loss_normalization)
                self.logged["unlabeled_loss"].update_state(unlabeled_loss)
                self.logged["confidence"].update_state(tf.reduce_max(q, -1))
            else:
                loss = labeled_loss
            decay = self.weight_decay * l2(self.model.trainable_variables)
            # Every part on every replica has the same number of examples, and they are summed: this is sum / global batch.
            objective = (loss + decay) / (parts * replicas)
        gradients = gradient(tape, objective, self.model.trainable_variables, self.optimizer)

        self.logged["loss"].update_state(loss + decay)
        self.logged["labeled_loss"].update_state(labeled_loss)
        self.logged["l2"].update_state(decay)
        self.logged["top1"].update_state(hits(targets, logits[:batch]))
        return gradients
