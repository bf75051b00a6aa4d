"""Wide ResNet as a functional Keras model.

Sources: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, Table 1: three groups of
(depth - 4) / 6 pre-activated blocks of 16k, 32k and 64k channels, where k is the width.
``variant="release"``: the Meta Pseudo Labels authors' code
(github.com/google-research/google-research, meta_pseudo_labels).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from cli.errors import InputError
from data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from nets.layers import Layers, Normalize
from nets.names import repeat_letter
from nets.noise import Dropout

VARIANTS = ("standard", "release")


def check_settings(model: Mapping[str, Any]) -> None:
    """Raises InputError where the name of a recipe's `model` is not a Wide ResNet's."""
    _parse(model["name"])


def WideResNet(
    name: str = "wrn_28_2",
    *,
    num_classes: int,
    image_size: int | None = None,
    variant: str = "standard",
    dropout: float = 0.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    sync_batch_norm: bool = False,
    batch_norm_momentum: float = 0.99,
    batch_norm_epsilon: float = 1e-3,
    seed: int | None = None,
) -> tf.keras.Model:
    """Builds the network ``wrn_<depth>_<width>``.

    The model maps RGB images, float (B, H, W, 3) in 0-255, to float32 logits (B, K), also under a
    mixed-precision policy. The layer ``avg_pool`` gives the pooled features (B, 64k).

    Args:
        name: ``wrn_28_2`` for depth 28 and width k = 2; any depth of 6n + 4 and any width.
        num_classes: K, the number of classes.
        image_size: side of the square input in pixels; None: any height and width.
        variant: ``standard``: a stem of 16 channels, ReLU, strided convolutions padded equally on
            both sides (the paper's; 1,467,610 parameters for wrn_28_2 with 10 classes).
            ``release``: a stem of 16k channels, leaky ReLU of slope 0.2, TensorFlow's padding
            (1,472,170).
        dropout: dropout rate before the classifier, in [0, 1).
        mean: number a channel, in 0-255, that is subtracted from the input.
        std: number a channel, in 0-255 units, that then divides it.
        sync_batch_norm: whether batch statistics are over all replicas, not over each alone.
        batch_norm_momentum: momentum of the moving averages, in [0, 1).
        batch_norm_epsilon: number added to the variance. The release uses 1e-3, the paper's code
            1e-5.
        seed: makes the initial weights a function of (seed, layer name); None: random weights.

    Raises:
        InputError: a name or an argument out of its range; the message says which.
    """
    depth, width = _parse(name)
    if variant not in VARIANTS:
        raise InputError(
            f"there is no Wide ResNet variant {variant!r}; known: {', '.join(VARIANTS)}"
        )
    if num_classes < 1:
        raise InputError(f"Wide ResNet needs num_classes of at least 1, not {num_classes}")
    net = _Builder(Layers(sync_batch_norm, batch_norm_momentum, seed, batch_norm_epsilon), variant)

    inputs = tf.keras.Input((image_size, image_size, 3), name="images")
    x = Normalize(mean, std, name="normalize")(inputs)
    x = net.make.conv("stem_conv", 16 * width if variant == "release" else 16, kernel=3)(x)
    for group, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range((depth - 4) // 6):
            x = net.block(
                x,
                f"block{group}{repeat_letter(block)}",
                filters,
                stride=2 if group > 1 and block == 0 else 1,
            )
    x = net.activated(x, "top_bn", "top_activation")
    x = tf.keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)  # (B, 64k)
    if dropout != 0:
        x = Dropout(dropout, noise_id="top_dropout", name="top_dropout")(x)
    x = net.make.classifier("predictions", num_classes)(x)  # (B, K)
    return tf.keras.Model(inputs, x, name=name)


class _Builder:
    """Builder of one variant's blocks."""

    def __init__(self, make: Layers, variant: str):
        self.make = make
        self.release = variant == "release"

    def activated(self, x: tf.Tensor, norm_name: str, activation_name: str) -> tf.Tensor:
        """Applies batch normalization and the variant's activation."""
        x = self.make.batch_norm(norm_name)(x)
        slope = 0.2 if self.release else 0.0
        return tf.keras.layers.LeakyReLU(slope, name=activation_name)(x)

    def block(self, inputs: tf.Tensor, name: str, filters: int, stride: int) -> tf.Tensor:
        """Adds a residual block: normalize, activate and convolve, twice.

        The input is added, projected where its shape differs.
        """
        symmetric = not self.release
        x = self.activated(inputs, f"{name}_bn1", f"{name}_activation1")
        shortcut = inputs
        if stride != 1 or inputs.shape[-1] != filters:
            # The projection takes the activated input, as in the paper's code.
            shortcut = self.make.conv(f"{name}_shortcut_conv", filters, stride=stride)(x)
        x = self.make.conv(f"{name}_conv1", filters, kernel=3, stride=stride, symmetric=symmetric)(
            x
        )
        x = self.activated(x, f"{name}_bn2", f"{name}_activation2")
        x = self.make.conv(f"{name}_conv2", filters, kernel=3)(x)
        return tf.keras.layers.Add(name=f"{name}_add")([x, shortcut])


def _parse(name: str) -> tuple[int, int]:
    """Returns depth and width."""
    match = re.fullmatch(r"wrn_(\d+)_(\d+)", name)
    depth, width = (int(number) for number in match.groups()) if match else (0, 0)
    if depth < 10 or depth % 6 != 4 or width < 1:
        raise InputError(
            f"there is no Wide ResNet {name!r}; the name is wrn_DEPTH_WIDTH with a depth of 10, "
            "16, 22, 28, ..., such as wrn_28_2"
        )
    return depth, width
