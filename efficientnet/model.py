"""EfficientNet as a functional Keras model.

The arithmetic and the layer names are those of ``tf.keras.applications.EfficientNetB0`` to ``B7``,
so that weights travel by layer name. The differences are what semi-supervised training needs:

- every variant up to L2,
- noise that belongs to the example (:mod:`nets.noise`),
- synchronized batch normalization that survives saving,
- initial weights that are a function of a seed,
- strides for images of at most 64 pixels,
- logits as the output,
- normalization without its own weights.

Source: Tan and Le, "EfficientNet", ICML 2019, and the authors' code (github.com/tensorflow/tpu,
models/official/efficientnet).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from cli.errors import InputError
from data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from efficientnet.architectures import (
    ARCHITECTURES,
    BASELINE_STRIDES,
    Block,
    blocks,
    stem_and_head,
)
from nets.layers import Layers, Normalize
from nets.noise import Dropout, StochasticDepth

Activation = Callable[[str], tf.keras.layers.Layer]
"""Function that makes an activation from its layer's name."""


def EfficientNet(
    name: str = "b0",
    *,
    num_classes: int,
    image_size: int | None = None,
    width: float | None = None,
    depth: float | None = None,
    dropout: float | None = None,
    survival_probability: float = 0.8,
    stem_stride: int = 2,
    strides: Sequence[int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    sync_batch_norm: bool = False,
    batch_norm_momentum: float = 0.99,
    seed: int | None = None,
) -> tf.keras.Model:
    """Builds one variant of EfficientNet.

    The model maps RGB images, float (B, H, W, 3) in 0-255, to logits (B, K). The logits are
    float32, also under a mixed-precision policy (the global one at the time of the call). The
    layer ``avg_pool`` gives the pooled features (B, C), ``top_activation`` the last feature map.

    For images of about 32 pixels ``strides=SMALL_IMAGE_STRIDES`` leaves a 4x4 map, as in the Noisy
    Student release's SVHN model. With ``stem_stride=1`` the same strides take 16 pixels to a 4x4
    map, and ``strides=(1, 1, 1, 2, 1, 1, 1)`` 8 pixels. ``width`` and ``depth`` below 1 make the
    network small enough for a data set of a few thousand images.

    Args:
        name: a key of :data:`efficientnet.architectures.ARCHITECTURES`.
        num_classes: K, at least 1.
        image_size: side of the square input in pixels; None: any height and width.
        width: width coefficient, above 0; None: the variant's.
        depth: depth coefficient, above 0; None: the variant's.
        dropout: dropout rate before the classifier, in [0, 1); None: the variant's.
        survival_probability: probability that the residual branch at the depth's far end is kept,
            in (0, 1]. 1 turns stochastic depth off. Both papers use 0.8 for every variant.
        stem_stride: 1 or 2.
        strides: stride of each of the seven stages, 1 or 2; None: the baseline's.
        mean: number a channel, in 0-255, that is subtracted from the input.
        std: number a channel, in 0-255 units, that then divides it.
        sync_batch_norm: whether batch statistics are over all replicas, not over each alone.
        batch_norm_momentum: momentum of the moving averages, in [0, 1). The authors use 0.99; a
          training of a few hundred steps needs 0.9.
        seed: makes the initial weights a function of (seed, layer name); None: random weights.

    Returns:
        The model, named ``efficientnet_`` and the variant's name.

    Raises:
        InputError: an unknown variant or an argument out of its range; the message says which.
    """
    if name not in ARCHITECTURES:
        raise InputError(
            f"there is no EfficientNet variant {name!r}; known: {', '.join(ARCHITECTURES)}"
        )
    if not num_classes or num_classes < 1:
        raise InputError(f"EfficientNet needs num_classes of at least 1, not {num_classes}")
    if stem_stride not in (1, 2):
        raise InputError(f"EfficientNet stem_stride must be 1 or 2, not {stem_stride}")

    architecture = ARCHITECTURES[name]
    width = architecture.width if width is None else width
    depth = architecture.depth if depth is None else depth
    dropout = architecture.dropout if dropout is None else dropout
    layout = blocks(
        width,
        depth,
        BASELINE_STRIDES if strides is None else strides,
        survival_probability,
        architecture.lite,
    )
    stem, head = stem_and_head(width, architecture.lite)
    make = Layers(sync_batch_norm, batch_norm_momentum, seed)
    activation = make.relu6 if architecture.lite else make.swish

    inputs = tf.keras.Input((image_size, image_size, 3), name="images")
    x = Normalize(mean, std, name="normalize")(inputs)
    x = make.conv("stem_conv", stem, kernel=3, stride=stem_stride)(x)
    x = make.batch_norm("stem_bn")(x)
    x = activation("stem_activation")(x)
    for block in layout:
        x = _inverted_residual(x, block, make, activation)
    x = make.conv("top_conv", head)(x)
    x = make.batch_norm("top_bn")(x)
    x = activation("top_activation")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)  # (B, C)
    if dropout != 0:
        x = Dropout(dropout, noise_id="top_dropout", name="top_dropout")(x)
    x = make.classifier("predictions", num_classes)(x)  # (B, K)
    return tf.keras.Model(inputs, x, name=f"efficientnet_{name}")


def _inverted_residual(
    inputs: tf.Tensor, block: Block, make: Layers, activation: Activation
) -> tf.Tensor:
    """Adds an inverted residual block.

    It expands, convolves each channel, gates the channels and projects back. The input is added
    where the shapes allow it.
    """
    name = block.name
    filters = block.filters_in * block.expand
    x = inputs
    if block.expand != 1:
        x = make.conv(f"{name}_expand_conv", filters)(x)
        x = make.batch_norm(f"{name}_expand_bn")(x)
        x = activation(f"{name}_expand_activation")(x)
    x = make.depthwise(f"{name}_dwconv", block.kernel, block.stride)(x)
    x = make.batch_norm(f"{name}_bn")(x)
    x = activation(f"{name}_activation")(x)

    if block.squeeze:
        # (B, 1, 1, filters)
        gate = tf.keras.layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze")(x)
        gate = make.conv(f"{name}_se_reduce", block.squeeze, bias=True, activation="swish")(gate)
        gate = make.conv(f"{name}_se_expand", filters, bias=True, activation="sigmoid")(gate)
        x = tf.keras.layers.Multiply(name=f"{name}_se_excite")([x, gate])

    x = make.conv(f"{name}_project_conv", block.filters_out)(x)
    x = make.batch_norm(f"{name}_project_bn")(x)
    if block.has_skip:
        if block.survival_probability < 1:
            x = StochasticDepth(
                block.survival_probability, noise_id=f"{name}_drop", name=f"{name}_drop"
            )(x)
        x = tf.keras.layers.Add(name=f"{name}_add")([x, inputs])
    return x
