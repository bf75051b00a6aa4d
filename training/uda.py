"""Unsupervised Data Augmentation (Xie et al. 2020): the step and the method.

Meta Pseudo Labels' teacher has the same losses besides the feedback. With `uda_weight=0` only the
labeled loss is left, but BatchNorm still sees the unlabeled images. `training/supervised.py` is
supervised learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from nets.noise import model_noise
from training.losses import adjusted, cross_entropy, l2, one_hot, smooth
from training.method import IMAGES, Method, Parts, network_of_three_views, weak_and_strong_samples
from training.optimizers import gradient
from training.parts import accumulated, global_rows, in_one_dtype, two_pairs
from training.rematerialization import Pass
from training.trainer import Trainer, is_correct

LOGGED = ("labeled_loss", "uda_loss", "uda_confident", "top1")


class Objective(NamedTuple):
    """The loss that a teacher minimizes on labeled images and on two views of unlabeled ones.

    Attributes:
      supervised_weight: factor of the loss on labeled images.
      uda_weight: factor of the UDA loss at the end of its ramp; 0 is off.
      uda_temperature: τ that sharpens the weak view's distribution.
      uda_threshold: least confidence of the sharpened distribution that counts.
      uda_ramp_steps: steps over which the factor grows from 0.
      label_smoothing: label smoothing of the labeled examples.
      weight_decay: λ in λ·Σ½‖v‖².
      adjustment: added to the logits in the loss of labeled examples, K numbers or None; see
        `losses.log_priors`.
    """

    supervised_weight: float = 1.0
    uda_weight: float = 1.0
    uda_temperature: float = 0.7
    uda_threshold: float = 0.6
    uda_ramp_steps: int = 5000
    label_smoothing: float = 0.1
    weight_decay: float = 5e-4
    adjustment: Sequence[float] | None = None

    def __call__(
        self, model: tf.keras.Model, logits: Logits, targets: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns (loss, metrics of `LOGGED`) of step number `step`, counted from 0."""
        # g_T,supervised = ∇ CE(y_l, T(x_l; θ_T))
        labeled = adjusted(logits.labeled, self.adjustment)  # (B, K)
        labeled_loss = tf.reduce_mean(cross_entropy(smooth(targets, self.label_smoothing), labeled))
        # g_T,UDA = ∇ CE(T(x_weak), T(x_strong)), the target without gradient
        uda, confident = uda_loss(
            logits.weak, logits.strong, self.uda_temperature, self.uda_threshold
        )
        ramp = (
            tf.minimum(1.0, tf.cast(step, tf.float32) / self.uda_ramp_steps)
            if self.uda_ramp_steps
            else 1.0
        )
        loss = (
            self.supervised_weight * labeled_loss
            + ramp * self.uda_weight * uda
            + self.weight_decay * l2(model.trainable_variables)
        )
        values = {
            "labeled_loss": labeled_loss,
            "uda_loss": uda,
            "uda_confident": confident,
            "top1": is_correct(targets, logits.labeled),
        }
        return loss, values


class Logits(NamedTuple):
    """Logits of a network for the three batches of a step, float32."""

    labeled: tf.Tensor  # (B, K)
    weak: tf.Tensor  # (B_u, K)
    strong: tf.Tensor  # (B_u, K)


def forward(
    network: Pass,
    x: tf.Tensor,
    x_weak: tf.Tensor,
    x_strong: tf.Tensor,
    seed: int,
    step: tf.Tensor,
    part: int = 0,
    parts: int = 1,
) -> Logits:
    """Passes over the three batches at once, so that they share their BatchNorm statistics.

    The noise depends on (seed, step, row in the global batch).

    Args:
      network: the network in training mode.
      x: labeled images of this part of the batch, (B, H, W, 3).
      x_weak: unlabeled images of this part, (B_u, H, W, 3).
      x_strong: the same unlabeled images in another view.
      seed: seed of the noise.
      step: number of the step.
      part: which part of the replica's batch it is.
      parts: parts of a replica's batch.
    """
    b, b_u = tf.shape(x)[0], tf.shape(x_strong)[0]  # this replica's parts of B and B_u
    # Images of the global batch for each image here.
    images = tf.distribute.get_strategy().num_replicas_in_sync * parts
    starts = ((b, 0), (b_u, b * images), (b_u, (b + b_u) * images))
    rows = [global_rows(size, first, part, parts) for size, first in starts]
    with model_noise(seed, step, tf.concat(rows, 0), (b + 2 * b_u) * images):
        logits = network(tf.concat([x, x_weak, x_strong], 0))  # (B + 2 B_u, K)
    return Logits(*tf.split(tf.cast(logits, tf.float32), [b, b_u, b_u]))


