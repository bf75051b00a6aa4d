"""From the `model` section of a config to a Keras model."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from efficientnet import ARCHITECTURES, EfficientNet
from stages.errors import InputError


def build(
    architecture: dict[str, Any],
    num_classes: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    sync_batch_norm: bool = False,
) -> tf.keras.Model:
    """Builds a classifier: images float32 (B, H, W, 3) in 0–255 -> logits float32 (B, num_classes).

    Args:
      architecture: `name` (a row of `efficientnet.ARCHITECTURES`) and any other argument of `EfficientNet`; None means its default.
      num_classes: K.
      mean: per-channel mean, in 0–255 units.
      std: per-channel standard deviation, in 0–255 units.
      seed: of the initial weights.
      sync_batch_norm: BatchNorm statistics over all replicas.

    Raises:
      InputError: no such architecture.
    """
    arguments = {key: value for key, value in architecture.items() if value is not None}
    if arguments["name"] not in ARCHITECTURES:
        raise InputError(f"model.name: no architecture {arguments['name']!r}; known: {', '.join(ARCHITECTURES)}")
    return EfficientNet(num_classes=num_classes, mean=mean, std=std, seed=seed, sync_batch_norm=sync_batch_norm, **arguments)
