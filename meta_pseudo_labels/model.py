"""Meta Pseudo Labels' training step (Pham et al. 2021, Appendix B, Algorithm 1) as a Keras model over any two Keras classifiers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from meta_pseudo_labels.student import FeedbackTrainer
from training import uda
from training.losses import one_hot
from training.rematerialization import training_pass
from training.trainer import alike, pairs


class MetaPseudoLabels(FeedbackTrainer):
    """Trains a student on a teacher's pseudo-labels, and the teacher on what they did to the student.

    Elements of the data set given to `fit`: `((x, y), (x_weak, x_strong))`: labelled images (B, H, W, 3) with class ids (B,) or
    distributions (B, K), and two views of the same unlabelled images (B_u, H, W, 3), weakly and strongly augmented.

    The student sees the strong view with the label that the teacher gives to the same pixels; `evaluate` and `ema` are the
    student's. BatchNorm's moving statistics are updated once a step in each network: in the teacher by its one pass over
    labelled, weak and strong images, in the student by its pass over the strong ones.

    Args:
      teacher: a built Keras classifier, images -> logits (B, K).
      student: another one, with weights of its own.
      supervised_weight: factor of the teacher's loss on labelled images; this and the next ones: see `uda.Objective`.
      uda_weight: factor of the UDA loss at the end of its ramp; 0 is off.
      uda_temperature: τ that sharpens the weak view's distribution.
      uda_threshold: least confidence of the sharpened distribution that counts.
      uda_ramp_steps: steps over which the factor grows from 0.
      label_smoothing: of the teacher's labelled examples.
      weight_decay: λ in λ·Σ½‖v‖² of each network.
      rematerialize: keeps only the inputs of the networks' blocks for the backward passes: in the teacher, and see `FeedbackTrainer`.
      options: feedback, pseudo_labels, feedback_weight, batch_factor, baseline_decay, ema_decay, seed: see `FeedbackTrainer`.

    Raises:
      ValueError: see `FeedbackTrainer`.
    """

    def __init__(
        self,
        teacher: tf.keras.Model,
        student: tf.keras.Model,
        *,
        supervised_weight: float = 1.0,
        uda_weight: float = 1.0,
        uda_temperature: float = 0.7,
        uda_threshold: float = 0.6,
        uda_ramp_steps: int = 5000,
        label_smoothing: float = 0.1,
        weight_decay: float = 5e-4,
        rematerialize: bool = False,
        **options: Any,
    ):
        logged = ("teacher_loss", "teacher_top1", *(name for name in uda.LOGGED if name != "top1"))
        common = {"weight_decay": weight_decay, "rematerialize": rematerialize, **options}
        super().__init__(teacher, student, logged=logged, name="meta_pseudo_labels", **common)
        self.teacher_forward = training_pass(teacher, rematerialize)
        self.objective = uda.Objective(
            supervised_weight, uda_weight, uda_temperature, uda_threshold, uda_ramp_steps, label_smoothing, weight_decay
        )

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1: student, feedback, teacher."""
        (x, y), (x_weak, x_strong) = pairs(data, "((x, y), (x_weak, x_strong))")
        x, x_weak, x_strong = alike(x, x_weak, x_strong)
        step = self.step_sizes(x, x_strong)
        with tf.GradientTape() as tape:
            # T(x_l), T(x_u)
            z = uda.forward(self.teacher_forward, x, x_weak, x_strong, 2 * self.seed, step.number)
            targets = one_hot(y, z.labeled.shape[-1])  # (B, K)
            # ŷ_u ~ T(x_u; θ_T); θ_S' = θ_S − η_S ∇ CE(ŷ_u, S(x_u; θ_S)); h (eq. 12)
            with tape.stop_recording():
                pseudo, h = self.teach(z.strong, x_strong, x, targets, step)
            # g_T,supervised + g_T,UDA
            loss, values = self.objective(self.teacher, z, targets, step.number)
            values["teacher_top1"] = values.pop("top1")
            # g_T = h ∇ CE(ŷ_u, T(x_u; θ_T))
            loss += self.feedback_loss(h, pseudo, z.strong, step)
            share = loss / step.replicas  # each replica has the same number of examples
        # θ_T' = θ_T − η_T (g_T + g_T,supervised + g_T,UDA)
        self.step_teacher(tape, share, step)
        for name, value in {"teacher_loss": loss, **values}.items():
            self.logged[name].update_state(value)
        return self.results()
