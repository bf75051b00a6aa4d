"""Meta Pseudo Labels' training step (Pham et al. 2021, Appendix B, Algorithm 1) as a Keras model over any two Keras classifiers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from meta_pseudo_labels import feedback
from meta_pseudo_labels.feedback import Gradients, Measurements, find_estimator
from meta_pseudo_labels.loss_scale import LARGEST, labeled_gradient, linear, without_overflow
from nets.noise import model_noise
from training import uda
from training.losses import adjusted, cross_entropy, decayed, one_hot
from training.optimizers import gradient, kept_by_clipping, linear_factor, loss_scale
from training.rematerialization import statistics_kept, training_pass
from training.trainer import Trainer, alike, all_reduced, check_classifier, global_rows, hits, pairs


class Step(NamedTuple):
    """Which step it is, and the sizes of its batches."""

    number: tf.Tensor
    labeled: tf.Tensor  # this replica's part of B
    unlabeled: tf.Tensor  # this replica's part of B_u
    replicas: int


class FeedbackTrainer(Trainer):
    """Algorithm 1 for a teacher that the subclass defines: `_inputs` and `_teacher_pass`.

    `evaluate` and `ema` are the student's. Its BatchNorm's moving statistics are updated once a step, by its pass over the unlabelled
    images. Its passes over the labelled ones, which measure the feedback, use the batch's statistics and leave the moving ones alone.

    Everything random is a function of (seed, step, example) if the student's noise comes from `efficientnet`'s layers; Keras's own
    Dropout works too, but draws other masks before and after the student's step, which is noise in `finite_difference`.

    Args:
      teacher: a built Keras model that ends in logits (B, K).
      student: a built Keras classifier, images -> logits (B, K), with weights of its own.
      feedback: the estimator of h, a name in `feedback.ESTIMATORS`; the default has the least noise (`run_experiment.sh
        feedback_study`). Under mixed precision use one that takes gradients: the difference of two rounded losses is mostly rounding.
      pseudo_labels: "sampled" (the paper), "argmax" or "soft".
      feedback_weight: factor of the feedback's loss. The true gradient is of the order of the student's learning rate, hence small
        beside the teacher's other losses. Below 0 it turns the sign, for an ablation.
      batch_factor: factor of a scalar h: None is B_u, which makes `finite_difference` and `dot_product` the gradient of J, and 1
        for `cosine`, which is not; 1 is eq. 12 as written. Without meaning for `per_example` and `soft`.
      baseline_decay: of the moving average that is subtracted from h (Appendix C.3); 1 is no baseline. Without meaning for `soft`.
      adjustment: added to the student's logits of labelled images in the loss that the feedback measures, K numbers or None;
        see `losses.log_priors`.
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
        adjustment: Sequence[float] | None = None,
        weight_decay: float = 5e-4,
        ema_decay: float = 0.995,
        rematerialize: bool = False,
        seed: int = 0,
        logged: tuple[str, ...],
        name: str,
    ):
        estimator = find_estimator(feedback, pseudo_labels)
        own_metrics = ("loss", "top1", "feedback", "agreement", "confidence", "feedback_loss")
        logged = (*own_metrics, "teacher_gradient_norm", *logged)
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
        # On unlabelled images; a gradient of a rematerialized gradient cannot be taken.
        self.student_forward = training_pass(student, rematerialize and not estimator.second_order)
        self.estimator = estimator
        self.pseudo_labels = pseudo_labels
        self.feedback_weight = feedback_weight
        self.batch_factor = batch_factor
        self.baseline_decay = baseline_decay
        self.approximate_feedback = approximate_feedback
        self.adjustment = adjustment
        self.weight_decay = weight_decay
        self.seed = seed
        self.baseline = tf.Variable(0.0, trainable=False, name="baseline", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    def compile(  # type: ignore[override]
        self, student_optimizer: Any, teacher_optimizer: Any, **options: Any
    ) -> None:
        """Takes an optimizer (or its Keras name) for each network.

        Raises:
          ValueError: a legacy optimizer for the student, whose gradients are summed over the replicas before; or one for both; or
            feedback that needs a `linear_factor` which the student's optimizer lacks.
        """
        if student_optimizer is teacher_optimizer and not isinstance(student_optimizer, str):
            raise ValueError("student and teacher have the same optimizer object; each needs its own")
        super().compile(optimizer=student_optimizer, **options)
        if isinstance(self.optimizer, tf.keras.optimizers.legacy.Optimizer):
            raise ValueError("the student's optimizer is one of tf.keras.optimizers.legacy; take the one of tf.keras.optimizers")
        name = type(getattr(self.optimizer, "inner_optimizer", self.optimizer)).__name__
        # Keras projects a constrained weight after the step, which is then no multiple of the gradient.
        constrained = any(getattr(v, "constraint", None) is not None for v in self.student.trainable_variables)
        known = linear_factor(self.optimizer) is not None and not constrained
        warning = feedback.check_factor(self.estimator, name, known, self.approximate_feedback)
        if warning:
            logging.warning(warning)
        self.teacher_optimizer = tf.keras.optimizers.get(teacher_optimizer)
        self.labeled_scale: tf.Variable | None = None
        if loss_scale(self.optimizer) is not None and loss_scale(self.teacher_optimizer) is None:  # Keras wraps the one that it knows
            self.teacher_optimizer = tf.keras.mixed_precision.LossScaleOptimizer(self.teacher_optimizer)
        if loss_scale(self.optimizer) is not None and self.estimator.gradient:
            with self.distribute_strategy.scope():
                self.labeled_scale = tf.Variable(
                    LARGEST,
                    trainable=False,
                    name="labeled_scale",
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )

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

    def _inputs(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns (x, y, x_u, what the teacher is given beside them) of an element of the data set."""
        raise NotImplementedError

    def _teacher_pass(self, x: tf.Tensor, x_u: tf.Tensor, given: tf.Tensor, step: Step) -> tuple[tf.Tensor, Any]:
        """Returns the teacher's logits of x_u (B_u, K), and all that `_other_losses` takes."""
        raise NotImplementedError

    def _other_losses(self, z: Any, targets: tf.Tensor, given: tf.Tensor, step: Step) -> tf.Tensor | float:
        """Returns the teacher's loss without feedback, (); logs its parts."""
        raise NotImplementedError

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of Algorithm 1, in its order. B and B_u are the batch sizes on this replica."""
        x, y, x_u, given = self._inputs(data)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        step = Step(self.teacher_optimizer.iterations, tf.shape(x)[0], tf.shape(x_u)[0], replicas)
        with tf.GradientTape() as tape:
            # T(x_u; θ_T)
            z_u, z = self._teacher_pass(x, x_u, given, step)  # (B_u, K)
            targets = one_hot(y, z_u.shape[-1])  # (B, K)
            with tape.stop_recording():
                # ŷ_u ~ T(x_u; θ_T)
                pseudo = self._draw(z_u, step)  # (B_u, K)
                # θ_S' = θ_S − η_S ∇ CE(ŷ_u, S(x_u; θ_S)) (under eq. 2), and h of it (eq. 12)
                h = self._student_step(x, targets, x_u, pseudo, step)  # (), (B_u,) or (B_u, K)
            # The losses of g_T,supervised and g_T,UDA, and h CE(ŷ_u, T(x_u; θ_T)), that of g_T
            loss = self._other_losses(z, targets, given, step)  # ()
            feedback_loss = self._feedback_loss(h, pseudo, z_u, step)  # ()
            loss += feedback_loss
            share = loss / replicas  # the optimizer sums over the replicas
        # θ_T' = θ_T − η_T (g_T + g_T,supervised + g_T,UDA)
        variables = self.teacher.trainable_variables
        gradients = gradient(tape, share, variables, self.teacher_optimizer)
        norm = replicas * tf.linalg.global_norm(gradients)  # of each replica's own mean gradient
        self.log_finite("teacher_gradient_norm", norm, self.teacher_optimizer)
        self.teacher_optimizer.apply_gradients(zip(gradients, variables))
        self.logged["feedback_loss"].update_state(feedback_loss)
        self.logged["teacher_loss"].update_state(loss)
        # `top1` is of evaluations only.
        return {name: metric.result() for name, metric in self.logged.items() if name != "top1"}

    def _student_step(self, x: tf.Tensor, targets: tf.Tensor, x_u: tf.Tensor, pseudo: tf.Tensor, step: Step) -> tf.Tensor:
        """The student's lines of Algorithm 1: moves θ_S to θ_S', and returns h, less the baseline.

        Args:
          x: labelled images (B, H, W, 3).
          targets: their labels (B, K).
          x_u: the images that the student learns from (B_u, H, W, 3).
          pseudo: their pseudo-labels ŷ_u (B_u, K).
          step: the step's number and sizes.

        Returns:
          h: () for the whole step and the same on every replica, (B_u,) or (B_u, K).
        """
        estimator, variables = self.estimator, self.student.trainable_variables
        # L_l(θ_S), where h is a difference of losses
        old = self._labeled_loss(x, targets, step) if estimator.losses else None  # ()
        # ∇L_u(θ_S), L_u = CE(ŷ_u, S(x_u; θ_S)) (eq. 1); the label tape knows its dependence on ŷ_u
        with tf.GradientTape(watch_accessed_variables=False) as label_tape:
            if estimator.second_order:
                label_tape.watch(pseudo)
            with tf.GradientTape() as tape:
                with self._student_noise(step, global_rows(step.unlabeled, 0)):
                    logits = tf.cast(self.student_forward(x_u), tf.float32)  # (B_u, K)
                loss = tf.reduce_mean(feedback.soft_cross_entropy(pseudo, logits))  # ()
                share = loss / step.replicas
            own = gradient(tape, share, variables, self.optimizer)
        unlabeled = all_reduced(own)
        self.logged["loss"].update_state(loss)
        self.logged["agreement"].update_state(hits(pseudo, logits))
        # θ_S' = θ_S − η_S ∇L_u(θ_S)
        factor = self._move_student(unlabeled)  # η_S, ()
        if estimator.estimate is None:
            return tf.zeros([])
        # L_l(θ_S') or ∇L_l(θ_S')
        with tf.GradientTape(watch_accessed_variables=estimator.gradient) as tape:
            new = self._labeled_loss(x, targets, step)  # ()
        labeled: Gradients = ()
        if estimator.gradient:
            labeled = labeled_gradient(tape, new, variables, self.labeled_scale)
        if estimator.losses:
            old, new = all_reduced([old, new])

        def per_label() -> tf.Tensor:
            batch_size = step.unlabeled * step.replicas
            return linear(
                lambda v: feedback.label_feedback(label_tape, pseudo, own, v, factor, batch_size),
                labeled,
                self.labeled_scale,
                self.optimizer,
            )

        # h = η_S ⟨∇L_l(θ_S'), ∇L_u(θ_S)⟩ (eq. 12), or another estimate of L_l(θ_S) − L_l(θ_S')
        h = estimator.estimate(Measurements(pseudo, old, new, labeled, unlabeled, factor, per_label))
        mean = feedback.drawn(h, pseudo)  # () or (B_u,)
        if mean.shape.rank:
            mean = all_reduced([tf.reduce_mean(mean) / step.replicas])[0]  # ()
        self.log_finite("feedback", mean, self.optimizer)
        h, mean = without_overflow(h, mean, self.baseline, unlabeled, self.labeled_scale, self.optimizer)
        # h − b (Appendix C.3)
        if not estimator.baseline or self.baseline_decay == 1.0:
            return h
        h, following = feedback.center(h, mean, tf.identity(self.baseline), self.baseline_decay)
        self.baseline.assign(following)
        return h

    def _draw(self, logits: tf.Tensor, step: Step) -> tf.Tensor:
        """Pseudo-labels (B_u, K) of this replica's examples, whose draws belong to the example's row in the global batch."""
        self.logged["confidence"].update_state(tf.reduce_max(tf.nn.softmax(logits), -1))
        key = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step.number, tf.int64)])
        uniform = tf.random.stateless_uniform([step.unlabeled * step.replicas, logits.shape[-1]], key, alg="philox")
        return feedback.draw_pseudo_labels(self.pseudo_labels, logits, tf.gather(uniform, global_rows(step.unlabeled, 0)))

    def _student_noise(self, step: Step, rows: tf.Tensor) -> contextlib.AbstractContextManager[None]:
        """The student's model noise: unlabelled images have the first rows, labelled ones follow."""
        return model_noise(2 * self.seed + 1, step.number, rows, (step.labeled + step.unlabeled) * step.replicas)

    def _labeled_loss(self, x: tf.Tensor, targets: tf.Tensor, step: Step) -> tf.Tensor:
        """The student's L_l, this replica's share; before and after its move with the same noise, and both without a trace."""
        rows = global_rows(step.labeled, step.unlabeled * step.replicas)
        with statistics_kept(self.student), self._student_noise(step, rows):
            logits = tf.cast(self.forward(x), tf.float32)  # (B, K)
        return tf.reduce_mean(cross_entropy(targets, adjusted(logits, self.adjustment))) / step.replicas

    def _move_student(self, unlabeled: Gradients) -> tf.Tensor | None:
        """Moves the student and its average along ∇L_u(θ_S); returns the factor η_S that h needs, or None."""
        variables = self.student.trainable_variables
        # Weight decay is no part of ∇L_u, which the feedback is about.
        weights = {id(v) for v in decayed(variables)}
        moves = [(g + self.weight_decay * v if id(v) in weights else g, v) for g, v in zip(unlabeled, variables) if g is not None]
        with self.measured_update(tf.linalg.global_norm(unlabeled)):
            self.optimizer.apply_gradients(moves, skip_gradients_aggregation=True)
        self.ema.update(self.optimizer.iterations)
        if not self.estimator.factor:
            return None
        factor = linear_factor(self.optimizer)
        if factor is None:  # `compile` has warned that the learning rate stands in for it
            factor = self.optimizer.learning_rate
        return factor * kept_by_clipping([g for g, _ in moves], self.optimizer)

    def _feedback_loss(self, h: tf.Tensor, pseudo: tf.Tensor, logits: tf.Tensor, step: Step) -> tf.Tensor:
        """The loss whose gradient is h ∇ CE(ŷ_u, T(x_u; θ_T)), with its weight; `logits` are the teacher's (B_u, K)."""
        factor: Any = self.batch_factor
        if factor is None:
            factor = step.unlabeled * step.replicas if self.estimator.batch_factor else 1.0
        return self.feedback_weight * self.estimator.teacher_loss(h, pseudo, logits, factor)


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
      adjustment: added to the logits in the loss of labelled examples, the teacher's and the student's; see `FeedbackTrainer`.
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
        adjustment: Sequence[float] | None = None,
        weight_decay: float = 5e-4,
        rematerialize: bool = False,
        **options: Any,
    ):
        logged = ("teacher_loss", "teacher_top1", *(name for name in uda.LOGGED if name != "top1"))
        common = {"adjustment": adjustment, "weight_decay": weight_decay, "rematerialize": rematerialize, **options}
        super().__init__(teacher, student, logged=logged, name="meta_pseudo_labels", **common)
        self.teacher_forward = training_pass(teacher, rematerialize)
        self.objective = uda.Objective(
            supervised_weight, uda_weight, uda_temperature, uda_threshold, uda_ramp_steps, label_smoothing, weight_decay, adjustment
        )

    def _inputs(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        (x, y), (x_weak, x_strong) = pairs(data, "((x, y), (x_weak, x_strong))")
        x, x_weak, x_strong = alike(x, x_weak, x_strong)
        return x, y, x_strong, x_weak

    def _teacher_pass(self, x: tf.Tensor, x_u: tf.Tensor, given: tf.Tensor, step: Step) -> tuple[tf.Tensor, uda.Logits]:
        z = uda.forward(self.teacher_forward, x, given, x_u, 2 * self.seed, step.number)
        return z.strong, z

    def _other_losses(self, z: uda.Logits, targets: tf.Tensor, given: tf.Tensor, step: Step) -> tf.Tensor:
        loss, values = self.objective(self.teacher, z, targets, step.number)  # ()
        for name, value in values.items():
            self.logged["teacher_top1" if name == "top1" else name].update_state(value)
        return loss
