"""Layers of every network of the project: EfficientNets, and ResNets in :mod:`resnet`.

Initial weights, batch normalization's settings and the classifier's precision are choices of a
whole network; :class:`Layers` makes them in one place.

The Keras layers are what Keras 2.15 lacks: a normalization without weights, a batch normalization
that stays synchronized when it is saved, and a swish with a fast gradient.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from cli.errors import InputError
from cli.quiet import silent


class Layers(NamedTuple):
    """Makes the layers that have weights, with the choices that hold for the whole model.

    Initial weights are those of the EfficientNet and Meta Pseudo Labels authors: convolutions
    Normal(0, 2 / fan-out), not truncated; the classifier Uniform(±1 / sqrt(K)); biases 0.

    Attributes:
        sync_batch_norm: whether batch statistics are taken over all replicas.
        batch_norm_momentum: momentum of the moving averages, in [0, 1).
        seed: makes each layer's initial weights a function of (seed, layer name); None: random
          ones.
        batch_norm_epsilon: added to the variance.
    """

    sync_batch_norm: bool
    batch_norm_momentum: float
    seed: int | None
    batch_norm_epsilon: float = 1e-3

    def conv(
        self,
        name: str,
        filters: int,
        kernel: int = 1,
        stride: int = 1,
        bias: bool = False,
        activation: str | None = None,
        symmetric: bool = False,
    ) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a convolution that keeps the size except for its stride.

        With a stride TensorFlow pads an even-sized map at the bottom and on the right only.
        ``symmetric`` pads both sides equally, as PyTorch does; without a stride it makes no
        difference.
        """
        pad = kernel // 2 if symmetric and stride > 1 else 0
        layer = tf.keras.layers.Conv2D(
            filters,
            kernel,
            stride,
            padding="valid" if pad else "same",
            use_bias=bias,
            activation=activation,
            kernel_initializer=self._normal(name, fan_out=kernel * kernel * filters),
            name=name,
        )
        return (
            (lambda x: layer(tf.keras.layers.ZeroPadding2D(pad, name=f"{name}_pad")(x)))
            if pad
            else layer
        )

    def depthwise(self, name: str, kernel: int, stride: int) -> tf.keras.layers.Layer:
        """Returns a convolution of each channel by itself."""
        return tf.keras.layers.DepthwiseConv2D(
            kernel,
            stride,
            padding="same",
            use_bias=False,
            # The authors' fan-out counts the kernel's last axis, which is 1 here and not the number
            # of channels.
            depthwise_initializer=self._normal(name, fan_out=kernel * kernel),
            name=name,
        )

    def batch_norm(self, name: str) -> tf.keras.layers.Layer:
        """Returns a batch normalization that stays synchronized when it is saved."""
        return BatchNormalization(
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            synchronized=self.sync_batch_norm,
            name=name,
        )

    def swish(self, name: str) -> tf.keras.layers.Layer:
        """Returns swish: x * sigmoid(x)."""
        return Swish(name=name)

    def relu6(self, name: str) -> tf.keras.layers.Layer:
        """Returns ReLU6, min(max(x, 0), 6), which the Lite variants have instead of swish."""
        return tf.keras.layers.ReLU(6.0, name=name)

    def classifier(self, name: str, num_classes: int) -> tf.keras.layers.Layer:
        """Returns the dense layer (B, C) -> float32 logits (B, K)."""
        limit = 1.0 / math.sqrt(num_classes)
        return tf.keras.layers.Dense(
            num_classes,
            kernel_initializer=tf.keras.initializers.RandomUniform(
                -limit, limit, seed=self._layer_seed(name)
            ),
            # This holds under mixed precision too: a softmax of logits with 8 bits of mantissa is a
            # poor teacher.
            dtype="float32",
            name=name,
        )

    def _normal(self, name: str, fan_out: int) -> tf.keras.initializers.Initializer:
        # Not truncated, unlike keras.applications; the variance 2 / fan_out is the same.
        return tf.keras.initializers.RandomNormal(
            stddev=math.sqrt(2.0 / fan_out), seed=self._layer_seed(name)
        )

    def _layer_seed(self, name: str) -> int | None:
        """Returns a seed of the layer's own, from its name.

        So two processes agree, and a deeper variant does not change other layers' numbers.
        """
        return (
            None if self.seed is None else zlib.crc32(f"{self.seed}/{name}".encode()) & 0x7FFFFFFF
        )


@tf.custom_gradient
def swish(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Computes x * sigmoid(x), with a gradient that on the CPU is compiled into one loop.

    TensorFlow's own gradient takes eight operations, and each goes through memory (docs/scaling.md,
    "The step on a CPU").
    """
    return x * tf.sigmoid(x), lambda upstream: _swish_gradient()(x, upstream)


@functools.lru_cache(maxsize=1)
def _swish_gradient() -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    def gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        s = tf.sigmoid(x)
        return upstream * (s + x * s * (1.0 - s))

    # With a GPU the compiler would need parts of CUDA that TensorFlow itself does without.
    if tf.config.list_physical_devices("GPU"):
        return gradient
    compiled = tf.function(gradient, jit_compile=True, autograph=False)
    with tf.init_scope(), silent():  # the compiler announces its first use, whatever the log level
        compiled(tf.zeros([1]), tf.zeros([1]))
    return compiled


@tf.keras.utils.register_keras_serializable(package="efficientnet")
class Swish(tf.keras.layers.Layer):
    """The function `swish` as a layer.

    A Keras `Activation` would not find the function again when the model is loaded.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns swish of an input of any shape."""
        return swish(inputs)


@tf.keras.utils.register_keras_serializable(package="efficientnet")
class Normalize(tf.keras.layers.Layer):
    """(x - mean) / std, channel by channel, with constants: no weights to load, lose, or average.

    Always computes in float32: bfloat16 has 8 bits of mantissa, too few for interpolated pixels in
    0-255. The next layer casts.

    Args:
        mean: one number a channel, in the input's units.
        std: one number a channel, above 0.

    Input: (..., C). Output: the same shape, float32.

    Raises:
        InputError: lengths that differ, or a standard deviation that is not above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs: Any):
        super().__init__(**{**kwargs, "dtype": "float32"})
        if len(mean) != len(std) or any(not deviation > 0 for deviation in std):
            raise InputError(
                f"mean and std need a number a channel, std above 0; got {tuple(mean)} and"
                f" {tuple(std)}"
            )
        self.mean = tuple(float(number) for number in mean)
        self.std = tuple(float(number) for number in std)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the normalized image."""
        return (inputs - tf.constant(self.mean)) / tf.constant(self.std)

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the layer."""
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@tf.keras.utils.register_keras_serializable(package="efficientnet")
class BatchNormalization(tf.keras.layers.BatchNormalization):
    """Keras's batch normalization, with ``synchronized`` in its config.

    Keras 2.15 leaves it out, and so loses it in a clone or a saved model.
    """

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the layer."""
        return {**super().get_config(), "synchronized": self.synchronized}
