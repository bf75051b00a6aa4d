"""The residual networks: parameter counts, arithmetic, and the conventions of the project.

The arithmetic is compared with a plain reading of the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from nets.layers import BatchNormalization
from nets.names import block_name
from nets.noise import model_noise
from resnet import ResNet50, WideResNet
from resnet.counts import activations, multiply_adds
from resnet.resnet50 import STAGES
from training import models


def trainable(model: tf.keras.Model) -> int:
    return sum(weight.shape.num_elements() for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("name", "variant", "classes", "parameters"),
    [
        # As in the semi-supervised literature ("1.5M"), e.g. Oliver et al. 2018.
        ("wrn_28_2", "standard", 10, 1_467_610),
        ("wrn_28_2", "release", 10, 1_472_170),
        ("wrn_28_8", "standard", 100, 23_401_012),
        ("wrn_28_10", "standard", 10, 36_479_194),  # the paper's Table 4: 36.5M
        ("wrn_16_8", "standard", 10, 10_961_370),  # the paper's Table 4: 11.0M
    ],
)
def test_wide_resnet_has_the_published_size(
    name: str, variant: str, classes: int, parameters: int
) -> None:
    assert trainable(WideResNet(name, variant=variant, num_classes=classes)) == parameters


def test_resnet50_has_the_published_size_and_kerass_structure() -> None:
    """Compares with keras.applications' ResNet-50, which has the same layers.

    Its convolutions have biases, and its stride is elsewhere (v1).
    """
    model = ResNet50(num_classes=1000)
    assert trainable(model) == 25_557_032
    theirs = tf.keras.applications.ResNet50(weights=None)
    biases = sum(
        layer.bias.shape[0] for layer in theirs.layers if isinstance(layer, tf.keras.layers.Conv2D)
    )
    assert trainable(model) == trainable(theirs) - biases
    shapes = [
        sorted(tuple(w.shape) for w in m.trainable_weights if len(w.shape) == 4)
        for m in (model, theirs)
    ]
    assert shapes[0] == shapes[1]


class Plain:
    """Forward pass in raw operations, by the weights' names."""

    def __init__(self, model: tf.keras.Model, epsilon: float):
        self.weights = {weight.name.partition(":")[0]: weight for weight in model.weights}
        self.epsilon = epsilon

    def conv(self, x: tf.Tensor, name: str, stride: int = 1, same: bool = False) -> tf.Tensor:
        kernel = self.weights[f"{name}/kernel"]
        side = kernel.shape[0] // 2
        padding = "SAME" if same else [[0, 0], [side, side], [side, side], [0, 0]]
        return tf.nn.conv2d(x, kernel, stride, padding)

    def norm(self, x: tf.Tensor, name: str) -> tf.Tensor:
        w = [
            self.weights[f"{name}/{part}"]
            for part in ("moving_mean", "moving_variance", "beta", "gamma")
        ]
        return tf.nn.batch_normalization(x, *w, self.epsilon)

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        return (
            tf.reduce_mean(x, [1, 2]) @ self.weights["predictions/kernel"]
            + self.weights["predictions/bias"]
        )


def plain_wide_resnet(model: tf.keras.Model, x: tf.Tensor, release: bool) -> tf.Tensor:
    plain, names = Plain(model, 1e-3), [layer.name for layer in model.layers]
    activate = (lambda y: tf.maximum(y, 0.2 * y)) if release else tf.nn.relu
    x = plain.conv(x, "stem_conv")
    for name in [n[: -len("_conv1")] for n in names if n.endswith("_conv1")]:
        stride = 2 if name in ("block2a", "block3a") else 1
        y = activate(plain.norm(x, f"{name}_bn1"))
        shortcut = (
            plain.conv(y, f"{name}_shortcut_conv", stride)
            if f"{name}_shortcut_conv" in names
            else x
        )
        y = activate(
            plain.norm(plain.conv(y, f"{name}_conv1", stride, same=release), f"{name}_bn2")
        )
        x = plain.conv(y, f"{name}_conv2") + shortcut
    return plain.logits(activate(plain.norm(x, "top_bn")))


