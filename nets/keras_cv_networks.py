"""Classifiers on keras-cv's backbones, as networks of the project, and their published weights.

A network is a backbone of keras-cv, average pooling, dropout and a dense layer. Three things are
changed in the backbone. None of them changes what the backbone computes when it is applied:

- Its names of blocks become the project's (`nets.names`), for frozen blocks and rematerialization.
- Its stochastic depth draws from a stateful generator; `nets.noise.StochasticDepth` takes its
  place.
- Its initial weights are drawn again, each from the seed and its place in the network. keras-cv
  itself gives equal numbers to all EfficientNetV2 kernels of one shape.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from cli.errors import InputError, one_line
from nets.keras_cv_backbones import find, of_preset
from nets.layers import Layers, Normalize
from nets.names import repeat_letter
from nets.noise import Dropout, StochasticDepth

MEAN, STD = (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
"""Normalization for keras-cv's published weights: pixels in 0-1 (its `include_rescaling`)."""


def KerasCVNetwork(
    name: str,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    image_size: int | None = None,
    dropout: float = 0.0,
    survival_probability: float = 0.8,
    sync_batch_norm: bool = False,
    batch_norm_momentum: float | None = None,
    seed: int | None = None,
) -> tf.keras.Model:
    """Builds a classifier: RGB images, float (B, H, W, 3) in 0-255 -> float32 logits (B, K).

    Args:
      name: a name of `nets.keras_cv_backbones.BACKBONES`.
      num_classes: K.
      mean: subtracted from the input, a number a channel, in 0-255.
      std: then divides the input, a number a channel, in 0-255.
      image_size: side of the square input in pixels; None: any height and width.
      dropout: rate before the classifier, in [0, 1).
      survival_probability: survival probability of the last block, in (0, 1]; of EfficientNetV2
        only.
      sync_batch_norm: whether BatchNorm takes its statistics over all replicas.
      batch_norm_momentum: momentum of the moving averages, in [0, 1); None: the backbone's own.
      seed: makes the initial weights a function of (seed, place in the network); None: random ones.

    Raises:
      InputError: an argument out of its range, or keras-cv cannot be imported.
    """
    if num_classes < 1:
        raise InputError(f"{name} needs num_classes of at least 1, not {num_classes}")
    row = find(name)
    options: dict[str, Any] = dict(row.options)
    if row.kind == "EfficientNetV2Backbone":
        options["skip_connection_dropout"] = 1.0 - survival_probability
    images = tf.keras.Input((image_size, image_size, 3), name="images")
    normalized = Normalize(mean, std, name="normalize")(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one initializer for many kernels; `_draw` mends it
        backbone = getattr(_package(name).models, row.kind)(
            include_rescaling=False, input_tensor=normalized, **options
        )
    # A functional model called on a tensor makes new nodes; the first of them continues ours.
    x = backbone.output._keras_history.layer.get_output_at(0)
    x = tf.keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if dropout != 0:
        x = Dropout(dropout, noise_id="top_dropout", name="top_dropout")(x)
    x = Layers(sync_batch_norm, 0.99, seed).classifier("predictions", num_classes)(x)  # (B, K)
    # The copy has one node a layer, and the project's names.
    model = tf.keras.models.clone_model(
        tf.keras.Model(images, x, name=name.replace("/", "_")), clone_function=_renaming()
    )
    for layer in _parts(model):
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            if sync_batch_norm:
                # The fused kernel sees one replica only.
                layer.synchronized, layer.fused = True, False
            layer.momentum = layer.momentum if batch_norm_momentum is None else batch_norm_momentum
        if hasattr(layer, "survival_probability") and isinstance(
            getattr(layer, "dropout", None), tf.keras.layers.Dropout
        ):
            block = f"{layer.name}drop"
            layer.dropout = StochasticDepth(1.0 - layer.dropout.rate, noise_id=block, name=block)
    if seed is not None:
        _draw(model, seed)
    return model


def load_preset(network: tf.keras.Model, preset: str) -> None:
    """Loads published weights of keras-cv into a network of `KerasCVNetwork`.

    The network must normalize by `MEAN` and `STD`. A `..._classifier` preset has the classes of
    ImageNet, and its classifier is loaded too. With any other preset, the network's classifier
    stays as it is. Files in `folder(preset)` go before a download.

    Args:
      network: a network on the backbone of the preset.
      preset: keras-cv's name, such as `efficientnetv2_b0_imagenet`.

    Raises:
      InputError: no such preset, files that cannot be fetched or read, weights of another network,
        or a network with another normalization.
    """
    kind, local, of_classifier = _class_of(preset), folder(preset), preset.endswith("_classifier")
    normalize = network.get_layer("normalize")
    if (normalize.mean, normalize.std) != (MEAN, STD):
        raise InputError(
            f"weights {preset} of keras-cv expect mean {MEAN} and std {STD}, not"
            f" {normalize.mean} and {normalize.std}"
        )
    try:
        loaded = kind.from_preset(str(local) if (local / "config.json").exists() else preset)
    except Exception as error:
        raise _cannot_have(preset, error) from error
    backbone = loaded.backbone if of_classifier else loaded
    if not backbone.include_rescaling:
        raise InputError(
            f"weights {preset} of keras-cv in {local}: the backbone does not rescale its input, so"
            " what it expects is unknown"
        )
    pairs = list(
        zip(
            _weighted(backbone),
            [layer for layer in _weighted(network) if layer.name != "predictions"],
        )
    )
    if of_classifier:
        pairs.append((loaded.layers[-1], network.get_layer("predictions")))
    shapes = [[[tuple(w.shape) for w in layer.weights] for layer in side] for side in zip(*pairs)]
    if shapes[0] != shapes[1] or len(_weighted(backbone)) != len(_weighted(network)) - 1:
        raise InputError(
            f"weights {preset} of keras-cv do not fit {network.name} with"
            f" {network.output_shape[-1]} classes"
        )
    for source, target in pairs:
        target.set_weights(source.get_weights())


def fetch(preset: str) -> tuple[Path, ...]:
    """Returns the files of published weights; downloads them if they are missing.

    Raises:
      InputError: no such preset, or files that cannot be fetched.
    """
    kind, local = _class_of(preset), folder(preset)
    if (local / "config.json").exists():
        files = tuple(local / name for name in FILES)
        if not all(file.is_file() for file in files):
            raise InputError(f"{local} lacks one of {', '.join(FILES)}; put both there")
        return files
    try:
        import kagglehub  # as keras-cv does, which then finds the files

        handle = kind.presets[preset]["kaggle_handle"].removeprefix("kaggle://")
        return tuple(Path(kagglehub.model_download(handle, name)) for name in FILES)
    except Exception as error:
        raise _cannot_have(preset, error) from error


def _class_of(preset: str) -> Any:
    """Returns keras-cv's class that published weights belong to. Raises InputError."""
    row, models = find(of_preset(preset)), _package(preset).models
    return models.ImageClassifier if preset.endswith("_classifier") else getattr(models, row.kind)


def _cannot_have(preset: str, error: Exception) -> InputError:
    handle = _class_of(preset).presets[preset]["kaggle_handle"]
    url = handle.replace("kaggle://", "https://www.kaggle.com/models/")
    return InputError(
        f"weights {preset} of keras-cv: {one_line(error)}. Download {' and '.join(FILES)} from "
        f"{url} and put them into {folder(preset)}"
    )


FILES = ("config.json", "model.weights.h5")
"""Names of the files of published weights."""


def folder(preset: str) -> Path:
    """Returns the folder for published weights that users have fetched themselves."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras_cv" / preset


def _package(what: str) -> Any:
    """Imports and returns keras-cv. Raises InputError."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # keras-core says which backend it uses
            import keras_cv
    except Exception as error:
        raise InputError(
            f"{what} needs the package keras-cv, which cannot be imported ({one_line(error)})"
        ) from error
    return keras_cv


def _parts(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """Returns all layers, those within blocks included."""
    return (part for part in model.submodules if isinstance(part, tf.keras.layers.Layer))


def _weighted(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    return [layer for layer in model.layers if layer.weights]


def _draw(model: tf.keras.Model, seed: int) -> None:
    """Draws each kernel anew from its layer's own initializer.

    The numbers are a function of (seed, place in the network).
    """
    place = 0
    for layer in _parts(model):
        for variable, initializer in (
            ("kernel", "kernel_initializer"),
            ("depthwise_kernel", "depthwise_initializer"),
        ):
            if isinstance(kernel := getattr(layer, variable, None), tf.Variable):
                place += 1
                config = {
                    **(kind := getattr(layer, initializer)).get_config(),
                    "seed": zlib.crc32(f"{seed}/{place}".encode()) & 0x7FFFFFFF,
                }
                kernel.assign(type(kind).from_config(config)(kernel.shape, kernel.dtype))


def _renaming() -> Callable[[tf.keras.layers.Layer], tf.keras.layers.Layer]:
    """Returns a function for `clone_model` that copies layers under the project's names of blocks.

    A layer of MobileNetV3 without its own name gets the name of the block before it.
    """
    current = "stem"

    def copy(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        nonlocal current
        config, name = layer.get_config(), _block(layer.name)
        if name is not None:
            current = name.partition("_")[0]
        elif current and re.match(r"(re_lu|multiply|squeeze_and_excite2d|tf\.)", layer.name):
            name = f"{current}_{layer.name.replace('.', '_')}"
        if name:
            config["name"] = name
        return type(layer).from_config(config)

    return copy


def _block(name: str) -> str | None:
    """Returns the project's name of a backbone's layer; None if the layer keeps its own."""
    if found := re.fullmatch(r"(?:conv1|(pool)1|Conv)(?:_((?!1)\w+))?", name):
        return f"stem_{found[2] or found[1] or 'conv'}"
    if found := re.fullmatch(r"v2_stack_(\d+)_block(\d+)_(\w+)", name):  # ResNets
        return f"block{int(found[1]) + 1}{repeat_letter(int(found[2]) - 1)}_{found[3]}"
    if found := re.fullmatch(r"expanded_conv_(?:(\d+)_)?([a-zA-Z]\w*)", name):  # MobileNetV3
        return f"block{int(found[1] or 0) + 1}a_{found[2]}"
    if found := re.fullmatch(r"conv(\d+)_block_(\d+)_(\w+)", name):  # DenseNet
        return f"block{int(found[1]) - 1}{repeat_letter(int(found[2]))}_{found[3]}"
    # DenseNet's transition is its own block.
    if found := re.fullmatch(r"pool([2-9])_(\w+)", name):
        return f"block{int(found[1]) - 1}transition_{found[2]}"
    return (
        name
        if re.match(r"(block\d+[a-z]+_|stem_)", name)
        else "top_" + name
        if name.startswith(("Conv_1", "post_"))
        else None
    )
