"""Meta Pseudo Labels' training step (Pham et al. 2021, Appendix B, Algorithm 1) as a Keras model over any two Keras classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from efficientnet import model_noise
from meta_pseudo_labels import feedback as feedbacks
from training.losses import cross_entropy, decayed, l2, one_hot, smooth
from training.rematerialization import statistics_kept, training_pass
from training.trainer import Trainer, global_rows, hits


class _Step(NamedTuple):
    """Which step it is, and the sizes of its batches."""

    number: tf.Tensor
    labeled: tf.Tensor  # this replica's part of B
    unlabeled: tf.Tensor  # this replica's part of B_u
    replicas: int

    @property
    def rows(self) -> tf.Tensor:
        """Rows of the student's noise: unlabelled images first, then labelled ones."""
        return (self.labeled + self.unlabeled) * self.replicas


class _StudentGradient(NamedTuple):
    """∇L_u(θ_S): of the global batch, this replica's share of it, and the tape that knows how that depends on the labels."""

    gradients: list[tf.Tensor]
    own: list[tf.Tensor]
    label_tape: tf.GradientTape


class MetaPseudoLabels(Trainer):
    """Trains a student on a teacher's pseudo-labels, and the teacher on what they did to the student.

    Elements of the data set given to `fit`: `((x, y), (x_weak, x_strong))`: labelled images (B, H, W, 3) with class ids (B,) or
    distributions (B, K), and two views of the same unlabelled images (B_u, H, W, 3), weakly and strongly augmented.

    The student sees the strong view with the label that the teacher gives to the same pixels; `evaluate` and `ema` are the
    student's. BatchNorm's moving statistics are updated once a step in each network: in the teacher by its one pass over
    labelled, weak and strong images, in the student by its pass over the strong ones. Its passes over the labelled images, which measure
    the feedback, use the batch's statistics and leave the moving ones alone.

    Everything random is a function of (seed, step, example) if the networks' noise comes from `efficientnet`'s layers; Keras's own
    Dropout works too, but draws other masks before and after the student's step, which is noise in `finite_difference`.

    Args:
      teacher: a built Keras classifier, images -> logits (B, K).
      student: another one, with weights of its own.
      feedback: the estimator of h, a name of `feedback.ESTIMATORS`; the default has the least noise (`run_feedback_study.sh`). Under
        mixed_bfloat16 use one that takes gradients: the difference of two rounded losses is mostly rounding.
      pseudo_labels: "sampled" (the paper), "argmax" or "soft".
      feedback_weight: factor of the feedback's loss. The true gradient is of the order of the student's learning rate, hence small
        beside the teacher's other losses.
      batch_factor: factor of a scalar h: None is B_u, which makes `finite_difference` and `dot_product` the gradient of J, and 1
        for `cosine`, which is not; 1 is eq. 12 as written. Without meaning for `per_example` and `soft`.
      baseline_decay: of the moving average that is subtracted from h (Appendix C.3); 1 is no baseline. Without meaning for `soft`.
      supervised_weight: factor of the teacher's loss on labelled images.
      uda_weight: factor of the UDA loss at the end of its ramp; 0 is off.
      uda_temperature: τ that sharpens the weak view's distribution.
      uda_threshold: least confidence of the sharpened distribution that counts.
      uda_ramp_steps: steps over which the factor grows from 0.
      label_smoothing: of the teacher's labelled examples.
      weight_decay: λ in λ·Σ½‖v‖² of each network.
      ema_decay: of the student's moving average.
      rematerialize: keeps only the inputs of the networks' blocks for the backward passes, which compute the rest again; for classifiers
        of this project's builders. Not in the student's pass over unlabelled images where the feedback is `per_example` or `soft`: these
        take a gradient of its gradient.
      seed: of the draws of pseudo-labels and of the model noise.

    Raises:
      ValueError: unknown names, or a pair of feedback and pseudo-labels without a gradient.
    """

    def __init__(
        self,
        teacher: tf.keras.Model,
        student: tf.keras.Model,
        *,
        feedback: str = "soft",
        pseudo_labels: str = "sampled",
        feedback_weight: float = 1.0,
        batch_factor: float | None = None,
        baseline_decay: float = 0.99,
        supervised_weight: float = 1.0,
        uda_weight: float = 1.0,
        uda_temperature: float = 0.7,
        uda_threshold: float = 0.6,
        uda_ramp_steps: int = 5000,
        label_smoothing: float = 0.1,
        weight_decay: float = 5e-4,
        ema_decay: float = 0.995,
        rematerialize: bool = False,
        seed: int = 0,
    ):
        feedbacks.check(feedback, pseudo_labels)
        logged = ("loss", "teacher_loss", "labeled_loss", "uda_loss", "uda_confident", "feedback", "top1", "agreement")
        super().__init__(student, ema_decay=ema_decay, rematerialize=rematerialize, logged=logged, name="meta_pseudo_labels")
        if not teacher.built:
            raise ValueError("MetaPseudoLabels needs a built teacher: call it on one batch, or build it, first")
        if teacher is student:
            raise ValueError("MetaPseudoLabels needs two networks with weights of their own; teacher and student are the same object")
        self.teacher = teacher
        self.teacher_forward = training_pass(teacher, rematerialize)
        self.student_forward = training_pass(student, rematerialize and feedback not in feedbacks.SECOND_ORDER)  # on unlabelled images
        self.student = student
        self.feedback = feedback
        self.pseudo_labels = pseudo_labels
        self.feedback_weight = feedback_weight
        self.batch_factor = batch_factor
        self.baseline_decay = baseline_decay
        self.supervised_weight = supervised_weight
        self.uda_weight = uda_weight
        self.uda_temperature = uda_temperature
        self.uda_threshold = uda_threshold
        self.uda_ramp_steps = uda_ramp_steps
        self.label_smoothing = label_smoothing
        self.weight_decay = weight_decay
        self.seed = seed
        self.baseline = tf.Variable(0.0, trainable=False, name="baseline", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def compile(self, student_optimizer: Any, teacher_optimizer: Any, **kwargs: Any) -> None:
        """Takes an optimizer (or its Keras name) for each network. Raises ValueError under mixed_float16, which would need loss scaling."""
        super().compile(optimizer=student_optimizer, **kwargs)
        self.teacher_optimizer = tf.keras.optimizers.get(teacher_optimizer)
        if isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
            raise ValueError("MetaPseudoLabels does not scale losses; use mixed_bfloat16 in place of mixed_float16")

    def build_optimizers(self) -> None:
        """Makes both optimizers' slots."""
        super().build_optimizers()
        self.teacher_optimizer.build(self.teacher.trainable_variables)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1: student, feedback, teacher."""
        (x, y), (x_weak, x_strong) = data
        x_weak, x_strong = tf.cast(x_weak, x.dtype), tf.cast(x_strong, x.dtype)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        step = _Step(self.teacher_optimizer.iterations, tf.shape(x)[0], tf.shape(x_strong)[0], replicas)
        b, b_u = step.labeled, step.unlabeled  # this replica's parts of B and B_u

        with tf.GradientTape() as teacher_tape:
            # T(x_l), T(x_u): one pass over the three batches, which share their BatchNorm statistics.
            rows = [global_rows(b, 0), global_rows(b_u, b * replicas), global_rows(b_u, (b + b_u) * replicas)]
            with model_noise(2 * self.seed, step.number, tf.concat(rows, 0), (b + 2 * b_u) * replicas):
                logits = self.teacher_forward(tf.concat([x, x_weak, x_strong], 0))  # (B + 2 B_u, K)
            z_l, z_weak, z_strong = tf.split(tf.cast(logits, tf.float32), [b, b_u, b_u])
            targets = one_hot(y, z_l.shape[-1])  # (B, K)

            with teacher_tape.stop_recording():
                # ŷ_u ~ T(x_u; θ_T)
                pseudo = self._draw(z_strong, step)  # (B_u, K)
                old = self._labeled_loss(x, targets, step) if self.feedback in ("finite_difference", "release") else None
                # θ_S' = θ_S − η_S ∇ CE(ŷ_u, S(x_u; θ_S))
                gradients = self._step_student(x_strong, pseudo, step)
                # h = η_S ⟨∇ CE(y_l, S(x_l; θ_S')), ∇ CE(ŷ_u, S(x_u; θ_S))⟩ (eq. 12), or another estimate of it
                h = self._measure(x, targets, pseudo, old, gradients, step)

            # g_T = h ∇ CE(ŷ_u, T(x_u; θ_T))
            feedback_loss = self._feedback_loss(h, pseudo, z_strong, b_u * replicas)
            # g_T,supervised = ∇ CE(y_l, T(x_l; θ_T))
            labeled_loss = tf.reduce_mean(cross_entropy(smooth(targets, self.label_smoothing), z_l))
            # g_T,UDA = ∇ CE(T(x_weak), T(x_strong)), the target without gradient
            uda, confident = uda_loss(z_weak, z_strong, self.uda_temperature, self.uda_threshold)
            ramp = tf.minimum(1.0, tf.cast(step.number, tf.float32) / self.uda_ramp_steps) if self.uda_ramp_steps else 1.0
            loss = self.feedback_weight * feedback_loss + self.supervised_weight * labeled_loss + ramp * self.uda_weight * uda
            loss += self.weight_decay * l2(self.teacher.trainable_variables)
            objective = loss / replicas  # the optimizer sums over replicas, and each has the same number of examples
        # θ_T' = θ_T − η_T (g_T + g_T,supervised + g_T,UDA)
        self.teacher_optimizer.minimize(objective, self.teacher.trainable_variables, tape=teacher_tape)

        values = {
            "teacher_loss": loss,
            "labeled_loss": labeled_loss,
            "uda_loss": uda,
            "uda_confident": confident,
            "top1": hits(targets, z_l),
        }
        for name, value in values.items():
            self.logged[name].update_state(value)
        return {name: metric.result() for name, metric in self.logged.items()}

    def _draw(self, logits: tf.Tensor, step: _Step) -> tf.Tensor:
        """Pseudo-labels (B_u, K) of this replica's examples, whose draws belong to the example's row in the global batch."""
        key = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step.number, tf.int64)])
        uniform = tf.random.stateless_uniform([step.unlabeled * step.replicas, logits.shape[-1]], key, alg="philox")
        return feedbacks.draw_pseudo_labels(self.pseudo_labels, logits, tf.gather(uniform, global_rows(step.unlabeled, 0)))

    def _labeled_loss(self, x: tf.Tensor, targets: tf.Tensor, step: _Step) -> tf.Tensor:
        """The student's L_l, this replica's share; before and after its move with the same noise, and both without a trace."""
        rows = global_rows(step.labeled, step.unlabeled * step.replicas)
        with statistics_kept(self.student), model_noise(2 * self.seed + 1, step.number, rows, step.rows):
            logits = tf.cast(self.forward(x), tf.float32)  # (B, K)
        return tf.reduce_mean(cross_entropy(targets, logits)) / step.replicas

    def _step_student(self, x_u: tf.Tensor, pseudo: tf.Tensor, step: _Step) -> _StudentGradient:
        """Moves the student, and gives the gradient that it moved by."""
        variables = self.student.trainable_variables
        # Records how the gradient depends on the labels; where it watches nothing it costs nothing.
        with tf.GradientTape(watch_accessed_variables=False) as label_tape:
            if self.feedback in feedbacks.SECOND_ORDER:
                label_tape.watch(pseudo)
            with tf.GradientTape() as tape:
                with model_noise(2 * self.seed + 1, step.number, global_rows(step.unlabeled, 0), step.rows):
                    logits = tf.cast(self.student_forward(x_u), tf.float32)  # (B_u, K)
                loss = tf.reduce_mean(feedbacks.soft_cross_entropy(pseudo, logits))
                share = loss / step.replicas
            own = tape.gradient(share, variables)
        gradients = _all_reduce(own)
        # Weight decay is no part of ∇L_u, which the feedback is about.
        weights = {id(v) for v in decayed(variables)}
        moves = [(g + self.weight_decay * v if id(v) in weights else g, v) for g, v in zip(gradients, variables) if g is not None]
        with self.measured_update(tf.linalg.global_norm(gradients)):
            self.optimizer.apply_gradients(moves, skip_gradients_aggregation=True)
        self.ema.update(self.optimizer.iterations)
        self.logged["loss"].update_state(loss)
        self.logged["agreement"].update_state(hits(pseudo, logits))
        return _StudentGradient(gradients, own, label_tape)

    def _measure(
        self, x: tf.Tensor, targets: tf.Tensor, pseudo: tf.Tensor, old: tf.Tensor | None, student: _StudentGradient, step: _Step
    ) -> tf.Tensor:
        """The student's step in h, less the baseline: () for a scalar estimator, (B_u,) for `per_example`, (B_u, K) for `soft`.

        Losses and gradients are those of the global batch, so a scalar h is the same number on every replica.
        """
        if self.feedback == "none":
            return tf.zeros([])
        rate = self.optimizer.learning_rate  # of the step just made
        if old is not None:
            old, new = _all_reduce([old, self._labeled_loss(x, targets, step)])
            h = mean = feedbacks.finite_difference(old, new) if self.feedback == "finite_difference" else feedbacks.released(old, new)
        else:
            with tf.GradientTape() as tape:
                new = self._labeled_loss(x, targets, step)
            labeled = _all_reduce(tape.gradient(new, self.student.trainable_variables))
            if self.feedback == "dot_product":
                h = mean = feedbacks.dot_product(labeled, student.gradients, rate)
            elif self.feedback == "cosine":
                h = mean = feedbacks.cosine(labeled, student.gradients)
            else:
                batch_size = step.unlabeled * step.replicas
                h = feedbacks.label_feedback(student.label_tape, pseudo, student.own, labeled, rate, batch_size)  # (B_u, K)
                drawn = tf.reduce_sum(h * pseudo, -1)  # (B_u,)
                mean = _all_reduce([tf.reduce_mean(drawn) / step.replicas])[0]
                h = drawn if self.feedback == "per_example" else h
        self.logged["feedback"].update_state(mean)
        return h if self.feedback == "soft" else self._center(h, mean)

    def _center(self, h: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        """Subtracts the baseline and moves it on."""
        if self.baseline_decay == 1.0:
            return h
        centered, following = feedbacks.center(h, mean, tf.identity(self.baseline), self.baseline_decay)
        self.baseline.assign(following)
        return centered

    def _feedback_loss(self, h: tf.Tensor, pseudo: tf.Tensor, logits: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
        """The loss whose gradient is the feedback's; `total` is B_u over all replicas."""
        if self.feedback == "soft":
            return feedbacks.soft_loss(h, logits)
        if self.feedback == "release":
            return feedbacks.released_loss(h, logits)
        factor = 1.0 if self.feedback in ("per_example", "cosine") else tf.cast(total, tf.float32)
        if self.batch_factor is not None and self.feedback != "per_example":
            factor = self.batch_factor
        return feedbacks.hard_loss(h, pseudo, logits, factor)


def uda_loss(weak: tf.Tensor, strong: tf.Tensor, temperature: float, threshold: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Unsupervised Data Augmentation (Xie et al. 2020), the teacher's auxiliary loss.

        q_i = softmax(z_weak,i / τ), without gradient;   1/B_u Σ_i [max_k q_ik ≥ threshold] CE(q_i, softmax z_strong,i)

    Divided by all examples, not by the confident ones, as in both releases; that the *sharpened* distribution is compared is the
    Meta Pseudo Labels release's way.

    Args:
      weak: logits (B_u, K).
      strong: logits (B_u, K).
      temperature: τ > 0; below 1 sharpens.
      threshold: in [0, 1]; 0 takes every example.

    Returns:
      (loss, part of the examples that count), scalars.
    """
    target = tf.stop_gradient(tf.nn.softmax(weak / temperature))  # (B_u, K)
    mask = tf.cast(tf.reduce_max(target, -1) >= threshold, tf.float32)  # (B_u,)
    return tf.reduce_mean(mask * cross_entropy(target, strong)), tf.reduce_mean(mask)


def _all_reduce(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums each over the replicas; None stays None."""
    present = [v for v in values if v is not None]
    reduced = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if v is None else next(reduced) for v in values]
