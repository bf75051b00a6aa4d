"""Names of each EfficientNet weight: here, in the authors' TensorFlow 1 checkpoints, in timm.

One table, :func:`weights`, lists every variable of a variant with its three names and its shape.
Import and export read nothing else. keras.applications uses this project's names, because the
models were given its layer names.

Sources of the names: the authors' code (github.com/tensorflow/tpu, models/official/efficientnet)
and timm (github.com/huggingface/pytorch-image-models). TensorFlow 1 numbers the convolutions and
normalizations of a block in the order of their calls. timm numbers the normalizations in the same
order, and names a block by (stage, repeat).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cli.errors import InputError
from efficientnet.architectures import (
    ARCHITECTURES,
    Block,
    blocks,
    coefficients,
    stage_repeats,
    stem_and_head,
)

# Axes that turn Keras's layout into PyTorch's, by kind of weight. A kind that is not listed has the
# same layout in both.
_TO_PYTORCH: dict[str, tuple[int, ...]] = {
    "conv": (3, 2, 0, 1),  # (h, w, in, out) -> (out, in, h, w)
    "depthwise": (2, 3, 0, 1),  # (h, w, channels, 1) -> (channels, 1, h, w)
    "dense": (1, 0),  # (in, out) -> (out, in)
}
# Names of EfficientNet-PyTorch for a layer, and for a layer of a block, by its Keras name or the
# name's ending.
_PYTORCH = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "se_reduce": "_se_reduce",
    "se_expand": "_se_expand",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_BATCH_NORM = (
    ("gamma", "weight"),
    ("beta", "bias"),
    ("moving_mean", "running_mean"),
    ("moving_variance", "running_var"),
)


class Weight(NamedTuple):
    """One variable of a network.

    Attributes:
        keras: ``<layer>/<variable>``, here and in keras.applications.
        tf1: name in a TensorFlow 1 checkpoint, below the model's scope.
        timm: name in a timm state dict.
        kind: "conv", "depthwise", "dense" or "vector".
        shape: shape in Keras's layout, which is also TensorFlow 1's.
    """

    keras: str
    tf1: str
    timm: str
    kind: str
    shape: tuple[int, ...]

    @property
    def is_classifier(self) -> bool:
        """Tells whether its shape depends on the number of classes."""
        return self.keras.startswith("predictions/")

    @property
    def is_variance(self) -> bool:
        """Tells whether its values are variances, which are at least 0."""
        return self.keras.endswith("/moving_variance")

    @property
    def pytorch(self) -> str:
        """Returns its name in a state dict of EfficientNet-PyTorch."""
        layer, leaf = self.keras.partition("/")[0], self.timm.rpartition(".")[2]
        if not layer.startswith("block"):
            return f"{_PYTORCH[layer]}.{leaf}"
        number = self.tf1.partition("/")[0].partition("_")[2]
        return f"_blocks.{number}.{_PYTORCH[layer.partition('_')[2]]}.{leaf}"

    @property
    def timm_shape(self) -> tuple[int, ...]:
        """Returns the shape in PyTorch's layout."""
        axes = _TO_PYTORCH.get(self.kind)
        return tuple(self.shape[axis] for axis in axes) if axes else self.shape

    def to_timm(self, value: np.ndarray) -> np.ndarray:
        """Converts a value from Keras's layout to PyTorch's."""
        axes = _TO_PYTORCH.get(self.kind)
        return np.ascontiguousarray(value.transpose(axes)) if axes else value

    def from_timm(self, value: np.ndarray) -> np.ndarray:
        """Converts a value from PyTorch's layout to Keras's."""
        axes = _TO_PYTORCH.get(self.kind)
        return np.ascontiguousarray(value.transpose(np.argsort(axes))) if axes else value


