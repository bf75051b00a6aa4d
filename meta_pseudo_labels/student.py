"""The student's lines of Algorithm 1: its step on pseudo-labels, and h of that step.

See Pham et al. 2021, Appendix B.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from meta_pseudo_labels import feedback
from meta_pseudo_labels.feedback import Estimator, Gradients, Measurements
from meta_pseudo_labels.loss_scale import labeled_factor, labeled_gradient, linear, without_overflow
from nets.noise import model_noise
from training.losses import adjusted, cross_entropy, decayed
from training.optimizers import gradient, kept_by_clipping, linear_factor, loss_scale
from training.parts import accumulated, all_reduced, global_rows, in_turn
from training.rematerialization import derivative_pass, statistics_kept, training_pass, weights_of
from training.trainer import Trainer, is_correct


class Step(NamedTuple):
    """Number of a step, sizes of its batches, and the part of them at work."""

    number: tf.Tensor
    labeled: tf.Tensor  # a part of this replica's part of B
    unlabeled: tf.Tensor  # a part of this replica's part of B_u
    replicas: int
    parts: int = 1
    part: int = 0

    @property
    def shares(self) -> int:
        """Returns the number of parts of the global batch, over all replicas."""
        return self.replicas * self.parts

    def at(self, part: int) -> Step:
        """Returns the same step at work on another part."""
        return self._replace(part=part)

    def unlabeled_rows(self) -> tf.Tensor:
        """Returns the rows of the part's unlabeled images; they come first in the global batch."""
        return global_rows(self.unlabeled, 0, self.part, self.parts)

    def labeled_rows(self) -> tf.Tensor:
        """Returns the rows of the part's labeled images, behind the unlabeled ones."""
        return global_rows(self.labeled, self.unlabeled * self.shares, self.part, self.parts)


