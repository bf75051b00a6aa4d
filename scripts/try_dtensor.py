"""Tries which layers of an EfficientNet DTensor can split over four virtual CPU devices.

    ./run_tool.sh try_dtensor

The splits are by batch, by image height and by channels. One line a layer and split: forward and
gradient, "exact" (against the layer on one device) or DTensor's reason. docs/scaling.md quotes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

DEVICES, CHANNELS = 4, 8
SPLITS = {"batch": 0, "height": 1, "channels": 3}
LAYERS: dict[
    str, tuple[Callable[..., tf.Tensor], tuple[int, ...], int | None]
] = {  # function, weights' shape, their channel axis
    "convolution 1x1": (lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), (1, 1, CHANNELS, CHANNELS), 3),
    "convolution 3x3": (lambda x, w: tf.nn.conv2d(x, w, 1, "SAME"), (3, 3, CHANNELS, CHANNELS), 3),
    "depthwise convolution": (
        lambda x, w: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME"),
        (3, 3, CHANNELS, 1),
        2,
    ),
    "fused batch norm": (
        lambda x, w: tf.compat.v1.nn.fused_batch_norm(x, w[0], w[1])[0],
        (2, CHANNELS),
        1,
    ),
    "batch norm of plain ops": (
        lambda x, w: (
            (x - tf.reduce_mean(x, [0, 1, 2]))
            * tf.math.rsqrt(tf.math.reduce_variance(x, [0, 1, 2]) + 1e-3)
            * w[0]
            + w[1]
        ),
        (2, CHANNELS),
        1,
    ),
    "pooling": (lambda x, w: tf.reduce_mean(x, [1, 2]) * w, (CHANNELS,), 0),
    "swish": (lambda x, w: x * tf.sigmoid(x) * w, (CHANNELS,), 0),
}


def outcome(
    function: Callable[..., Any], single: list[Any], split: list[Any], mesh: dtensor.Mesh
) -> str:
    """Returns how a function on split arguments fares beside the same on whole arguments."""
    expected = function(*single)
    try:
        found = tf.function(function)(*split)
        unsplit = [
            dtensor.unpack(dtensor.relayout(f, dtensor.Layout.replicated(mesh, f.shape.rank)))[0]
            for f in found
        ]
    except tf.errors.OpError as error:
        reason = re.search(r"error: (.*?)(tensorflow/|\(component|$)", str(error), re.DOTALL)
        return " ".join((reason[1] if reason else str(error)).split())
    same = all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(unsplit, expected))
    return "exact" if same else "WRONG"


def main() -> None:
    """Prints the lines."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * DEVICES
    )
    tf.get_logger().setLevel("ERROR")  # it warns of tracing anew, which each line here must
    mesh = dtensor.create_mesh([("split", DEVICES)], devices=[f"CPU:{i}" for i in range(DEVICES)])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 16, 16, CHANNELS)).astype("float32")

    def place(value: np.ndarray, axis: int | None) -> tf.Tensor:
        rank = np.ndim(value)
        replicated = dtensor.copy_to_mesh(tf.constant(value), dtensor.Layout.replicated(mesh, rank))
        return dtensor.relayout(
            replicated,
            dtensor.Layout(
                ["split" if i == axis else dtensor.UNSHARDED for i in range(rank)], mesh
            ),
        )

    for split, axis in SPLITS.items():
        for layer, (function, shape, channel_axis) in LAYERS.items():
            weights = rng.normal(size=shape).astype("float32")

            def forward(
                x: tf.Tensor, w: tf.Tensor, function: Callable[..., tf.Tensor] = function
            ) -> list[tf.Tensor]:
                return [function(x, w)]

            def gradient(
                x: tf.Tensor, w: tf.Tensor, function: Callable[..., tf.Tensor] = function
            ) -> list[tf.Tensor]:
                with tf.GradientTape() as tape:
                    tape.watch([x, w])
                    loss = tf.reduce_sum(tf.square(function(x, w)))
                return tape.gradient(loss, [x, w])

            single = [tf.constant(images), tf.constant(weights)]
            parts = [
                place(images, axis),
                place(weights, channel_axis if split == "channels" else None),
            ]
            results = {
                name: outcome(f, single, parts, mesh)
                for name, f in (("forward", forward), ("gradient", gradient))
            }
            print(
                f"{split:9}{layer:24} "
                + "; ".join(f"{name}: {result}" for name, result in results.items()),
                flush=True,
            )
