"""Supervised learning: the training step on labeled images, and the method.

It trains the first teacher (Xie et al. 2020, Algorithm 1, step 1), fine-tunes, and is the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from nets.noise import model_noise
from training.losses import adjusted, cross_entropy, l2, one_hot, smooth
from training.method import NO_IMAGES, Method, Network, Parts
from training.optimizers import gradient
from training.parts import accumulated, global_rows
from training.trainer import Trainer, is_correct


class Supervised(Trainer):
    """Trains a classifier on labeled images. Elements of the data set given to `fit`: `(x, y)`.

    `x` are images (B, H, W, 3), `y` class ids (B,) or distributions (B, K).

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      label_smoothing: ε of labeled examples.
      adjustment: added to the logits in the loss of labeled examples, K numbers or None; see
        `losses.log_priors`.
      weight_decay: λ in λ·Σ½‖v‖², part of the loss.
      ema_decay: decay of the moving average; see `ExponentialMovingAverage`.
      label_data_sample_prob: probability that a labeled example contributes to the loss. Masked
        examples add 0 and still count in the mean, as in the Noisy Student release.
      rematerialize: keeps only the inputs of the classifier's blocks for the backward pass, which
        computes the rest again; for classifiers of this project's builders.
      accumulation: parts into which each batch is cut; their gradients are added up before the one
        optimizer step. BatchNorm normalizes each part by itself, and its moving statistics move
        with each.
      seed: seed of the model noise, which is a function of (seed, step, example).
      logged: names of further metrics of a training step.
      name: name of the Keras model.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        label_smoothing: float = 0.1,
        adjustment: Sequence[float] | None = None,
        weight_decay: float = 1e-5,
        ema_decay: float = 0.9999,
        label_data_sample_prob: float = 1.0,
        rematerialize: bool = False,
        accumulation: int = 1,
        seed: int = 0,
        logged: tuple[str, ...] = (),
        name: str = "supervised",
    ):
        logged = ("loss", "labeled_loss", *logged, "l2", "top1")
        super().__init__(
            model, ema_decay=ema_decay, rematerialize=rematerialize, logged=logged, name=name
        )
        self.label_smoothing = label_smoothing
        self.adjustment = adjustment
        self.weight_decay = weight_decay
        self.label_data_sample_prob = label_data_sample_prob
        self.accumulation = accumulation
        self.seed = seed

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one training step."""
        self.move(accumulated(self._gradients, data, self.accumulation))
        return {name: metric.result() for name, metric in self.logged.items()}

    def _gradients(self, data: Any, part: int) -> list[tf.Tensor | None]:
        """Returns the gradients of the loss on one part of the batch; B is the part's size.

        They are divided by parts and replicas, and are to be summed over both.
        """
        parts, replicas = self.accumulation, tf.distribute.get_strategy().num_replicas_in_sync
        x, y = data  # (B, H, W, 3), (B,) or (B, K)
        rows = global_rows(tf.shape(x)[0], 0, part, parts)  # (B,)
        num_rows = tf.shape(x)[0] * parts * replicas
        with tf.GradientTape() as tape:
            with model_noise(self.seed, self.optimizer.iterations, rows, num_rows):
                logits = tf.cast(self.forward(x), tf.float32)  # (B, K)
            targets = one_hot(y, logits.shape[-1])  # (B, K)
            labeled_loss = self.labeled_loss(targets, logits, rows, num_rows)
            decay = self.weight_decay * l2(self.model.trainable_variables)
            # Every part on every replica has the same number of examples, and the parts are summed.
            # So this is sum / global batch.
            objective = (labeled_loss + decay) / (parts * replicas)
        gradients = gradient(tape, objective, self.model.trainable_variables, self.optimizer)
        self.log(
            loss=labeled_loss + decay,
            labeled_loss=labeled_loss,
            l2=decay,
            top1=is_correct(targets, logits),
        )
        return gradients

    def labeled_loss(
        self, targets: tf.Tensor, logits: tf.Tensor, rows: tf.Tensor, num_rows: tf.Tensor
    ) -> tf.Tensor:
        """Computes 1/B Σ_b CE(y_b, z_b + τ log π), scalar.

        With `label_data_sample_prob` below 1, some of its terms are 0.

        Args:
          targets: y, float32 (B, K), before label smoothing.
          logits: z, float32 (B, K).
          rows: where the examples stand in the global labeled batch, int32 (B,).
          num_rows: size of the global labeled batch, scalar.
        """
        losses = cross_entropy(
            smooth(targets, self.label_smoothing), adjusted(logits, self.adjustment)
        )  # (B,)
        if self.label_data_sample_prob < 1.0:
            uniform = tf.random.stateless_uniform(
                [num_rows], [self.seed, self.optimizer.iterations], alg="philox"
            )
            losses *= tf.cast(tf.gather(uniform, rows) < self.label_data_sample_prob, tf.float32)
        return tf.reduce_mean(losses)


def options(section: ConfigDict, parts: Parts) -> dict[str, Any]:
    """Returns `Supervised`'s arguments, from a train section and the parts of its trainer."""
    names = (
        "label_smoothing",
        "weight_decay",
        "ema_decay",
        "label_data_sample_prob",
        "rematerialize",
        "accumulation",
    )
    return {
        **{name: section[name] for name in names},
        "adjustment": parts.adjustment,
        "seed": parts.seed,
    }


def _build(section: ConfigDict, parts: Parts) -> Supervised:
    trainer = Supervised(parts.model, **options(section, parts))
    trainer.compile(optimizer=parts.optimizers[""])
    return trainer


SUPERVISED = Method(
    unlabeled=lambda section: NO_IMAGES,
    networks=lambda section: [Network("", section["batch_size"], section["rematerialize"])],
    build=_build,
    batches=lambda section, streams: streams.labeled_batches(
        mixup=section.mixup, cutmix=section.cutmix, augment=section.labeled_augmentation
    ),
    samples=lambda section, noise: (
        {"labeled": ("labeled", noise)} if section.labeled_augmentation else {}
    ),
)
