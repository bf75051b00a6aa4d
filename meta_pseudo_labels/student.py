"""The student's side of Meta Pseudo Labels: it moves on labels that a teacher drew, and what that did to it is measured.

The same whether the teacher is a network that sees the image (`model.py`) or one that corrects stored predictions (`reduced.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from meta_pseudo_labels import feedback as feedbacks
from nets.noise import model_noise
from training.losses import cross_entropy, decayed
from training.optimizers import gradient, kept_by_clipping, linear_factor, loss_scale
from training.rematerialization import statistics_kept, training_pass
from training.trainer import Trainer, check_classifier, global_rows, hits

LABELED_SCALE = 2.0**12
"""Of the labelled loss under mixed_float16, at most; it is halved where the feedback overflows, and doubles in 2,000 steps where not."""


class Step(NamedTuple):
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
    factor: tf.Tensor | None  # `linear_factor` of the step, times what clipping left of the gradient


class FeedbackTrainer(Trainer):
    """A student that learns from a teacher's labels alone: `teach`. The subclass's `train_step` has the teacher learn from `feedback_loss`.

    `evaluate` and `ema` are the student's. Its BatchNorm's moving statistics are updated once a step, by its pass over the unlabelled
    images. Its passes over the labelled ones, which measure the feedback, use the batch's statistics and leave the moving ones alone.

    Everything random is a function of (seed, step, example) if the student's noise comes from `efficientnet`'s layers; Keras's own
    Dropout works too, but draws other masks before and after the student's step, which is noise in `finite_difference`.

    Args:
      teacher: a built Keras model that ends in logits (B, K).
      student: a built Keras classifier, images -> logits (B, K), with weights of its own.
      feedback: the estimator of h, a name of `feedback.ESTIMATORS`; the default has the least noise (`run_experiment.sh
        feedback_study`). Under mixed precision use one that takes gradients: the difference of two rounded losses is mostly rounding.
      pseudo_labels: "sampled" (the paper), "argmax" or "soft".
      feedback_weight: factor of the feedback's loss. The true gradient is of the order of the student's learning rate, hence small
        beside the teacher's other losses. Below 0 it turns the sign, for an ablation.
      batch_factor: factor of a scalar h: None is B_u, which makes `finite_difference` and `dot_product` the gradient of J, and 1
        for `cosine`, which is not; 1 is eq. 12 as written. Without meaning for `per_example` and `soft`.
      baseline_decay: of the moving average that is subtracted from h (Appendix C.3); 1 is no baseline. Without meaning for `soft`.
      weight_decay: λ in λ·Σ½‖v‖² of each network.
      ema_decay: of the student's moving average.
      approximate_feedback: takes `soft`, `per_example` and `dot_product` also under a student's
        optimizer that has no `linear_factor`, such as Adam, with a warning: the learning rate then
        stands in for the factor. The default refuses them.
      rematerialize: keeps only the inputs of the student's blocks for the backward passes, which compute the rest again; for classifiers
        of this project's builders. Not in its pass over unlabelled images where the feedback is `per_example` or `soft`: these take a
        gradient of its gradient.
      seed: of the draws of pseudo-labels and of the model noise.
      logged: names of the subclass's metrics.
      name: of the Keras model.

    Raises:
      ValueError: unknown names, a pair of feedback and pseudo-labels without a gradient, or networks that cannot be trained as a pair.
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
        approximate_feedback: bool = False,
        weight_decay: float = 5e-4,
        ema_decay: float = 0.995,
        rematerialize: bool = False,
        seed: int = 0,
        logged: tuple[str, ...],
        name: str,
    ):
        feedbacks.check(feedback, pseudo_labels)
        logged = ("loss", "top1", "feedback", "agreement", "confidence", "feedback_loss", "teacher_gradient_norm", *logged)
        super().__init__(student, ema_decay=ema_decay, rematerialize=rematerialize, logged=logged, name=name)
        theirs, own = check_classifier(teacher, "teacher"), check_classifier(student, "student")
        if theirs and own and theirs != own:
            raise ValueError(f"teacher and student have {theirs} and {own} classes; they must have the same")
        if {id(v) for v in teacher.variables} & {id(v) for v in student.variables}:
            raise ValueError("teacher and student share weights; each needs its own")
        for network, named in ((teacher, "teacher"), (student, "student")):
            if not network.trainable_variables:
                raise ValueError(f"the {named} has nothing to train (a teacher that stays is ReducedMetaPseudoLabels with feedback='none')")
        self.teacher = teacher
        self.student = student
        self.student_forward = training_pass(student, rematerialize and feedback not in feedbacks.SECOND_ORDER)  # on unlabelled images
        self.feedback = feedback
        self.pseudo_labels = pseudo_labels
        self.feedback_weight = feedback_weight
        self.batch_factor = batch_factor
        self.baseline_decay = baseline_decay
        self.approximate_feedback = approximate_feedback
        self.weight_decay = weight_decay
        self.seed = seed
        self.baseline = tf.Variable(0.0, trainable=False, name="baseline", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def compile(self, student_optimizer: Any, teacher_optimizer: Any, **kwargs: Any) -> None:
        """Takes an optimizer (or its Keras name) for each network.

        Raises:
          ValueError: a legacy optimizer for the student, whose gradients are summed over the replicas before; or one for both; or
            feedback that needs a `linear_factor` which the student's optimizer lacks.
        """
        if student_optimizer is teacher_optimizer and not isinstance(student_optimizer, str):
            raise ValueError("student and teacher have the same optimizer object; each needs its own")
        super().compile(optimizer=student_optimizer, **kwargs)
        if isinstance(self.optimizer, tf.keras.optimizers.legacy.Optimizer):
            raise ValueError("the student's optimizer is one of tf.keras.optimizers.legacy; take the one of tf.keras.optimizers")
        name = type(getattr(self.optimizer, "inner_optimizer", self.optimizer)).__name__
        # Keras projects a constrained weight after the step, which is then no multiple of the gradient.
        constrained = any(getattr(v, "constraint", None) is not None for v in self.student.trainable_variables)
        known = linear_factor(self.optimizer) is not None and not constrained
        warning = feedbacks.check_factor(self.feedback, name, known, self.approximate_feedback)
        if warning:
            logging.warning(warning)
        self.teacher_optimizer = tf.keras.optimizers.get(teacher_optimizer)
        self.labeled_scale: tf.Variable | None = None
        if loss_scale(self.optimizer) is not None and loss_scale(self.teacher_optimizer) is None:  # Keras wraps the one that it knows
            self.teacher_optimizer = tf.keras.mixed_precision.LossScaleOptimizer(self.teacher_optimizer)
        if loss_scale(self.optimizer) is not None and self.feedback in feedbacks.OF_GRADIENTS:
            with self.distribute_strategy.scope():
                first = tf.VariableAggregation.ONLY_FIRST_REPLICA
                self.labeled_scale = tf.Variable(LABELED_SCALE, trainable=False, name="labeled_scale", aggregation=first)

    @property
    def _others(self) -> tuple[tf.keras.Model, ...]:
        return (self.teacher,)

    @property
    def optimizers(self) -> dict[str, tf.keras.optimizers.Optimizer]:
        """The student's, and the teacher's."""
        return {**super().optimizers, "teacher_": self.teacher_optimizer}

    @property
    def optimizer_settings(self) -> dict[str, float]:
        """Those of both, and the scale of the labelled loss."""
        more = {} if self.labeled_scale is None else {"labeled_loss_scale": float(self.labeled_scale.numpy())}
        return {**super().optimizer_settings, **more}

    def build_optimizers(self) -> None:
        """Makes both optimizers' slots."""
        super().build_optimizers()
        self.teacher_optimizer.build(self.teacher.trainable_variables)

    def results(self) -> dict[str, tf.Tensor]:
        """The metrics of a step; `top1` is of evaluations only."""
        return {name: metric.result() for name, metric in self.logged.items() if name != "top1"}

    def step_sizes(self, x: tf.Tensor, x_u: tf.Tensor) -> Step:
        """The step's number, and the sizes of this replica's batches (B, H, W, 3) and (B_u, H, W, 3)."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return Step(self.teacher_optimizer.iterations, tf.shape(x)[0], tf.shape(x_u)[0], replicas)

    def teach(self, z_u: tf.Tensor, x_u: tf.Tensor, x: tf.Tensor, targets: tf.Tensor, step: Step) -> tuple[tf.Tensor, tf.Tensor]:
        """The student's part of Algorithm 1: (ŷ_u (B_u, K), h). Call where no tape records, or the teacher's tape would.

        Args:
          z_u: the teacher's logits (B_u, K).
          x_u: the images that the student is to learn from (B_u, H, W, 3).
          x: labelled images (B, H, W, 3).
          targets: their labels (B, K).
          step: see `step_sizes`.
        """
        # ŷ_u ~ T(x_u; θ_T)
        pseudo = self._draw(z_u, step)  # (B_u, K)
        old = self._labeled_loss(x, targets, step) if self.feedback in ("finite_difference", "release") else None
        # θ_S' = θ_S − η_S ∇ CE(ŷ_u, S(x_u; θ_S))
        gradients = self._step_student(x_u, pseudo, step)
        # h = η_S ⟨∇ CE(y_l, S(x_l; θ_S')), ∇ CE(ŷ_u, S(x_u; θ_S))⟩ (eq. 12), or another estimate of it
        return pseudo, self._measure(x, targets, pseudo, old, gradients, step)

    def _draw(self, logits: tf.Tensor, step: Step) -> tf.Tensor:
        """Pseudo-labels (B_u, K) of this replica's examples, whose draws belong to the example's row in the global batch."""
        self.logged["confidence"].update_state(tf.reduce_max(tf.nn.softmax(logits), -1))
        key = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step.number, tf.int64)])
        uniform = tf.random.stateless_uniform([step.unlabeled * step.replicas, logits.shape[-1]], key, alg="philox")
        return feedbacks.draw_pseudo_labels(self.pseudo_labels, logits, tf.gather(uniform, global_rows(step.unlabeled, 0)))

    def _labeled_loss(self, x: tf.Tensor, targets: tf.Tensor, step: Step) -> tf.Tensor:
        """The student's L_l, this replica's share; before and after its move with the same noise, and both without a trace."""
        rows = global_rows(step.labeled, step.unlabeled * step.replicas)
        with statistics_kept(self.student), model_noise(2 * self.seed + 1, step.number, rows, step.rows):
            logits = tf.cast(self.forward(x), tf.float32)  # (B, K)
        return tf.reduce_mean(cross_entropy(targets, logits)) / step.replicas

    def _step_student(self, x_u: tf.Tensor, pseudo: tf.Tensor, step: Step) -> _StudentGradient:
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
            own = gradient(tape, share, variables, self.optimizer)
        gradients = _all_reduce(own)
        # Weight decay is no part of ∇L_u, which the feedback is about.
        weights = {id(v) for v in decayed(variables)}
        moves = [(g + self.weight_decay * v if id(v) in weights else g, v) for g, v in zip(gradients, variables) if g is not None]
        with self.measured_update(tf.linalg.global_norm(gradients)):
            self.optimizer.apply_gradients(moves, skip_gradients_aggregation=True)
        factor = self._factor([g for g, _ in moves])
        self.ema.update(self.optimizer.iterations)
        self.logged["loss"].update_state(loss)
        self.logged["agreement"].update_state(hits(pseudo, logits))
        return _StudentGradient(gradients, own, label_tape, factor)

    def _factor(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor | None:
        """Returns how far the step just made went along these gradients: η_S of eq. 12; None where no h needs it."""
        if self.feedback not in feedbacks.FIRST_ORDER:
            return None
        factor = linear_factor(self.optimizer)
        if factor is None:  # `compile` has warned that the learning rate stands in for it
            factor = self.optimizer.learning_rate
        return factor * kept_by_clipping(gradients, self.optimizer)

    def _measure(
        self, x: tf.Tensor, targets: tf.Tensor, pseudo: tf.Tensor, old: tf.Tensor | None, student: _StudentGradient, step: Step
    ) -> tf.Tensor:
        """The student's step in h, less the baseline: () for a scalar estimator, (B_u,) for `per_example`, (B_u, K) for `soft`.

        Losses and gradients are those of the global batch, so a scalar h is the same number on every replica.
        """
        if self.feedback == "none":
            return tf.zeros([])
        if old is not None:
            old, new = _all_reduce([old, self._labeled_loss(x, targets, step)])
            h = mean = feedbacks.finite_difference(old, new) if self.feedback == "finite_difference" else feedbacks.released(old, new)
        else:
            labeled = self._labeled_gradient(x, targets, step)
            if self.feedback == "dot_product":
                h = mean = feedbacks.dot_product(labeled, student.gradients, student.factor)
            elif self.feedback == "cosine":
                h = mean = feedbacks.cosine(labeled, student.gradients)
            else:
                h = self._label_feedback(pseudo, student, labeled, step)  # (B_u, K)
                drawn = tf.reduce_sum(h * pseudo, -1)  # (B_u,)
                mean = _all_reduce([tf.reduce_mean(drawn) / step.replicas])[0]
                h = drawn if self.feedback == "per_example" else h
        self.log_finite("feedback", mean, self.optimizer)
        if loss_scale(self.optimizer) is not None:
            h, mean = self._as_usual_after_overflow(h, mean, student)
        return h if self.feedback == "soft" else self._center(h, mean)

    def _as_usual_after_overflow(self, h: tf.Tensor, mean: tf.Tensor, student: _StudentGradient) -> tuple[tf.Tensor, tf.Tensor]:
        """Under mixed_float16: (h, mean), or the baseline where the student's step was left out, or h overflowed; moves the scale."""
        moved = tf.math.is_finite(tf.linalg.global_norm(student.gradients))
        known = moved & tf.math.is_finite(mean)
        if self.labeled_scale is not None:
            scale = self.labeled_scale.read_value()
            changed = tf.where(known, tf.minimum(scale * 2.0 ** (1 / 2000), LABELED_SCALE), tf.maximum(scale / 2, 1.0))
            self.labeled_scale.assign(tf.where(moved, changed, scale))
        return tf.where(known, h, self.baseline), tf.where(known, mean, self.baseline)

    def _labeled_gradient(self, x: tf.Tensor, targets: tf.Tensor, step: Step) -> list[tf.Tensor | None]:
        """∇L_l(θ_S'), of the global batch."""
        with tf.GradientTape() as tape:
            loss = self._labeled_loss(x, targets, step)
        if self.labeled_scale is None:
            return _all_reduce(tape.gradient(loss, self.student.trainable_variables))
        # A scale of its own, for no optimizer sees this gradient and lowers one where it overflows.
        scale = self.labeled_scale.read_value()
        scaled = _all_reduce(tape.gradient(loss, self.student.trainable_variables, output_gradients=scale))
        return [g if g is None else g / scale for g in scaled]

    def _label_feedback(self, pseudo: tf.Tensor, student: _StudentGradient, labeled: list[tf.Tensor], step: Step) -> tf.Tensor:
        """`feedback.label_feedback` of this step; it is linear in `labeled`, whose small numbers would vanish in float16."""
        batch_size = step.unlabeled * step.replicas
        scale = loss_scale(self.optimizer)  # what `student.own` was divided by
        if scale is None or self.labeled_scale is None:
            return feedbacks.label_feedback(student.label_tape, pseudo, student.own, labeled, student.factor, batch_size)
        length = self.labeled_scale / LABELED_SCALE  # of the direction that is followed, 1 unless it overflows
        factor = scale * length / tf.linalg.global_norm(labeled)
        directions = [g if g is None else factor * g for g in labeled]
        return feedbacks.label_feedback(student.label_tape, pseudo, student.own, directions, student.factor, batch_size) / factor

    def _center(self, h: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        """Subtracts the baseline and moves it on."""
        if self.baseline_decay == 1.0:
            return h
        centered, following = feedbacks.center(h, mean, tf.identity(self.baseline), self.baseline_decay)
        self.baseline.assign(following)
        return centered

    def feedback_loss(self, h: tf.Tensor, pseudo: tf.Tensor, logits: tf.Tensor, step: Step) -> tf.Tensor:
        """The loss whose gradient is h ∇ CE(ŷ_u, T(x_u; θ_T)), with its weight; `logits` are the teacher's (B_u, K)."""
        factor = 1.0 if self.feedback in ("per_example", "cosine") else tf.cast(step.unlabeled * step.replicas, tf.float32)
        if self.batch_factor is not None and self.feedback != "per_example":
            factor = self.batch_factor
        if self.feedback == "soft":
            loss = feedbacks.soft_loss(h, logits)
        elif self.feedback == "release":
            loss = feedbacks.released_loss(h, logits)
        else:
            loss = feedbacks.hard_loss(h, pseudo, logits, factor)
        loss *= self.feedback_weight
        self.logged["feedback_loss"].update_state(loss)
        return loss

    def step_teacher(self, tape: tf.GradientTape, share: tf.Tensor, step: Step) -> None:
        """Moves the teacher by the gradient of this replica's share of its loss; the optimizer sums over the replicas."""
        gradients = gradient(tape, share, self.teacher.trainable_variables, self.teacher_optimizer)
        norm = step.replicas * tf.linalg.global_norm(gradients)  # of each replica's own mean gradient
        self.log_finite("teacher_gradient_norm", norm, self.teacher_optimizer)
        self.teacher_optimizer.apply_gradients(zip(gradients, self.teacher.trainable_variables))


def _all_reduce(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sums each over the replicas; None stays None."""
    present = [v for v in values if v is not None]
    reduced = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if v is None else next(reduced) for v in values]