def plain_resnet50(model: tf.keras.Model, x: tf.Tensor) -> tf.Tensor:
    plain = Plain(model, 1e-3)
    x = tf.nn.relu(plain.norm(plain.conv(x, "stem_conv", 2), "stem_bn"))
    x = tf.nn.max_pool2d(x, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    for stage, (blocks, _) in enumerate(STAGES, start=1):
        for block in range(blocks):
            name, stride = f"block{stage}{'abcdef'[block]}", 2 if stage > 1 and block == 0 else 1
            shortcut = (
                x
                if block
                else plain.norm(
                    plain.conv(x, f"{name}_shortcut_conv", stride), f"{name}_shortcut_bn"
                )
            )
            y = tf.nn.relu(plain.norm(plain.conv(x, f"{name}_conv1"), f"{name}_bn1"))
            y = tf.nn.relu(plain.norm(plain.conv(y, f"{name}_conv2", stride), f"{name}_bn2"))
            x = tf.nn.relu(plain.norm(plain.conv(y, f"{name}_conv3"), f"{name}_bn3") + shortcut)
    return plain.logits(x)


CASES = [
    pytest.param(
        lambda **k: WideResNet("wrn_10_2", **k),
        lambda m, x: plain_wide_resnet(m, x, False),
        32,
        id="wrn",
    ),
    pytest.param(
        lambda **k: WideResNet("wrn_16_1", variant="release", **k),
        lambda m, x: plain_wide_resnet(m, x, True),
        32,
        id="wrn_release",
    ),
    pytest.param(lambda **k: ResNet50(**k), plain_resnet50, 64, id="resnet50"),
]
Make = Callable[..., tf.keras.Model]


@pytest.mark.parametrize(("make", "plain", "size"), CASES)
def test_equals_a_plain_forward_pass(
    make: Make, plain: Callable[..., tf.Tensor], size: int
) -> None:
    model = make(
        num_classes=7,
        seed=1,
        mean=(100.0, 110.0, 120.0),
        std=(50.0, 60.0, 70.0),
        batch_norm_momentum=0.0,
    )
    images = tf.random.stateless_uniform([4, size, size, 3], [1, 2], 0, 255)
    model(images, training=True)  # moving averages that fit the activations
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.beta.assign(tf.random.stateless_normal(layer.beta.shape, [len(layer.name), 3]))
    expected = plain(model, (images - [100.0, 110.0, 120.0]) / [50.0, 60.0, 70.0]).numpy()
    np.testing.assert_allclose(
        model(images), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
    # The logits do depend on the image.
    assert np.ptp(expected, 0).max() > 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(("make", "plain", "size"), CASES)
def test_saved_and_loaded(make: Make, plain: object, size: int, tmp_path: Path) -> None:
    model = make(num_classes=7, seed=1, dropout=0.5, sync_batch_norm=True, image_size=size)
    images = tf.random.stateless_uniform([2, size, size, 3], [1, 2], 0, 255)
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images), model(images))
    norms = [layer for layer in again.layers if isinstance(layer, BatchNormalization)]
    assert norms and all(layer.synchronized for layer in norms)
    # Dropout's numbers, too, are those of the layer, whoever made it.
    with model_noise(1, 2, tf.range(2), 2):
        np.testing.assert_array_equal(again(images, training=True), model(images, training=True))


def test_seed_decides_the_initial_weights_and_their_spread() -> None:
    first, again, other = (
        WideResNet("wrn_10_2", num_classes=5, seed=seed).get_weights() for seed in (3, 3, 4)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])
    model = ResNet50(num_classes=1000, seed=1)
    for name, fan_out in {
        "stem_conv": 49 * 64,
        "block4c_conv2": 9 * 512,
        "block4a_shortcut_conv": 2048,
    }.items():
        kernel = model.get_layer(name).kernel.numpy()
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=4 / np.sqrt(2 * kernel.size))


def test_mixed_precision_ends_in_float32() -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        models_ = [WideResNet("wrn_10_1", num_classes=3), ResNet50(num_classes=3)]
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    for model in models_:
        assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
        assert model(tf.zeros([1, 32, 32, 3])).dtype == tf.float32


