"""The papers' optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from cli import settings
from training import addons
from training.losses import NOT_DECAYED
from training.settings import ADDONS, OPTIMIZER

NOT_LINEAR = ("rmsprop", "lars", "adam", *ADDONS)
"""Optimizers of a recipe that have no `linear_factor`."""


class RMSProp(tf.keras.optimizers.Optimizer):
    """RMSProp with TensorFlow 1's semantics, which trained EfficientNet and Noisy Student.

    For gradient g, learning rate η, decay ρ, momentum μ:

        ms  <- ρ·ms + (1 − ρ)·g²
        mom <- μ·mom + η·g / sqrt(ms + ε)
        θ   <- θ − mom

    ms starts at 1. Keras starts it at 0, which makes the first steps about 3 times larger. ε is
    inside the root, and η is inside the momentum buffer.

    Each variable is updated by TensorFlow 1's own kernel, one op a variable.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule = 0.016,
        rho: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        weight_decay: float | None = None,
        name: str = "RMSProp",
        **kwargs: Any,
    ):
        super().__init__(name=name, weight_decay=weight_decay, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the two slots of each variable."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._mean_squares = [
            self.add_variable_from_reference(
                v, "mean_square", initial_value=tf.ones(v.shape, v.dtype)
            )
            for v in var_list
        ]
        self._momentums = [self.add_variable_from_reference(v, "momentum") for v in var_list]

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable."""
        index = self._index_dict[self._var_key(variable)]
        dtype = variable.dtype
        tf.raw_ops.ResourceApplyRMSProp(
            var=variable.handle,
            ms=self._mean_squares[index].handle,
            mom=self._momentums[index].handle,
            lr=tf.cast(self.learning_rate, dtype),
            rho=tf.cast(self.rho, dtype),
            momentum=tf.cast(self.momentum, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.convert_to_tensor(gradient),
        )

    def get_config(self) -> dict[str, Any]:
        """Returns Keras's config."""
        config = super().get_config()
        config.update(
            learning_rate=self._serialize_hyperparameter(self._learning_rate),
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        return config


class LARS(tf.keras.optimizers.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, Algorithm 1).

    It is for batches of many thousands of images. Neither Keras nor Addons has it.

    For gradient g of weights θ, learning rate η, trust coefficient c, momentum μ:

        λ <- c·‖θ‖/‖g‖
        m <- μ·m + η·λ·g
        θ <- θ − m

    λ is 1 if either norm is 0, and for vectors: biases and BatchNorm's gamma and beta.

    g contains the weight decay if the loss does. ‖g‖ is then the norm of the sum. The paper writes
    the sum of the norms.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule = 0.1,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        weight_decay: float | None = None,
        name: str = "LARS",
        **kwargs: Any,
    ):
        super().__init__(name=name, weight_decay=weight_decay, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the slot of each variable."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._momentums = [self.add_variable_from_reference(v, "momentum") for v in var_list]

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable."""
        momentum = self._momentums[self._index_dict[self._var_key(variable)]]
        rate = tf.cast(self.learning_rate, variable.dtype)
        if variable.shape.rank > 1:
            weight_norm, gradient_norm = tf.norm(variable), tf.norm(gradient)
            ratio = self.trust_coefficient * tf.math.divide_no_nan(weight_norm, gradient_norm)
            rate = rate * tf.where(ratio > 0, ratio, 1.0)
        momentum.assign(self.momentum * momentum + rate * gradient)
        variable.assign_sub(momentum)

    def get_config(self) -> dict[str, Any]:
        """Returns Keras's config."""
        config = super().get_config()
        config.update(
            learning_rate=self._serialize_hyperparameter(self._learning_rate),
            momentum=self.momentum,
            trust_coefficient=self.trust_coefficient,
        )
        return config


def gradient(
    tape: tf.GradientTape,
    loss: tf.Tensor,
    variables: Sequence[tf.Variable],
    optimizer: tf.keras.optimizers.Optimizer,
) -> list[tf.Tensor | None]:
    """Returns `tape.gradient`, taken at the optimizer's loss scale and divided by it again.

    Only optimizers under mixed_float16 have a loss scale. The gradient is infinite or not a number
    if the scaled one overflowed. The optimizer then skips the step, counts it, and halves its
    scale.
    """
    if loss_scale(optimizer) is None:
        return tape.gradient(loss, variables)
    scaled = tape.gradient(loss, variables, output_gradients=optimizer.get_scaled_loss(tf.ones([])))
    return optimizer.get_unscaled_gradients(scaled)


def loss_scale(optimizer: tf.keras.optimizers.Optimizer) -> tf.Tensor | None:
    """Returns the factor of the loss before its gradient is taken, float32 (); None without one."""
    return (
        optimizer.loss_scale
        if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)
        else None
    )


