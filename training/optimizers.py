"""The papers' optimizers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from stages.errors import InputError


class RMSProp(tf.keras.optimizers.Optimizer):
    """RMSProp with TensorFlow 1's semantics, which EfficientNet and Noisy Student were trained with.

    For gradient g, learning rate η, decay ρ, momentum μ:

        ms  <- ρ·ms + (1 − ρ)·g²          ms starts at 1 (Keras starts it at 0: first steps about 3 times larger)
        mom <- μ·mom + η·g / sqrt(ms + ε)  ε inside the root, η inside the momentum buffer
        θ   <- θ − mom

    Each variable is updated by TensorFlow 1's own kernel, one op a variable.
    """

    def __init__(
        self,
        learning_rate: float | tf.keras.optimizers.schedules.LearningRateSchedule = 0.016,
        rho: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 1e-3,
        name: str = "RMSProp",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
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
        self._mean_squares = [self.add_variable_from_reference(v, "mean_square", initial_value=tf.ones(v.shape, v.dtype)) for v in var_list]
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
        """Keras's config."""
        config = super().get_config()
        config.update(
            learning_rate=self._serialize_hyperparameter(self._learning_rate),
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
        )
        return config


def build(config: Any, learning_rate: tf.keras.optimizers.schedules.LearningRateSchedule) -> tf.keras.optimizers.Optimizer:
    """The optimizer of a train section.

    Args:
      config: `name` ("rmsprop", "sgd", "adam"), `momentum`, `nesterov` (of "sgd"; may be absent), `clip_norm` (global norm, after the
        cross-replica sum; 0 is off).
      learning_rate: a schedule over optimizer steps.

    Raises:
      InputError: unknown name.
    """
    clip = {"global_clipnorm": config.clip_norm} if config.clip_norm else {}
    if config.name == "rmsprop":
        return RMSProp(learning_rate, momentum=config.momentum, **clip)
    if config.name == "sgd":
        return tf.keras.optimizers.SGD(learning_rate, momentum=config.momentum, nesterov=config.get("nesterov", False), **clip)
    if config.name == "adam":
        return tf.keras.optimizers.Adam(learning_rate, **clip)
    raise InputError(f"optimizer.name: no optimizer {config.name!r}; known: rmsprop, sgd, adam")
