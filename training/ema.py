"""Exponential moving average of a model's variables.

The averaged model is evaluated, labels the images and is exported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

MEAN, FIRST = tf.VariableAggregation.MEAN, tf.VariableAggregation.ONLY_FIRST_REPLICA


class ExponentialMovingAverage(tf.Module):
    """Moving average of a model's variables, BatchNorm's moving statistics included.

        shadow <- shadow − (1 − d_t)·(shadow − value),   d_t = min(decay, (1 + t)/(10 + t))

    t is the number of finished optimizer steps. Each shadow starts at its variable's value. The
    ramp of d_t and the average of moving statistics follow the release; Keras's `use_ema` has
    neither.

    Args:
      variables: float variables; create inside the strategy's scope.
      decay: in [0, 1); 0 makes the shadows copies.
    """

    def __init__(self, variables: Sequence[tf.Variable], decay: float):
        super().__init__(name="ema")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self._variables = [v for v in variables if v.dtype.is_floating]
        # ON_READ: each replica keeps its own shadow, so that an update costs no communication.
        # Shadows that are equal on all replicas are read from the first one, since the mean of
        # three equal floats may be another float. Only moving statistics are read as a mean.
        self.shadows = [
            tf.Variable(
                v.read_value(),
                trainable=False,
                name="ema",
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=MEAN
                if getattr(v, "synchronization", None) == tf.VariableSynchronization.ON_READ
                else FIRST,
            )
            for v in self._variables
        ]

    def update(self, step: tf.Tensor) -> None:
        """Moves the shadows after an optimizer step. Call in replica context.

        Args:
          step: number of the step, 1 after the first.
        """
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, variable in zip(self.shadows, self._variables):
            shadow.assign_sub(tf.cast(1.0 - decay, shadow.dtype) * (shadow - variable))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Puts the averages into the model, and its own values back when the context ends.

        Call in cross-replica context.
        """
        kept = [v.read_value() for v in self._variables]
        for shadow, variable in zip(self.shadows, self._variables):
            variable.assign(shadow.read_value())
        try:
            yield
        finally:
            for value, variable in zip(kept, self._variables):
                variable.assign(value)