def uda_loss(
    weak: tf.Tensor, strong: tf.Tensor, temperature: float, threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes Unsupervised Data Augmentation (Xie et al. 2020), the teacher's auxiliary loss.

        q_i = softmax(z_weak,i / τ), without gradient
        loss = 1/B_u Σ_i [max_k q_ik ≥ threshold] CE(q_i, softmax z_strong,i)

    The sum is divided by all examples, not by the confident ones, as in both releases. The
    *sharpened* distribution is compared with the threshold, as in the Meta Pseudo Labels release.

    Args:
      weak: logits (B_u, K).
      strong: logits (B_u, K).
      temperature: τ > 0; below 1 sharpens.
      threshold: in [0, 1]; 0 takes every example.

    Returns:
      (loss, share of the examples that count), scalars.
    """
    target = tf.stop_gradient(tf.nn.softmax(weak / temperature))  # (B_u, K)
    mask = tf.cast(tf.reduce_max(target, -1) >= threshold, tf.float32)  # (B_u,)
    return tf.reduce_mean(mask * cross_entropy(target, strong)), tf.reduce_mean(mask)


class ThreeViewsTrainer(Trainer):
    """Trains one network on labeled images and on two views of unlabeled ones, in one pass.

    Elements of the data set given to `fit`: `((x, y), (x_weak, x_strong))`. The subclass has the
    objective.

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      accumulation: parts into which each batch is cut; see `training.supervised.Supervised`.
      noise_seed: seed of the model noise.
      options: see `Trainer`.
    """

    def __init__(
        self, model: tf.keras.Model, *, accumulation: int, noise_seed: int, **options: Any
    ):
        super().__init__(model, **options)
        self.accumulation = accumulation
        self.noise_seed = noise_seed

    def objective_of(
        self, logits: Logits, targets: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Computes the objective of a part of the batch.

        Args:
          logits: the network's answers.
          targets: labels of the labeled images, float32 (B, K).
          step: number of the step, counted from 0.

        Returns:
          (the objective, values of the metrics by name), scalars.
        """
        raise NotImplementedError

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one training step.

        Raises:
          ValueError: an element of another form, or one that does not divide into the parts.
        """
        (x, y), (x_weak, x_strong) = two_pairs(data, "((x, y), (x_weak, x_strong))")
        x, x_weak, x_strong = in_one_dtype(x, x_weak, x_strong)
        self.move(accumulated(self._gradients, (x, y, x_weak, x_strong), self.accumulation))
        return {name: metric.result() for name, metric in self.logged.items()}

    def _gradients(self, data: Any, part: int) -> list[tf.Tensor | None]:
        """Returns the gradients of the loss on one part of the batch.

        They are divided by parts and replicas, and are to be summed over both.
        """
        parts, replicas = self.accumulation, tf.distribute.get_strategy().num_replicas_in_sync
        x, y, x_weak, x_strong = data
        step = self.optimizer.iterations
        with tf.GradientTape() as tape:
            logits = forward(self.forward, x, x_weak, x_strong, self.noise_seed, step, part, parts)
            targets = one_hot(y, logits.labeled.shape[-1])  # (B, K)
            loss, values = self.objective_of(logits, targets, step)
            share = loss / (parts * replicas)
        gradients = gradient(tape, share, self.model.trainable_variables, self.optimizer)
        self.log(loss=loss, **values)
        return gradients


class UDA(ThreeViewsTrainer):
    """Trains one network by supervised learning and UDA.

    It is the teacher of Meta Pseudo Labels without a student.

    Elements of the data set: `((x, y), (x_weak, x_strong))`, as for `MetaPseudoLabels`.

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      ema_decay: decay of the moving average, which is what `evaluate` should see.
      rematerialize: see `Trainer`.
      accumulation: parts into which each batch is cut; see `Supervised`.
      seed: seed of the model noise.
      objective: the fields of `Objective`.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        ema_decay: float = 0.995,
        rematerialize: bool = False,
        accumulation: int = 1,
        seed: int = 0,
        **objective: Any,
    ):
        super().__init__(
            model,
            ema_decay=ema_decay,
            rematerialize=rematerialize,
            accumulation=accumulation,
            noise_seed=2 * seed,
            logged=("loss", *LOGGED),
            name="uda",
        )
        self.objective = Objective(**objective)

    def objective_of(
        self, logits: Logits, targets: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Computes `Objective`; see `ThreeViewsTrainer`."""
        return self.objective(self.model, logits, targets, step)


def objective(section: ConfigDict, parts: Parts) -> dict[str, Any]:
    """Returns the fields of `Objective`, from a train section and the parts of its trainer."""
    return {
        "supervised_weight": section.supervised_weight,
        "uda_weight": section.uda.weight,
        "uda_temperature": section.uda.temperature,
        "uda_threshold": section.uda.threshold,
        "uda_ramp_steps": section.uda.ramp_steps,
        "label_smoothing": section.label_smoothing,
        "weight_decay": section.weight_decay,
        "adjustment": parts.adjustment,
    }


def _build(section: ConfigDict, parts: Parts) -> UDA:
    options = {name: section[name] for name in ("ema_decay", "rematerialize", "accumulation")}
    trainer = UDA(parts.model, **options, **objective(section, parts), seed=parts.seed)
    trainer.compile(optimizer=parts.optimizers[""])
    return trainer


UNSUPERVISED_DATA_AUGMENTATION = Method(
    unlabeled=lambda section: IMAGES,
    networks=network_of_three_views,
    build=_build,
    batches=lambda section, streams: streams.weak_and_strong(),
    samples=weak_and_strong_samples,
)
