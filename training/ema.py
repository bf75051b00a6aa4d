"""The exponential moving average of a model, which is what gets evaluated, labels the images and is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

MEAN, FIRST = tf.VariableAggregation.MEAN, tf.VariableAggregation.ONLY_FIRST_REPLICA


class ExponentialMovingAverage(tf.Module):
    """Shadows of all variables of a model, BatchNorm's moving statistics included.

        shadow <- shadow − (1 − d_t)·(shadow − value),   d_t = min(decay, (1 + t)/(10 + t))

    with t the number of finished optimizer steps; the shadow starts at the variable's value. The
    ramp and the moving statistics are the release's; Keras's `use_ema` has neither.

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
        # ON_READ: each replica keeps its own shadow, so that an update costs no communication. What
        # all replicas have alike is read from one of them, since the mean of three equal floats may
        # be another float; the others are the moving statistics.
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
        """Moves the shadows after the optimizer's step number `step` (1 after the first). Call in replica context."""
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, variable in zip(self.shadows, self._variables):
            shadow.assign_sub(tf.cast(1.0 - decay, shadow.dtype) * (shadow - variable))

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model holds the averages; outside, its own values again. Call in cross-replica context."""
        kept = [v.read_value() for v in self._variables]
        for shadow, variable in zip(self.shadows, self._variables):
            variable.assign(shadow.read_value())
        try:
            yield
        finally:
            for value, variable in zip(kept, self._variables):
                variable.assign(value)