class StudentTrainer(Trainer):
    """Trains the student, and measures the feedback.

    The subclass compiles it, draws the pseudo-labels and trains the teacher.

    Attributes:
      student: the student.
      estimator: estimator of h.
      baseline: moving average of h.
      labeled_scale: loss scale of the labeled loss, or None; the subclass makes it.

    Args:
      student: a built Keras classifier, images -> logits (B, K).
      estimator: estimator of h.
      baseline_decay: decay of the moving average; 1: nothing is subtracted.
      adjustment: added to the logits of labeled images in L_l, K numbers or None; see
        `losses.log_priors`.
      weight_decay: weight decay of the student.
      accumulation: parts into which each batch is cut.
      rematerialize: keeps only the inputs of the blocks for the backward passes.
      seed: seed of the model noise.
      options: see `Trainer`.
    """

    labeled_scale: tf.Variable | None

    def __init__(
        self,
        student: tf.keras.Model,
        estimator: Estimator,
        *,
        baseline_decay: float,
        adjustment: Sequence[float] | None,
        weight_decay: float,
        accumulation: int,
        rematerialize: bool,
        seed: int,
        **options: Any,
    ):
        super().__init__(student, rematerialize=rematerialize, **options)
        self.student = student
        self.student_forward = training_pass(student, rematerialize)  # on unlabeled images
        # The derivative on the tape of the student's step keeps all that the step has computed.
        # This one computes it again.
        again = estimator.second_order and (rematerialize or accumulation > 1)
        self.student_along = derivative_pass(student, rematerialize) if again else None
        self.estimator = estimator
        self.adjustment = adjustment
        self.weight_decay = weight_decay
        self.accumulation = accumulation
        self.seed = seed
        self.baseline_decay = baseline_decay
        self.baseline = tf.Variable(
            0.0,
            trainable=False,
            name="baseline",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def student_step(
        self, x: tf.Tensor, targets: tf.Tensor, x_u: tf.Tensor, pseudo: tf.Tensor, step: Step
    ) -> tf.Tensor:
        """Moves θ_S to θ_S', and returns h minus the baseline.

        Args:
          x: labeled images (B, H, W, 3).
          targets: their labels (B, K).
          x_u: the images that the student learns from (B_u, H, W, 3).
          pseudo: their pseudo-labels ŷ_u (B_u, K).
          step: the step's number and sizes.

        Returns:
          h: () for the whole step and the same on every replica, (B_u,) or (B_u, K).
        """
        estimator, variables = self.estimator, self.student.trainable_variables
        # L_l(θ_S), where h is a difference of losses
        old = (
            self._labeled((x, targets), step, gradient=False)[0] if estimator.losses else None
        )  # ()
        # ∇L_u(θ_S), L_u = CE(ŷ_u, S(x_u; θ_S)) (eq. 1); the label tape knows its dependence on ŷ_u
        with tf.GradientTape(watch_accessed_variables=False) as label_tape:
            if estimator.second_order and not self.student_along:
                label_tape.watch(pseudo)
            on_replica = accumulated(
                lambda part, number: self._unlabeled_gradient(part, step.at(number)),
                (x_u, pseudo),
                step.parts,
            )
        unlabeled = all_reduced(on_replica)
        start = [v.read_value() for v in variables] if self.student_along else []
        # θ_S' = θ_S − η_S ∇L_u(θ_S)
        factor = self._move_student(unlabeled)  # η_S, ()
        if estimator.estimate is None:
            with tf.control_dependencies([g for g in unlabeled if g is not None]):
                return tf.zeros([])
        # L_l(θ_S') or ∇L_l(θ_S')
        scale = labeled_factor(self.labeled_scale)
        new, *scaled = self._labeled((x, targets), step, gradient=estimator.gradient, factor=scale)
        labeled = labeled_gradient(scaled, scale) if estimator.gradient else ()
        if estimator.losses:
            old, new = all_reduced([old, new])

        def per_label() -> tf.Tensor:
            def along(v: Gradients) -> tf.Tensor:
                if self.student_along:
                    return self._label_feedback_again(x_u, v, start, factor, step)
                return feedback.label_feedback(
                    label_tape, pseudo, on_replica, v, factor, step.unlabeled * step.replicas
                )

            return linear(along, self._moved(labeled), self.labeled_scale, self.optimizer)

        # h = η_S ⟨∇L_l(θ_S'), ∇L_u(θ_S)⟩ (eq. 12), or another estimate of L_l(θ_S) − L_l(θ_S')
        h = estimator.estimate(
            Measurements(pseudo, old, new, labeled, self._moved(unlabeled), factor, per_label)
        )
        return self._centered(h, pseudo, unlabeled, step)

    def _centered(
        self, h: tf.Tensor, pseudo: tf.Tensor, unlabeled: Gradients, step: Step
    ) -> tf.Tensor:
        """Logs h, and returns it minus the baseline."""
        mean = feedback.drawn(h, pseudo)  # () or (B_u,)
        if mean.shape.rank:
            mean = all_reduced([tf.reduce_mean(mean) / step.replicas])[0]  # ()
        self.log_finite("feedback", mean, self.optimizer)
        h, mean = without_overflow(
            h, mean, self.baseline, unlabeled, self.labeled_scale, self.optimizer
        )
        # h − b (Appendix C.3)
        if not self.estimator.baseline or self.baseline_decay == 1.0:
            return h
        h, following = feedback.center(h, mean, tf.identity(self.baseline), self.baseline_decay)
        self.baseline.assign(following)
        return h

    def _unlabeled_gradient(self, part: Any, step: Step) -> list[tf.Tensor | None]:
        """Returns the share of one part (x_u, ŷ_u) in ∇L_u(θ_S).

        The shares are to be summed over parts and replicas.
        """
        x_u, pseudo = part
        with tf.GradientTape() as tape:
            with self._student_noise(step, step.unlabeled_rows()):
                logits = tf.cast(self.student_forward(x_u), tf.float32)  # (B_u, K)
            loss = tf.reduce_mean(feedback.soft_cross_entropy(pseudo, logits))  # ()
            share = loss / step.shares
        on_replica = gradient(tape, share, self.student.trainable_variables, self.optimizer)
        self.logged["loss"].update_state(loss)
        self.logged["agreement"].update_state(is_correct(pseudo, logits))
        return on_replica

    def _label_feedback_again(
        self,
        x_u: tf.Tensor,
        labeled: Gradients,
        start: list[tf.Tensor],
        factor: tf.Tensor | None,
        step: Step,
    ) -> tf.Tensor:
        """Returns `feedback.label_feedback` by one more pass at θ_S.

        The pass keeps nothing of the student's own pass.

        Args:
          x_u: the unlabeled images (B_u, H, W, 3).
          labeled: ∇L_l(θ_S').
          start: θ_S; the variables hold θ_S'.
          factor: η_S.
          step: the step's number and sizes.
        """
        variables = self.student.trainable_variables
        # In float16 the derivatives get the size that they have in the backward pass.
        size = loss_scale(self.optimizer)
        size = 1.0 if size is None else size
        direction = {v.ref(): g / size for v, g in zip(variables, labeled) if g is not None}

        def h(images: tf.Tensor, number: int) -> tf.Tensor:
            part = step.at(number)
            with self._student_noise(part, part.unlabeled_rows()):
                logits, slope = self.student_along(images, direction)  # type: ignore[misc]
            slope = size * tf.cast(slope, tf.float32)
            return feedback.label_feedback_of(tf.cast(logits, tf.float32), slope, factor)

        # not beside the pass that makes the gradients
        with tf.control_dependencies(list(direction.values())):
            x_u = tf.identity(x_u)
        with weights_of(variables, start):
            return in_turn(h, x_u, step.parts)  # (B_u, K)

    def _student_noise(
        self, step: Step, rows: tf.Tensor
    ) -> contextlib.AbstractContextManager[None]:
        """Returns the student's model noise.

        Unlabeled images have the first rows, labeled ones follow.
        """
        return model_noise(
            2 * self.seed + 1, step.number, rows, (step.labeled + step.unlabeled) * step.shares
        )

    def _labeled(
        self, labeled: Any, step: Step, *, gradient: bool, factor: tf.Tensor | None = None
    ) -> list[tf.Tensor | None]:
        """Returns this replica's share of the student's L_l, and of its gradient times the factor.

        The gradient is there where it is asked for. Both measurements, before and after the
        student's move, have the same noise and leave no trace.
        """
        variables = self.student.trainable_variables

        def measured(part: Any, number: int) -> list[tf.Tensor | None]:
            with tf.GradientTape(watch_accessed_variables=gradient) as tape:
                loss = self._labeled_loss(part, step.at(number))  # ()
            return [
                loss,
                *(tape.gradient(loss, variables, output_gradients=factor) if gradient else ()),
            ]

        return accumulated(measured, labeled, step.parts)

    def _labeled_loss(self, part: Any, step: Step) -> tf.Tensor:
        x, targets = part
        with statistics_kept(self.student), self._student_noise(step, step.labeled_rows()):
            logits = tf.cast(self.forward(x), tf.float32)  # (B, K)
        return (
            tf.reduce_mean(cross_entropy(targets, adjusted(logits, self.adjustment))) / step.shares
        )

    def _moved(self, gradients: Gradients) -> Gradients:
        """Returns gradients times the factors of the student's step just made, layer by layer.

        The step is −η_S f ∇L_u with one factor f for each variable. So h has f, too.
        """
        if not self.layer_rates:
            return gradients
        return self.layer_rates.scaled(gradients, self.optimizer.iterations)

    def _move_student(self, unlabeled: Gradients) -> tf.Tensor | None:
        """Moves the student and its average along ∇L_u(θ_S).

        Returns the factor η_S that h needs, or None.
        """
        variables = self.student.trainable_variables
        # Weight decay is not part of ∇L_u, the gradient that the feedback measures.
        weights = {id(v) for v in decayed(variables)}
        moves = [
            (g + self.weight_decay * v if id(v) in weights else g, v)
            for g, v in zip(unlabeled, variables)
            if g is not None
        ]
        with self.measured_update(tf.linalg.global_norm(unlabeled)):
            self.optimizer.apply_gradients(moves, skip_gradients_aggregation=True)
        self.ema.update(self.optimizer.iterations)
        if not self.estimator.factor:
            return None
        factor = linear_factor(self.optimizer)
        if factor is None:  # `compile` has warned that the learning rate stands in for it
            factor = self.optimizer.learning_rate
        return factor * kept_by_clipping([g for g, _ in moves], self.optimizer)