def test_built_by_name_from_a_config() -> None:
    common = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "seed": 0}
    model = models.build(
        {"name": "wrn_10_1", "width": None, "dropout": 0.3, "variant": "release"}, 4, **common
    )
    assert model.output_shape == (None, 4)
    assert model.get_layer("top_dropout").rate == 0.3
    assert model.get_layer("top_activation").alpha == pytest.approx(0.2)
    assert models.build({"name": "resnet50"}, 4, **common).name == "resnet50"
    with pytest.raises(InputError, match=r"model.width: wrn_10_1 has no such setting"):
        models.build({"name": "wrn_10_1", "width": 0.5}, 4, **common)
    for name in ("wrn_27_2", "wrn_28", "wrn_4_1", "wrn_28_0"):
        with pytest.raises(InputError, match="no Wide ResNet"):
            models.build({"name": name}, 4, **common)
    with pytest.raises(InputError, match="no Wide ResNet variant 'best'"):
        WideResNet(num_classes=3, variant="best")


@pytest.mark.parametrize(
    ("name", "size", "classes", "published"),
    # torchvision's table; and WRN-28-10, usually given as 5.2 billion.
    [("resnet50", 224, 1000, 4.09e9), ("wrn_28_10", 32, 10, 5.2e9)],
)
def test_multiplications_are_the_published_ones(
    name: str, size: int, classes: int, published: float
) -> None:
    assert multiply_adds({"name": name}, size, classes) == pytest.approx(published, rel=0.02)


def maps(model: tf.keras.Model, fused: bool) -> tuple[dict[str, int], dict[str, int]]:
    """Returns what is kept of each block ("" outside), and each block's input, by Keras's layers.

    Normalizations and pooling keep their input, activations their output. A leaky one keeps its
    input, too.
    """
    kept: dict[str, dict[str, int]] = {}
    inputs: dict[str, int] = {}
    made_by = {tensor.name: layer for layer in model.layers for tensor in [layer.output]}

    def keep(tensor: tf.Tensor) -> None:
        layer = made_by[tensor.name]
        of_block = kept.setdefault(block_name(layer) or "", {})
        # A border does not count.
        shape = (layer.input if layer.name.endswith("_pad") else tensor).shape
        of_block[layer.name] = int(np.prod(shape[1:]))

    for layer in model.layers:
        if isinstance(layer, (BatchNormalization, tf.keras.layers.MaxPooling2D)):
            keep(layer.input)
        if isinstance(layer, tf.keras.layers.MaxPooling2D) or "_activation" in layer.name:
            if layer.name != "top_activation" or not fused:
                keep(layer.output)
            if getattr(layer, "alpha", 0) and not fused:
                keep(layer.input)
        if (block := block_name(layer)) and block not in inputs:
            inputs[block] = int(np.prod(layer.input.shape[1:]))
    return {block: sum(sizes.values()) for block, sizes in kept.items()}, inputs


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("model", "size"),
    [
        ({"name": "resnet50"}, 36),
        ({"name": "wrn_16_2"}, 32),
        ({"name": "wrn_10_1", "variant": "release"}, 20),
    ],
)
def test_activations_are_the_maps_of_the_built_network(
    model: dict[str, str], size: int, fused: bool
) -> None:
    """Compares with the Keras layers by shape; the multiplications, too."""
    sized = {**model, "image_size": size}
    network = models.build(sized, 3, mean=(0.0,) * 3, std=(1.0,) * 3, seed=0)
    kept, inputs = maps(network, fused)
    assert activations(model, size, False, 0, fused) == sum(kept.values())
    outside, last = kept.pop(""), list(inputs)[-1]
    assert activations(model, size, True, 0, fused) == outside + sum(inputs.values()) + max(
        kept.values()
    )
    after = activations(model, size, False, len(inputs) - 1, fused) - kept[last]
    assert 0 <= after < outside  # of the last block's frozen ones nothing is kept
    products = sum(
        layer.kernel.shape.num_elements() * int(np.prod(layer.output.shape[1:-1]))
        for layer in network.layers
        if hasattr(layer, "kernel")
    )
    assert multiply_adds(model, size, 3) == products