def weights(width: float, depth: float, num_classes: int, lite: bool = False) -> tuple[Weight, ...]:
    """Lists every variable of a variant, moving averages included, in the order of the layers.

    Args:
        width: width coefficient, above 0.
        depth: depth coefficient, above 0.
        num_classes: K, outputs of the classifier.
        lite: see :class:`efficientnet.architectures.Architecture`.
    """
    stem, head = stem_and_head(width, lite)
    layout = blocks(width, depth, lite=lite)
    rows = [
        _conv("stem_conv", "stem/conv2d", "conv_stem", 3, 3, stem),
        *_batch_norm("stem_bn", "stem", 0, "bn1", stem),
    ]
    places = [
        (stage, repeat)
        for stage, repeats in enumerate(stage_repeats(depth, lite))
        for repeat in range(repeats)
    ]
    for number, (block, (stage, repeat)) in enumerate(zip(layout, places)):
        rows += _block(block, f"blocks_{number}", f"blocks.{stage}.{repeat}")
    rows += [
        _conv("top_conv", "head/conv2d", "conv_head", 1, layout[-1].filters_out, head),
        *_batch_norm("top_bn", "head", 0, "bn2", head),
        Weight(
            "predictions/kernel",
            "head/dense/kernel",
            "classifier.weight",
            "dense",
            (head, num_classes),
        ),
        Weight("predictions/bias", "head/dense/bias", "classifier.bias", "vector", (num_classes,)),
    ]
    return tuple(rows)


def of_architecture(architecture: Mapping[str, Any], num_classes: int) -> tuple[Weight, ...]:
    """Returns :func:`weights` of a model directory's ``architecture``.

    Its keys are ``name``, and ``width`` and ``depth`` where they differ from the variant's.

    Raises:
        InputError: the name is not an EfficientNet's.
    """
    name = architecture["name"]
    if name not in ARCHITECTURES:
        raise InputError(
            f"{name} is not an EfficientNet; other libraries' names are known for EfficientNets "
            "only"
        )
    width, depth, lite = coefficients(architecture)
    return weights(width, depth, num_classes, lite)


def _block(block: Block, tf1: str, timm: str) -> list[Weight]:
    """Lists the weights of an inverted residual block.

    Without an expansion, TensorFlow 1 and timm number one less, and timm calls the projection
    conv_pw.
    """
    name, inner = block.name, block.filters_in * block.expand
    rows: list[Weight] = []
    expands = int(block.expand != 1)
    if expands:
        rows.append(
            _conv(
                f"{name}_expand_conv",
                f"{tf1}/conv2d",
                f"{timm}.conv_pw",
                1,
                block.filters_in,
                inner,
            )
        )
        rows += _batch_norm(f"{name}_expand_bn", tf1, 0, f"{timm}.bn1", inner)
    rows.append(
        Weight(
            f"{name}_dwconv/depthwise_kernel",
            f"{tf1}/depthwise_conv2d/depthwise_kernel",
            f"{timm}.conv_dw.weight",
            "depthwise",
            (block.kernel, block.kernel, inner, 1),
        )
    )
    rows += _batch_norm(f"{name}_bn", tf1, expands, f"{timm}.bn{1 + expands}", inner)
    gate = (
        (f"{name}_se_reduce", f"{tf1}/se/conv2d", f"{timm}.se.conv_reduce", (inner, block.squeeze)),
        (
            f"{name}_se_expand",
            f"{tf1}/se/conv2d_1",
            f"{timm}.se.conv_expand",
            (block.squeeze, inner),
        ),
    )
    for layer, tf1_layer, timm_layer, channels in gate if block.squeeze else ():
        rows.append(_conv(layer, tf1_layer, timm_layer, 1, *channels))
        rows.append(
            Weight(
                f"{layer}/bias", f"{tf1_layer}/bias", f"{timm_layer}.bias", "vector", channels[1:]
            )
        )
    project = ("conv2d_1", "conv_pwl") if expands else ("conv2d", "conv_pw")
    rows.append(
        _conv(
            f"{name}_project_conv",
            f"{tf1}/{project[0]}",
            f"{timm}.{project[1]}",
            1,
            inner,
            block.filters_out,
        )
    )
    rows += _batch_norm(
        f"{name}_project_bn", tf1, 1 + expands, f"{timm}.bn{2 + expands}", block.filters_out
    )
    return rows


def _conv(
    keras: str, tf1: str, timm: str, kernel: int, filters_in: int, filters_out: int
) -> Weight:
    return Weight(
        f"{keras}/kernel",
        f"{tf1}/kernel",
        f"{timm}.weight",
        "conv",
        (kernel, kernel, filters_in, filters_out),
    )


def _batch_norm(keras: str, tf1: str, number: int, timm: str, channels: int) -> list[Weight]:
    scope = f"{tf1}/tpu_batch_normalization" + (f"_{number}" if number else "")
    return [
        Weight(f"{keras}/{leaf}", f"{scope}/{leaf}", f"{timm}.{theirs}", "vector", (channels,))
        for leaf, theirs in _BATCH_NORM
    ]
