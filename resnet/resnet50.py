"""ResNet-50 v1.5 as a functional Keras model: the stride is on the 3x3 convolution.

This is the form that published tables report.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1. The place
of the stride is that of later implementations (torchvision, the Meta Pseudo Labels authors'). It
gives half a point more ImageNet accuracy than the paper's stride on the first 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from cli.errors import InputError
from data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from nets.layers import Layers, Normalize
from nets.noise import Dropout

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks and inner channels of the four stages; a block gives four times its inner channels."""


def ResNet50(
    name: str = "resnet50",
    *,
    num_classes: int,
    image_size: int | None = None,
    dropout: float = 0.0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    sync_batch_norm: bool = False,
    batch_norm_momentum: float = 0.99,
    batch_norm_epsilon: float = 1e-3,
    seed: int | None = None,
) -> tf.keras.Model:
    """Builds ResNet-50: 25,557,032 parameters with 1,000 classes.

    The model maps RGB images, float (B, H, W, 3) in 0-255, to float32 logits (B, K), also under a
    mixed-precision policy. The layer ``avg_pool`` gives the pooled features (B, 2048). Strided
    layers are padded equally on both sides, as in the paper's code, torchvision and
    keras.applications. The scale of a block's last batch normalization starts at 1.

    Args:
        name: name of the model.
        num_classes: K, the number of classes.
        image_size: side of the square input in pixels; None: any height and width.
        dropout: dropout rate before the classifier, in [0, 1).
        mean: number a channel, in 0-255, that is subtracted from the input.
        std: number a channel, in 0-255 units, that then divides it.
        sync_batch_norm: whether batch statistics are over all replicas, not over each alone.
        batch_norm_momentum: momentum of the moving averages, in [0, 1).
        batch_norm_epsilon: number added to the variance. The Meta Pseudo Labels release uses 1e-3,
          torchvision 1e-5.
        seed: makes the initial weights a function of (seed, layer name); None: random weights.

    Raises:
        InputError: an argument out of its range.
    """
    if num_classes < 1:
        raise InputError(f"ResNet-50 needs num_classes of at least 1, not {num_classes}")
    make = Layers(sync_batch_norm, batch_norm_momentum, seed, batch_norm_epsilon)
    inputs = tf.keras.Input((image_size, image_size, 3), name="images")
    x = Normalize(mean, std, name="normalize")(inputs)
    x = make.conv("stem_conv", 64, kernel=7, stride=2, symmetric=True)(x)
    x = make.batch_norm("stem_bn")(x)
    x = tf.keras.layers.ReLU(name="stem_activation")(x)
    # Elsewhere the border is minus infinity. After ReLU a border of zeros gives the same maximum.
    x = tf.keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = tf.keras.layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, (blocks, filters) in enumerate(STAGES, start=1):
        for block in range(blocks):
            x = _bottleneck(
                x,
                f"block{stage}{'abcdef'[block]}",
                filters,
                2 if stage > 1 and block == 0 else 1,
                make,
            )
    x = tf.keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)  # (B, 2048)
    if dropout != 0:
        x = Dropout(dropout, noise_id="top_dropout", name="top_dropout")(x)
    x = make.classifier("predictions", num_classes)(x)  # (B, K)
    return tf.keras.Model(inputs, x, name=name)


def _bottleneck(inputs: tf.Tensor, name: str, filters: int, stride: int, make: Layers) -> tf.Tensor:
    """Adds a bottleneck block: 1x1, 3x3 with the stride, 1x1 to four times the channels.

    The input is added, projected where its shape differs.
    """
    shortcut = inputs
    if stride != 1 or inputs.shape[-1] != 4 * filters:
        shortcut = make.conv(f"{name}_shortcut_conv", 4 * filters, stride=stride)(inputs)
        shortcut = make.batch_norm(f"{name}_shortcut_bn")(shortcut)
    x = make.conv(f"{name}_conv1", filters)(inputs)
    x = make.batch_norm(f"{name}_bn1")(x)
    x = tf.keras.layers.ReLU(name=f"{name}_activation1")(x)
    x = make.conv(f"{name}_conv2", filters, kernel=3, stride=stride, symmetric=True)(x)
    x = make.batch_norm(f"{name}_bn2")(x)
    x = tf.keras.layers.ReLU(name=f"{name}_activation2")(x)
    x = make.conv(f"{name}_conv3", 4 * filters)(x)
    x = make.batch_norm(f"{name}_bn3")(x)
    x = tf.keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return tf.keras.layers.ReLU(name=f"{name}_activation")(x)