def kept_by_clipping(
    gradients: Sequence[tf.Tensor], optimizer: tf.keras.optimizers.Optimizer
) -> tf.Tensor:
    """Returns what the optimizer's `global_clipnorm` c leaves of the gradients, float32 ().

    That is min(1, c/‖g‖), or 1 without clipping.
    """
    most = getattr(optimizer, "inner_optimizer", optimizer).global_clipnorm
    return tf.ones([]) if not most else tf.minimum(1.0, most / tf.linalg.global_norm(gradients))


def linear_factor(optimizer: tf.keras.optimizers.Optimizer) -> tf.Tensor | None:
    """Returns the factor by which a step follows its own gradient g.

    The step is -factor * g plus terms without g.

    With learning rate η and momentum μ the factor is η for SGD, with momentum or not, and (1 + μ)·η
    for Nesterov's variant. Decoupled weight decay and a loss scale leave it as it is. Clipping is
    not in it: see `kept_by_clipping`.

    Args:
      optimizer: a Keras optimizer, or a `LossScaleOptimizer` around one. After a step, the factor
        is that of the step just made. Before the first step, it is that of the first step.

    Returns:
      float32 (); None if the step is not known to be a multiple of its gradient. This is so for
      every optimizer except Keras's own SGD; subclasses of SGD may do anything. It is also so for
      SGD that clips each gradient or value by itself, or overwrites the weights with their average.
    """
    inner = optimizer if loss_scale(optimizer) is None else optimizer.inner_optimizer
    if (
        type(inner) is not tf.keras.optimizers.SGD
        or inner.clipnorm
        or inner.clipvalue
        or inner.ema_overwrite_frequency
    ):
        return None
    rate = tf.convert_to_tensor(learning_rate(optimizer))
    return (1.0 + inner.momentum) * rate if inner.nesterov else rate


def learning_rate(optimizer: tf.keras.optimizers.Optimizer) -> tf.Tensor:
    """Returns η of the step just made, float32 ().

    Keras's own attribute keeps an older value if that step was skipped.
    """
    schedule = getattr(getattr(optimizer, "inner_optimizer", None), "_learning_rate", None)
    if isinstance(schedule, tf.keras.optimizers.schedules.LearningRateSchedule):
        return schedule(tf.maximum(optimizer.iterations - 1, 0))
    return optimizer.learning_rate


def build(
    config: Any, learning_rate: tf.keras.optimizers.schedules.LearningRateSchedule
) -> tf.keras.optimizers.Optimizer:
    """Builds the optimizer of a train section.

    Args:
      config: `name` (one of `OPTIMIZERS`), `momentum`, `clip_norm` (global norm, after the
        cross-replica sum; 0 is off). These may be absent: `nesterov` (of "sgd"),
        `trust_coefficient` (of "lars"), `decoupled_weight_decay` λ. λ makes the step θ <- θ − η·λ·θ
        beside the optimizer's own (Loshchilov and Hutter 2019; with "adam" AdamW), on the same
        variables as the weight decay in the loss.
      learning_rate: a schedule over optimizer steps.

    Raises:
      InputError: unknown name, a value out of its range, or an optimizer of a package that is not
        installed.
    """
    settings.check_settings(config, OPTIMIZER, "optimizer")
    decay = config.get("decoupled_weight_decay") or None
    common: dict[str, Any] = {"weight_decay": decay}
    if config.clip_norm:
        common["global_clipnorm"] = config.clip_norm
    if config.name in ADDONS:
        clip = {"global_clipnorm": config.clip_norm or None}
        optimizer = addons.build(config.name, learning_rate, config.momentum, decay or 0.0, **clip)
    elif config.name == "rmsprop":
        optimizer = RMSProp(learning_rate, momentum=config.momentum, **common)
    elif config.name == "sgd":
        optimizer = tf.keras.optimizers.SGD(
            learning_rate,
            momentum=config.momentum,
            nesterov=config.get("nesterov", False),
            **common,
        )
    elif config.name == "lars":
        optimizer = LARS(
            learning_rate,
            momentum=config.momentum,
            trust_coefficient=config.get("trust_coefficient", 1e-3),
            **common,
        )
    else:
        optimizer = tf.keras.optimizers.Adam(learning_rate, **common)
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    return optimizer
