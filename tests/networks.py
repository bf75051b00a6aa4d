"""The smallest network that a training can be tested with.

TensorFlow traces it several times as fast as the recipes' networks.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from nets.layers import Layers, Normalize
from nets.noise import Dropout, StochasticDepth

NAME = "tests.networks:two_blocks"
"""`model.name` in a recipe."""


def two_blocks(
    num_classes: int,
    mean: Any,
    std: Any,
    seed: int,
    sync_batch_norm: bool = False,
    dropout: float = 0.2,
    batch_norm_momentum: float = 0.99,
) -> tf.keras.Model:
    """Builds stem, two blocks and classifier, with batch normalization and both kinds of noise."""
    make = Layers(sync_batch_norm, batch_norm_momentum, seed)
    inputs = tf.keras.Input([None, None, 3])
    x = make.conv("stem_conv", 8, kernel=3, stride=2)(
        Normalize(mean, std, name="normalize")(inputs)
    )
    for block in ("block1a", "block2a"):
        y = make.swish(f"{block}_swish")(make.batch_norm(f"{block}_bn")(x))
        y = make.depthwise(f"{block}_dwconv", kernel=3, stride=1)(make.conv(f"{block}_conv", 8)(y))
        x = tf.keras.layers.Add(name=f"{block}_add")(
            [x, StochasticDepth(0.8, name=f"{block}_drop")(y)]
        )
    x = tf.keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return tf.keras.Model(
        inputs, make.classifier("predictions", num_classes)(Dropout(dropout, name="top_dropout")(x))
    )


def flags(section: str) -> list[str]:
    """Returns flags that give a recipe's training for digits this network instead of its own."""
    unset = ("width", "depth", "stem_stride", "strides")  # settings of an EfficientNet
    return [
        f"--config.{section}.model.name={NAME}",
        *(f"--config.{section}.model.{name}=None" for name in unset),
    ]
