"""FixMatch (Sohn et al. 2020, Section 2.2 and Algorithm 1): the training step and the method."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from ml_collections import ConfigDict

from training.losses import adjusted, cross_entropy, l2, smooth
from training.method import IMAGES, Method, Parts, network_of_three_views, weak_and_strong_samples
from training.trainer import is_correct
from training.uda import Logits, ThreeViewsTrainer


def fixmatch_loss(
    weak: tf.Tensor, strong: tf.Tensor, threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the unlabeled loss (Sohn et al. 2020, eq. 4).

        q_b = softmax(z_weak,b), without gradient
        loss = 1/μB Σ_b [max q_b ≥ τ] CE(argmax q_b, softmax z_strong,b)

    The sum is divided by all examples, and not by the confident ones.

    Args:
      weak: logits of the weakly augmented images, float32 (μB, K).
      strong: logits of the same images, strongly augmented, float32 (μB, K).
      threshold: τ in [0, 1]; 0 takes every example.

    Returns:
      (loss, share of the examples that count), scalars.
    """
    q = tf.stop_gradient(tf.nn.softmax(weak))  # (μB, K)
    pseudo = tf.one_hot(tf.argmax(q, -1), q.shape[-1])  # (μB, K)
    confident = tf.cast(tf.reduce_max(q, -1) >= threshold, tf.float32)  # (μB,)
    return tf.reduce_mean(confident * cross_entropy(pseudo, strong)), tf.reduce_mean(confident)


class FixMatch(ThreeViewsTrainer):
    """Trains a classifier by FixMatch.

    Elements of the data set given to `fit`: `((x, y), (x_weak, x_strong))`. `x` are weakly
    augmented labeled images (B, H, W, 3), `y` class ids (B,) or distributions (B, K). `x_weak` and
    `x_strong` are two views of the same unlabeled images (μB, H, W, 3).

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      threshold: τ, the least confidence of a pseudo-label that counts.
      unlabeled_weight: λ_u, the factor of the unlabeled loss.
      label_smoothing: label smoothing of labeled examples; 0 in the paper.
      adjustment: added to the logits in the loss of labeled examples, K numbers or None; see
        `losses.log_priors`.
      weight_decay: λ in λ·Σ½‖v‖², part of the loss.
      ema_decay: decay of the moving average, which is what `evaluate` should see.
      rematerialize: see `Trainer`.
      accumulation: parts into which each batch is cut; see `training.supervised.Supervised`.
      seed: seed of the model noise.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        threshold: float = 0.95,
        unlabeled_weight: float = 1.0,
        label_smoothing: float = 0.0,
        adjustment: Sequence[float] | None = None,
        weight_decay: float = 5e-4,
        ema_decay: float = 0.999,
        rematerialize: bool = False,
        accumulation: int = 1,
        seed: int = 0,
    ):
        super().__init__(
            model,
            ema_decay=ema_decay,
            rematerialize=rematerialize,
            accumulation=accumulation,
            noise_seed=seed,
            logged=("loss", "labeled_loss", "unlabeled_loss", "confident", "top1"),
            name="fixmatch",
        )
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.label_smoothing = label_smoothing
        self.adjustment = adjustment
        self.weight_decay = weight_decay

    def objective_of(
        self, logits: Logits, targets: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Computes the objective of Algorithm 1; see `ThreeViewsTrainer`."""
        # ℓ_s = 1/B Σ_b H(p_b, p_m(y | α(x_b)))  (eq. 3)
        labeled = adjusted(logits.labeled, self.adjustment)
        labeled_loss = tf.reduce_mean(cross_entropy(smooth(targets, self.label_smoothing), labeled))
        # ℓ_u = 1/μB Σ_b 1(max(q_b) ≥ τ) H(q̂_b, p_m(y | A(u_b)))  (eq. 4)
        unlabeled_loss, confident = fixmatch_loss(logits.weak, logits.strong, self.threshold)
        # ℓ_s + λ_u ℓ_u, and weight decay
        loss = labeled_loss + self.unlabeled_weight * unlabeled_loss
        loss += self.weight_decay * l2(self.model.trainable_variables)
        values = {
            "labeled_loss": labeled_loss,
            "unlabeled_loss": unlabeled_loss,
            "confident": confident,
            "top1": is_correct(targets, logits.labeled),
        }
        return loss, values


def _build(section: ConfigDict, parts: Parts) -> FixMatch:
    names = (
        "threshold",
        "unlabeled_weight",
        "label_smoothing",
        "weight_decay",
        "ema_decay",
        "rematerialize",
        "accumulation",
    )
    options = {name: section[name] for name in names}
    trainer = FixMatch(parts.model, **options, adjustment=parts.adjustment, seed=parts.seed)
    trainer.compile(optimizer=parts.optimizers[""])
    return trainer


FIXMATCH = Method(
    unlabeled=lambda section: IMAGES,
    networks=network_of_three_views,
    build=_build,
    batches=lambda section, streams: streams.weak_and_strong(),
    samples=weak_and_strong_samples,
)
