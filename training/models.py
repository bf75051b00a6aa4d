"""From the `model` section of a config to a Keras model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from cli import settings
from cli.errors import InputError
from efficientnet import ARCHITECTURES, EfficientNet
from efficientnet.architectures import BASELINE_STRIDES, blocks
from resnet import ResNet50, WideResNet, is_wide_resnet
from training.settings import MODEL


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
      architecture: `name` (a row of `efficientnet.ARCHITECTURES`, `resnet50`, or `wrn_28_2` and its like) and any other argument of its
        builder: `efficientnet.EfficientNet`, `resnet.ResNet50` or `resnet.WideResNet`; None means its default.
      num_classes: K.
      mean: per-channel mean, in 0–255 units.
      std: per-channel standard deviation, in 0–255 units.
      seed: of the initial weights.
      sync_batch_norm: BatchNorm statistics over all replicas.

    Raises:
      InputError: no such architecture, or one without a setting that is given.
    """
    function, arguments = builder(architecture)
    return function(num_classes=num_classes, mean=mean, std=std, seed=seed, sync_batch_norm=sync_batch_norm, **arguments)


def builder(architecture: dict[str, Any]) -> tuple[Callable[..., tf.keras.Model], dict[str, Any]]:
    """The function that builds an architecture, and its arguments. Raises InputError: see `build`."""
    settings.check(architecture, MODEL, "model")
    arguments = {key: value for key, value in architecture.items() if value is not None}
    name = arguments["name"]
    if name in ARCHITECTURES:
        function: Callable[..., tf.keras.Model] = EfficientNet
        row = ARCHITECTURES[name]
        width, depth = arguments.get("width", row.width), arguments.get("depth", row.depth)
        try:
            blocks(width, depth, arguments.get("strides", BASELINE_STRIDES), arguments.get("survival_probability", 1.0))
        except InputError as error:
            raise InputError(f"model: {error}") from error
    elif name == "resnet50":
        function = ResNet50
    elif is_wide_resnet(name):
        function = WideResNet
    else:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f"model.name: no architecture {name!r}; known: {known}, resnet50, wrn_28_2 (or another depth and width)")
    own = {"num_classes", "mean", "std", "seed", "sync_batch_norm", "include_top"}  # the data's, the run's, and the method's
    unknown = sorted(set(arguments) - (set(inspect.signature(function).parameters) - own))
    if unknown:
        raise InputError(f"model.{unknown[0]}: {name} has no such setting; leave it None")
    return function, arguments
