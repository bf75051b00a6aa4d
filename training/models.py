"""Builds a Keras model from the `model` section of a recipe.

`training.architectures` describes the contract of a builder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cli import settings
from cli.errors import InputError
from training import architectures
from training.architectures import UnfitNetwork
from training.settings import MODEL

if TYPE_CHECKING:
    import tensorflow as tf

_OFFERED = ("num_classes", "mean", "std", "seed", "sync_batch_norm")
"""Arguments that a builder gets beside the keys of `model`.

They come from the data and the run, never from the recipe.
"""


def build(
    architecture: dict[str, Any],
    num_classes: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    sync_batch_norm: bool = False,
    image_size: int | None = None,
) -> tf.keras.Model:
    """Builds a classifier: images float32 (B, H, W, 3) in 0–255 -> logits float32 (B, num_classes).

    Args:
      architecture: `name` (see `training.architectures.TABLE`, or `package.module:function`) and
        any other argument of its builder; None means the builder's default.
      num_classes: K.
      mean: per-channel mean, in 0–255 units.
      std: per-channel standard deviation, in 0–255 units.
      seed: seed of the initial weights.
      sync_batch_norm: whether BatchNorm takes its statistics over all replicas.
      image_size: side of the images in pixels, which the network must take; None: not known.

    Raises:
      InputError: there is no such architecture or setting, or a builder of the user's fails or
        returns a model that breaks the contract.
    """
    function, arguments = builder(architecture)
    name = architecture["name"]
    of_user = not architectures.find(name).in_table
    offered = dict(zip(_OFFERED, (num_classes, mean, std, seed, sync_batch_norm)))
    if of_user:
        if sync_batch_norm and not _takes(function, "sync_batch_norm"):
            raise InputError(
                f"model.name: {name} takes no sync_batch_norm; set sync_batch_norm=False in the"
                " recipe"
            )
        offered = {key: value for key, value in offered.items() if _takes(function, key)}
    try:
        model = function(**offered, **arguments)
    except Exception as error:
        if not of_user or isinstance(error, InputError):
            raise
        raise InputError(f"model.name: {name} fails, {architectures.place(error)}") from error
    if of_user:
        _require_classifier(model, name, num_classes)
    if image_size and any(side not in (None, image_size) for side in model.input_shape[1:3]):
        height, width = model.input_shape[1:3]
        raise UnfitNetwork(
            f"model.name: {name} takes images of {height}×{width} pixels only; they are"
            f" {image_size}×{image_size}"
        )
    return model


def builder(architecture: dict[str, Any]) -> tuple[Callable[..., tf.keras.Model], dict[str, Any]]:
    """Returns the function that builds an architecture, and its arguments.

    Raises:
      InputError: see `build`, for all that can be found without building.
    """
    settings.check_settings(architecture, MODEL, "model")
    arguments = {key: value for key, value in architecture.items() if value is not None}
    name = arguments["name"]
    family = architectures.find(name)
    if family.check:
        try:
            architectures.load(family.check)(arguments)
        except InputError as error:
            raise InputError(f"model: {error}") from error
    function = architectures.load(family.builder)
    if not family.in_table:
        del arguments["name"]
        if not _takes(function, "num_classes"):
            raise InputError(
                f"model.name: {name} takes no num_classes. It must take this keyword, because the "
                "data say how many classes there are"
            )
    unknown = sorted(key for key in arguments if key in _OFFERED or not _takes(function, key))
    if unknown:
        keys = ", ".join(f"model.{key}" for key in unknown)
        raise InputError(
            f"{keys}: {name} has no such"
            f" {'setting; leave it' if len(unknown) == 1 else 'settings; set them to'} None"
        )
    return function, arguments


def warning(architecture: dict[str, Any], image_size: int) -> str | None:
    """Returns a line of advice about an architecture for images of `image_size` pixels, or None."""
    function = architectures.find(architecture["name"]).warning
    return architectures.load(function)(architecture, image_size) if function else None


def _takes(function: Callable[..., Any], argument: str) -> bool:
    """Tells whether `function` takes `argument` by keyword."""
    parameters = inspect.signature(function).parameters.values()
    return any(
        p.kind is p.VAR_KEYWORD
        or (p.name == argument and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        for p in parameters
    )


def _require_classifier(model: Any, name: str, num_classes: int) -> None:
    """Raises InputError if the model of the user's builder `name` breaks the contract."""
    import tensorflow as tf

    from training.trainer import check_classifier

    wrong = None
    if not isinstance(model, tf.keras.Model) or not getattr(model, "inputs", None):
        wrong = (
            f"a {type(model).__name__}; it must return a functional or sequential tf.keras.Model"
        )
    elif (
        len(model.inputs) != 1
        or model.inputs[0].shape.rank != 4
        or model.inputs[0].shape[-1] != 3
        or model.inputs[0].dtype != tf.float32
    ):
        wrong = f"a model of {_shapes(model.inputs)}; it must take float32 images (B, H, W, 3)"
    elif (
        len(model.outputs) != 1
        or model.output_shape != (None, num_classes)
        or model.outputs[0].dtype != tf.float32
    ):
        wrong = (
            f"a model that gives {_shapes(model.outputs)}; it must give float32 logits (B,"
            f" {num_classes})"
        )
    if wrong:
        raise UnfitNetwork(f"model.name: {name} returns {wrong}")
    try:
        check_classifier(model, "network")
    except ValueError as error:
        raise UnfitNetwork(f"model.name: {name}: {error}") from error


def _shapes(tensors: list[tf.Tensor]) -> str:
    return ", ".join(f"{tensor.dtype.name} {tuple(tensor.shape)}" for tensor in tensors)
