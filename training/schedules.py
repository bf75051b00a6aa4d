"""Learning rates as functions of the optimizer step, the only clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from cli import settings
from training.settings import SCHEDULE


class WarmupExponential(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Staircase exponential decay with a linear warm-up, of EfficientNet and Noisy Student.

        η(t) = η₀·t/t_w                 for t < t_w
        η(t) = η₀·r^floor(t/t_d)        otherwise

    The decay is counted from step 0, and the warm-up only overrides it, as in the release. So after
    the warm-up the learning rate is already η₀·r^floor(t_w/t_d), not η₀.

    Args:
      base: η₀, already scaled by the labeled batch (0.016·B/256 in the paper's recipe).
      decay_steps: t_d, may be fractional (2.4 epochs).
      decay_rate: r (0.97).
      warmup_steps: t_w (5 epochs).
    """

    def __init__(
        self, base: float, decay_steps: float, decay_rate: float = 0.97, warmup_steps: float = 0
    ):
        self.base, self.decay_steps, self.decay_rate, self.warmup_steps = (
            base,
            decay_steps,
            decay_rate,
            warmup_steps,
        )

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate at `step`, float32 scalar."""
        step = tf.cast(step, tf.float32)
        decayed = self.base * self.decay_rate ** tf.floor(step / self.decay_steps)
        if not self.warmup_steps:
            return decayed
        return tf.where(step < self.warmup_steps, self.base * step / self.warmup_steps, decayed)

    def get_config(self) -> dict[str, Any]:
        """Returns Keras's config."""
        return {k: getattr(self, k) for k in ("base", "decay_steps", "decay_rate", "warmup_steps")}


class WarmupCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then half a cosine to 0 at `total_steps`.

    Optionally waits at 0 first, as Meta Pseudo Labels' student does. With s = t − t_wait:

        η(t) = 0                                                    for t < t_wait
        η(t) = η₀·s/t_w                                             for s < t_w
        η(t) = η₀ · ½(1 + cos(π·(s − t_w)/(T − t_wait − t_w)))      otherwise
    """

    def __init__(
        self, base: float, total_steps: int, warmup_steps: float = 0, wait_steps: float = 0
    ):
        self.base, self.total_steps, self.warmup_steps, self.wait_steps = (
            base,
            total_steps,
            warmup_steps,
            wait_steps,
        )

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate at `step`, float32 scalar."""
        step = tf.cast(step, tf.float32) - self.wait_steps
        length = max(self.total_steps - self.wait_steps - self.warmup_steps, 1)
        progress = tf.clip_by_value((step - self.warmup_steps) / length, 0.0, 1.0)
        cosine = self.base * 0.5 * (1.0 + tf.cos(math.pi * progress))
        warmup = self.base * tf.maximum(step, 0.0) / max(self.warmup_steps, 1)
        return tf.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self) -> dict[str, Any]:
        """Returns Keras's config."""
        return {k: getattr(self, k) for k in ("base", "total_steps", "warmup_steps", "wait_steps")}


def build(
    config: Any, *, batch_size: int, steps: int, steps_per_epoch: float
) -> tf.keras.optimizers.schedules.LearningRateSchedule:
    """Builds the schedule of a train section.

    Args:
      config: `name` ("exponential", "cosine", "constant"), `base` (learning rate per 256 labeled
        images), `warmup_epochs` (of a cosine at most a tenth of the run), `decay_epochs`,
        `decay_rate`.
      batch_size: labeled images a step, over all replicas; the only batch that scales the learning
        rate.
      steps: length of the run.
      steps_per_epoch: labeled images / batch_size, fractional.

    Raises:
      InputError: unknown name, or a value out of its range.
    """
    settings.check_settings(config, SCHEDULE, "schedule")
    base = config.base * batch_size / 256
    warmup = config.warmup_epochs * steps_per_epoch
    if config.name == "exponential":
        return WarmupExponential(
            base, config.decay_epochs * steps_per_epoch, config.decay_rate, warmup
        )
    if config.name == "cosine":
        return WarmupCosine(base, steps, min(warmup, steps / 10))
    return WarmupExponential(base, math.inf, 1.0, warmup)  # constant


def of_section(
    train: Mapping[str, Any], steps_per_epoch: float
) -> dict[str, tf.keras.optimizers.schedules.LearningRateSchedule]:
    """Builds the schedules of a resolved train section, by the network's name.

    Meta Pseudo Labels has the schedules of `teacher` and `student`. Other methods have one, under
    the name "".

    Args:
      train: as `resolve.section` returns it. A schedule with `base`, `warmup_steps` and
        `wait_steps` is a cosine, counted in steps.
      steps_per_epoch: labeled images / batch_size, fractional.

    Raises:
      InputError: unknown name.
    """
    batch, steps = train["batch_size"], train["steps"]
    settings = (
        {"": train["schedule"]}
        if "schedule" in train
        else {name: train[name]["schedule"] for name in ("teacher", "student")}
    )
    return {
        name: WarmupCosine(s["base"] * batch / 256, steps, s["warmup_steps"], s["wait_steps"])
        if "warmup_steps" in s
        else build(ConfigDict(s), batch_size=batch, steps=steps, steps_per_epoch=steps_per_epoch)
        for name, s in settings.items()
    }
