"""Meta Pseudo Labels' training step as a Keras model over any two Keras classifiers.

The step is Algorithm 1 (Pham et al. 2021, Appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from meta_pseudo_labels import feedback
from meta_pseudo_labels.feedback import find_estimator
from meta_pseudo_labels.loss_scale import LARGEST
from meta_pseudo_labels.student import Step, StudentTrainer
from training import layer_rates, uda
from training.layer_rates import LayerRates
from training.losses import one_hot
from training.optimizers import gradient, linear_factor, loss_scale
from training.parts import accumulated, in_one_dtype, in_turn, two_pairs
from training.rematerialization import statistics_kept, training_pass
from training.trainer import check_classifier


class Batch(NamedTuple):
    """Data of a step: labeled images with labels, and unlabeled images.

    `given` is what the teacher is given beside the unlabeled images.
    """

    x: tf.Tensor  # (B, H, W, 3)
    y: tf.Tensor  # (B,) or (B, K)
    x_u: tf.Tensor  # (B_u, H, W, 3)
    given: tf.Tensor  # (B_u, ...)


class FeedbackTrainer(StudentTrainer):
    """Algorithm 1 for a teacher that the subclass defines: `_inputs` and `_teacher_pass`.

    `evaluate` and `ema` are the student's. Its BatchNorm's moving statistics are updated once a
    step, by its pass over the unlabeled images. Its passes over the labeled images, which measure
    the feedback, use the batch's statistics and leave the moving ones alone.

    Everything random is a function of (seed, step, example) if the student's noise comes from
    `efficientnet`'s layers. Keras's own Dropout works too, but draws other masks before and after
    the student's step, which is noise in `finite_difference`. With `accumulation` it also draws
    other masks in the teacher's second pass, and in the student's for `soft` and `per_example`.

    Args:
      teacher: a built Keras model that ends in logits (B, K).
      student: a built Keras classifier, images -> logits (B, K), with its own weights.
      feedback: the estimator of h, a name in `feedback.ESTIMATORS`; the default has the least noise
        (`run_experiment.sh feedback_study`). Under mixed precision use one that takes gradients:
        the difference of two rounded losses is mostly rounding.
      pseudo_labels: "sampled" (the paper), "argmax" or "soft".
      feedback_weight: factor of the feedback's loss. The true gradient is of the order of the
        student's learning rate, hence small beside the teacher's other losses. Below 0 it turns the
        sign, for an ablation.
      batch_factor: factor of a scalar h. None is B_u for `finite_difference` and `dot_product`,
        which makes them the gradient of J, and 1 for `cosine`, which is not the gradient of J. 1 is
        eq. 12 as written. `per_example` and `soft` ignore it.
      baseline_decay: decay of the moving average that is subtracted from h (Appendix C.3); 1 is no
        baseline. `soft` ignores it.
      adjustment: added to the student's logits of labeled images in the loss that the feedback
        measures, K numbers or None; see `losses.log_priors`.
      weight_decay: λ in λ·Σ½‖v‖² of each network.
      ema_decay: decay of the student's moving average.
      approximate_feedback: takes `soft`, `per_example` and `dot_product` also under a student's
        optimizer that has no `linear_factor`, such as Adam, with a warning. The learning rate then
        stands in for the factor. The default refuses them.
      rematerialize: keeps only the inputs of the student's blocks for the backward passes, which
        compute the rest again; for classifiers of this project's builders. `per_example` and `soft`
        then take one more pass for their derivative.
      accumulation: parts into which each batch is cut, one in memory at a time. The step is that of
        the whole batch except in BatchNorm, which normalizes each part by itself and moves its
        statistics with each part. The teacher passes twice over the parts: before the student's
        step for its labels, and after it for its gradient.
      seed: seed of the draws of pseudo-labels and of the model noise.
      logged: names of the subclass's metrics.
      name: name of the Keras model.

    Raises:
      ValueError: unknown names, a pair of feedback and pseudo-labels without a gradient, or
        networks that cannot be trained as a pair.
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
        accumulation: int = 1,
        seed: int = 0,
        logged: tuple[str, ...],
        name: str,
    ):
        estimator = find_estimator(feedback, pseudo_labels)
        own_metrics = ("loss", "top1", "feedback", "agreement", "confidence", "feedback_loss")
        logged = (*own_metrics, "teacher_gradient_norm", *logged)
        super().__init__(
            student,
            estimator,
            baseline_decay=baseline_decay,
            adjustment=adjustment,
            weight_decay=weight_decay,
            accumulation=accumulation,
            rematerialize=rematerialize,
            seed=seed,
            ema_decay=ema_decay,
            logged=logged,
            name=name,
        )
        teacher_classes, student_classes = (
            check_classifier(teacher, "teacher"),
            check_classifier(student, "student"),
        )
        if teacher_classes and student_classes and teacher_classes != student_classes:
            raise ValueError(
                f"teacher and student have {teacher_classes} and {student_classes} classes; they"
                " must have the same"
            )
        if {id(v) for v in teacher.variables} & {id(v) for v in student.variables}:
            raise ValueError("teacher and student share weights; each needs its own")
        for network, named in ((teacher, "teacher"), (student, "student")):
            if not network.trainable_variables:
                raise ValueError(
                    f"the {named} has nothing to train; for a fixed teacher use "
                    "ReducedMetaPseudoLabels with feedback='none'"
                )
        self.teacher = teacher
        self.teacher_layer_rates: LayerRates | None = None
        self.pseudo_labels = pseudo_labels
        self.feedback_weight = feedback_weight
        self.batch_factor = batch_factor
        self.approximate_feedback = approximate_feedback

    def compile(  # type: ignore[override]
        self, student_optimizer: Any, teacher_optimizer: Any, **options: Any
    ) -> None:
        """Takes an optimizer (or its Keras name) for each network.

        Raises:
          ValueError: the student's optimizer is a legacy one (its gradients are summed over the
            replicas before), one optimizer is given for both networks, or the feedback needs a
            `linear_factor` that the student's optimizer lacks.
        """
        if student_optimizer is teacher_optimizer and not isinstance(student_optimizer, str):
            raise ValueError(
                "student and teacher have the same optimizer object; each needs its own"
            )
        super().compile(optimizer=student_optimizer, **options)
        if isinstance(self.optimizer, tf.keras.optimizers.legacy.Optimizer):
            raise ValueError(
                "the student's optimizer is from tf.keras.optimizers.legacy; use the optimizer of "
                "the same name in tf.keras.optimizers"
            )
        name = type(getattr(self.optimizer, "inner_optimizer", self.optimizer)).__name__
        # Keras projects a constrained weight after the step, which is then no multiple of the
        # gradient.
        constrained = any(
            getattr(v, "constraint", None) is not None for v in self.student.trainable_variables
        )
        known = linear_factor(self.optimizer) is not None and not constrained
        warning = feedback.check_factor(self.estimator, name, known, self.approximate_feedback)
        if warning:
            logging.warning(warning)
        self.teacher_optimizer = tf.keras.optimizers.get(teacher_optimizer)
        self.labeled_scale = None
        if (
            loss_scale(self.optimizer) is not None and loss_scale(self.teacher_optimizer) is None
        ):  # Keras wraps the one that it knows
            self.teacher_optimizer = tf.keras.mixed_precision.LossScaleOptimizer(
                self.teacher_optimizer
            )
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
        """Returns the student's optimizer, and the teacher's."""
        return {**super().optimizers, "teacher_": self.teacher_optimizer}

    @property
    def optimizer_settings(self) -> dict[str, float]:
        """Returns the settings of both optimizers, and the scale of the labeled loss."""
        more = (
            {}
            if self.labeled_scale is None
            else {"labeled_loss_scale": float(self.labeled_scale.numpy())}
        )
        return {**super().optimizer_settings, **more}

    def build_optimizers(self) -> None:
        """Makes both optimizers' slots."""
        super().build_optimizers()
        self.teacher_optimizer.build(self.teacher.trainable_variables)

    def _inputs(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the fields of `Batch` from an element of the data set."""
        raise NotImplementedError

    def _teacher_pass(
        self, x: tf.Tensor, x_u: tf.Tensor, given: tf.Tensor, step: Step
    ) -> tuple[tf.Tensor, Any]:
        """Returns the teacher's logits of x_u (B_u, K), and all that `_other_losses` takes."""
        raise NotImplementedError

    def _other_losses(
        self, z: Any, targets: tf.Tensor, given: tf.Tensor, step: Step
    ) -> tf.Tensor | float:
        """Returns the teacher's loss without feedback, (); logs its parts."""
        raise NotImplementedError

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Takes one step of Algorithm 1, in its order.

        B and B_u are the batch sizes on this replica.
        """
        batch, parts = Batch(*self._inputs(data)), self.accumulation
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        sizes = [tf.shape(images)[0] for images in (batch.x, batch.x_u)]
        labeled, unlabeled = sizes if parts == 1 else [size // parts for size in sizes]
        step = Step(self.teacher_optimizer.iterations, labeled, unlabeled, replicas, parts)
        gradients = (self._gradients if parts == 1 else self._gradients_in_parts)(batch, step)
        # θ_T' = θ_T − η_T (g_T + g_T,supervised + g_T,UDA)
        norm = replicas * tf.linalg.global_norm(gradients)  # of each replica's own mean gradient
        self.log_finite("teacher_gradient_norm", norm, self.teacher_optimizer)
        variables, rates = self.teacher.trainable_variables, self.teacher_layer_rates
        before = [v.read_value() for v in variables] if rates else []
        self.teacher_optimizer.apply_gradients(zip(gradients, variables))
        if rates:
            rates.shorten(variables, before, self.teacher_optimizer.iterations)
        # `top1` is of evaluations only.
        return {name: metric.result() for name, metric in self.logged.items() if name != "top1"}

    def _gradients(self, batch: Batch, step: Step) -> list[tf.Tensor | None]:
        """Returns the teacher's gradients, after the student's step.

        One pass of the teacher serves for labels and gradient.
        """
        with tf.GradientTape() as tape:
            # T(x_u; θ_T)
            z_u, z = self._teacher_pass(batch.x, batch.x_u, batch.given, step)  # (B_u, K)
            with tape.stop_recording():
                # ŷ_u ~ T(x_u; θ_T)
                pseudo = self._draw(z_u, step)  # (B_u, K)
                # θ_S' = θ_S − η_S ∇ CE(ŷ_u, S(x_u; θ_S)) (under eq. 2), and h of it (eq. 12)
                targets = one_hot(batch.y, z_u.shape[-1])  # (B, K)
                h = self.student_step(
                    batch.x, targets, batch.x_u, pseudo, step
                )  # (), (B_u,) or (B_u, K)
            share = self._teacher_loss(batch, z_u, z, pseudo, h, step)
        return gradient(tape, share, self.teacher.trainable_variables, self.teacher_optimizer)

    def _gradients_in_parts(self, batch: Batch, step: Step) -> list[tf.Tensor | None]:
        """Does the same as `_gradients` with one part of the batch in memory at a time.

        The teacher passes once more for its gradient.
        """

        def labels(part: Batch, number: int) -> tf.Tensor:
            with statistics_kept(self.teacher):
                z_u, _ = self._teacher_pass(part.x, part.x_u, part.given, step.at(number))
            return self._draw(z_u, step.at(number))

        def gradients(part: Any, number: int) -> list[tf.Tensor | None]:
            images, pseudo, h = part
            with tf.GradientTape() as tape:
                z_u, z = self._teacher_pass(images.x, images.x_u, images.given, step.at(number))
                share = self._teacher_loss(images, z_u, z, pseudo, h, step.at(number))
            return gradient(tape, share, self.teacher.trainable_variables, self.teacher_optimizer)

        pseudo = in_turn(labels, batch, step.parts)  # (B_u, K)
        targets = one_hot(batch.y, pseudo.shape[-1])  # (B, K)
        h = self.student_step(batch.x, targets, batch.x_u, pseudo, step)
        # The teacher's second pass must not run beside the student's.
        with tf.control_dependencies([h]):
            batch = tf.nest.map_structure(tf.identity, batch)
        return accumulated(gradients, (batch, pseudo, h), step.parts)

    def _teacher_loss(
        self, batch: Batch, z_u: tf.Tensor, z: Any, pseudo: tf.Tensor, h: tf.Tensor, step: Step
    ) -> tf.Tensor:
        """Returns the teacher's loss on one part of the batch, divided by parts and replicas.

        The optimizer sums over the replicas.
        """
        # The losses of g_T,supervised and g_T,UDA, and h CE(ŷ_u, T(x_u; θ_T)), that of g_T
        loss = self._other_losses(z, one_hot(batch.y, z_u.shape[-1]), batch.given, step)  # ()
        feedback_loss = self._feedback_loss(h, pseudo, z_u, step)  # ()
        loss += feedback_loss
        self.logged["feedback_loss"].update_state(feedback_loss)
        self.logged["teacher_loss"].update_state(loss)
        return loss / step.shares

    def _draw(self, logits: tf.Tensor, step: Step) -> tf.Tensor:
        """Returns pseudo-labels (B_u, K) of this part's examples.

        A draw belongs to the example's row in the global batch.
        """
        self.logged["confidence"].update_state(tf.reduce_max(tf.nn.softmax(logits), -1))
        key = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step.number, tf.int64)])
        uniform = tf.random.stateless_uniform(
            [step.unlabeled * step.shares, logits.shape[-1]], key, alg="philox"
        )
        return feedback.draw_pseudo_labels(
            self.pseudo_labels, logits, tf.gather(uniform, step.unlabeled_rows())
        )

    def _feedback_loss(
        self, h: tf.Tensor, pseudo: tf.Tensor, logits: tf.Tensor, step: Step
    ) -> tf.Tensor:
        """Returns the loss with the gradient h ∇ CE(ŷ_u, T(x_u; θ_T)), times its weight.

        `logits` are the teacher's, (B_u, K).
        """
        factor: Any = self.batch_factor
        if factor is None:
            factor = step.unlabeled * step.shares if self.estimator.batch_factor else 1.0
        return self.feedback_weight * self.estimator.teacher_loss(h, pseudo, logits, factor)


class MetaPseudoLabels(FeedbackTrainer):
    """Trains a student on a teacher's pseudo-labels, and the teacher on the student's feedback.

    Elements of the data set given to `fit`: `((x, y), (x_weak, x_strong))`: labeled images (B, H,
    W, 3) with class ids (B,) or distributions (B, K), and two views of the same unlabeled images
    (B_u, H, W, 3), weakly and strongly augmented.

    The student sees the strong view with the label that the teacher gives to the same pixels;
    `evaluate` and `ema` are the student's. BatchNorm's moving statistics are updated once a step in
    each network: in the teacher by its one pass over labeled, weak and strong images, in the
    student by its pass over the strong ones.

    Args:
      teacher: a built Keras classifier, images -> logits (B, K).
      student: another one, with its own weights.
      supervised_weight: factor of the teacher's loss on labeled images. For this argument and the
        next ones see `uda.Objective`.
      uda_weight: factor of the UDA loss at the end of its ramp; 0 is off.
      uda_temperature: τ that sharpens the weak view's distribution.
      uda_threshold: least confidence of the sharpened distribution that counts.
      uda_ramp_steps: steps over which the factor grows from 0.
      label_smoothing: label smoothing of the teacher's labeled examples.
      adjustment: added to the logits in the loss of labeled examples, the teacher's and the
        student's; see `FeedbackTrainer`.
      weight_decay: λ in λ·Σ½‖v‖² of each network.
      rematerialize: keeps only the inputs of both networks' blocks for the backward passes; for the
        student see `FeedbackTrainer`.
      options: feedback, pseudo_labels, feedback_weight, batch_factor, baseline_decay, ema_decay,
        accumulation, seed: see `FeedbackTrainer`.

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
        common = {
            "adjustment": adjustment,
            "weight_decay": weight_decay,
            "rematerialize": rematerialize,
            **options,
        }
        super().__init__(teacher, student, logged=logged, name="meta_pseudo_labels", **common)
        self.teacher_forward = training_pass(teacher, rematerialize)
        self.objective = uda.Objective(
            supervised_weight,
            uda_weight,
            uda_temperature,
            uda_threshold,
            uda_ramp_steps,
            label_smoothing,
            weight_decay,
            adjustment,
        )

    def set_layer_rates(self, decay: float = 1.0, head_steps: int = 0) -> None:
        """Does what `Trainer.set_layer_rates` does, for the teacher, too."""
        super().set_layer_rates(decay, head_steps)
        self.teacher_layer_rates = layer_rates.find(self.teacher, decay, head_steps)

    def _inputs(self, data: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        (x, y), (x_weak, x_strong) = two_pairs(data, "((x, y), (x_weak, x_strong))")
        x, x_weak, x_strong = in_one_dtype(x, x_weak, x_strong)
        return x, y, x_strong, x_weak

    def _teacher_pass(
        self, x: tf.Tensor, x_u: tf.Tensor, given: tf.Tensor, step: Step
    ) -> tuple[tf.Tensor, uda.Logits]:
        z = uda.forward(
            self.teacher_forward, x, given, x_u, 2 * self.seed, step.number, step.part, step.parts
        )
        return z.strong, z

    def _other_losses(
        self, z: uda.Logits, targets: tf.Tensor, given: tf.Tensor, step: Step
    ) -> tf.Tensor:
        loss, values = self.objective(self.teacher, z, targets, step.number)  # ()
        for name, value in values.items():
            self.logged["teacher_top1" if name == "top1" else name].update_state(value)
        return loss
