"""The models: arithmetic and names against keras.applications, and what is this project's own."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from efficientnet import EfficientNet
from efficientnet.architectures import (
    ARCHITECTURES,
    BASELINE_STRIDES,
    SMALL_IMAGE_STRIDES,
)
from efficientnet.counts import count_activations, count_parameters
from nets.layers import swish
from nets.names import block_name
from nets.noise import Dropout, StochasticDepth, model_noise

keras_efficientnet = sys.modules[tf.keras.applications.EfficientNetB0.__module__]
TINY = {"width": 0.25, "depth": 0.25, "num_classes": 5}


@pytest.fixture
def mixed_bfloat16() -> Iterator[None]:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def images(count: int, size: int) -> tf.Tensor:
    """Makes coarse colored patches: the network could not distinguish images of fine noise."""
    patches = tf.random.stateless_uniform([count, 4, 4, 3], [1, 2], 0.0, 255.0)
    return tf.image.resize(patches, [size, size])


def settle_batch_norm(model: tf.keras.Model, inputs: tf.Tensor) -> None:
    """Gives random scales and shifts, and moving averages that fit the activations.

    The model's momentum must be 0. A fresh model's batch normalization is the identity. That would
    hide mistakes in it, and lets the activations of the deep variants explode. Channels that hardly
    vary are not scaled up to unit variance: a deep random network is chaotic enough to turn a last
    bit at the input into half a logit.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    layers = [
        layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    for layer in layers:
        layer.gamma.assign(generator.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(generator.normal(0, 0.2, layer.beta.shape))
    with model_noise(1, 1):
        model(inputs, training=True)
    for layer in layers:
        variance = layer.moving_variance.numpy()
        layer.moving_variance.assign(np.maximum(variance, 0.3 * variance.mean()))


def carry(model: tf.keras.Model, reference: tf.keras.Model) -> None:
    """Gives the keras.applications model the numbers of ours, by layer name.

    Every layer must find its partner.
    """
    waiting = {layer.name for layer in model.layers if layer.weights}
    for layer in reference.layers:
        if layer.weights and not isinstance(layer, tf.keras.layers.Normalization):
            layer.set_weights(model.get_layer(layer.name).get_weights())
            waiting.remove(layer.name)
    assert not waiting


def numbers_in(weights: list[tf.Variable]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


VARIANTS = [*(f"b{i}" for i in range(8)), "lite0"]


def applications(name: str, size: int) -> tf.keras.Model:
    """Builds keras.applications' network; Lite0, which it lacks, from its general builder."""
    if name == "lite0":
        blocks = [{**block, "se_ratio": 0.0} for block in keras_efficientnet.DEFAULT_BLOCKS_ARGS]
        arguments = {"default_size": 224, "activation": tf.nn.relu6, "blocks_args": blocks}
        build = functools.partial(keras_efficientnet.EfficientNet, 1.0, 1.0, **arguments)
    else:
        build = getattr(tf.keras.applications, "EfficientNet" + name.upper())
    return build(weights=None, input_shape=(size, size, 3), classifier_activation=None)


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_keras_applications(name: str) -> None:
    """Tests from the normalized image on; the next test covers the normalization itself.

    A random-weight keras.applications model only divides by 255. The test does so outside our
    model, which gives both models the same bits.
    """
    size = 75 if name == "b0" else 64  # 75 for the padding of odd maps
    model = EfficientNet(
        name, num_classes=1000, mean=(0, 0, 0), std=(1, 1, 1), batch_norm_momentum=0.0, seed=1
    )
    reference = applications(name, size)
    pixels = images(16, size)
    settle_batch_norm(model, pixels * (1 / 255))
    carry(model, reference)

    expected = reference(pixels[:3], training=False).numpy()
    logits = model(pixels[:3] * (1 / 255), training=False).numpy()
    scale = np.abs(expected).max()
    deviation = np.abs(logits - expected).max() / scale
    print(
        f"{name}: largest deviation {deviation:.1e} of the largest logit, spread"
        f" {np.ptp(expected, 0).max() / scale:.2f}"
    )
    assert deviation < 1e-5
    assert np.ptp(expected, 0).max() > 0.02 * scale  # the logits do depend on the image

    counted = count_parameters(
        ARCHITECTURES[name].width, ARCHITECTURES[name].depth, 1000, ARCHITECTURES[name].lite
    )
    assert (numbers_in(model.trainable_weights), numbers_in(model.non_trainable_weights)) == counted
    drops = {
        layer.name: 1 - layer.survival_probability
        for layer in model.layers
        if isinstance(layer, StochasticDepth)
    }
    drops["top_dropout"] = model.get_layer("top_dropout").rate
    assert drops == pytest.approx(
        {
            layer.name: layer.rate
            for layer in reference.layers
            if isinstance(layer, tf.keras.layers.Dropout)
        }
    )


def test_initial_weights_have_the_spread_of_the_authors() -> None:
    model = EfficientNet("b0", num_classes=1000, seed=1)
    for name, fan_out in {
        "top_conv": 1280,
        "stem_conv": 9 * 32,
        "block6a_expand_conv": 672,
        "block7a_se_expand": 1152,
    }.items():
        kernel = model.get_layer(name).kernel.numpy()
        deviation = np.sqrt(2 / fan_out)
        assert kernel.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * kernel.size))
        assert abs(kernel.mean()) < 4 * deviation / np.sqrt(kernel.size)
    kernel = model.get_layer("top_conv").kernel.numpy()
    assert np.abs(kernel).max() > 4 * kernel.std()  # not truncated
    assert model.get_layer("block6b_dwconv").depthwise_kernel.numpy().std() == pytest.approx(
        np.sqrt(2 / 25), rel=0.02
    )
    classifier = model.get_layer("predictions").kernel.numpy()
    assert 0.99 / np.sqrt(1000) < np.abs(classifier).max() <= 1 / np.sqrt(1000)
    assert all(
        not np.any(layer.bias) for layer in model.layers if getattr(layer, "bias", None) is not None
    )


def test_seed_decides_the_initial_weights() -> None:
    first = EfficientNet("b0", seed=3, **TINY).get_weights()
    EfficientNet("b0", **TINY)  # what else was built does not matter
    again, other = (
        EfficientNet("b0", seed=3, **TINY).get_weights(),
        EfficientNet("b0", seed=4, **TINY),
    )
    assert all(np.array_equal(one, two) for one, two in zip(first, again))
    kernels = {
        layer.name: layer.weights[0].numpy()
        for layer in other.layers
        if layer.weights and not layer.name.endswith("bn")
    }
    assert not any(
        np.array_equal(kernel, weight) for kernel in kernels.values() for weight in first
    )
    # No two layers share their weights.
    assert len({kernel.flat[0] for kernel in kernels.values()}) == len(kernels)


def test_seeded_weights_are_pinned() -> None:
    """Tests that two processes, and two versions of the project, build the same network."""
    kernel = EfficientNet("b0", seed=3, **TINY).get_layer("stem_conv").kernel.numpy()
    np.testing.assert_allclose(
        kernel[0, 0, 0, :4], [0.044447266, 0.029405382, 0.27029049, 0.12901513], rtol=1e-6
    )


def test_normalization_equals_keras() -> None:
    scaled = tf.keras.layers.Rescaling(1 / 255)(images(2, 32))
    keras = tf.keras.layers.Normalization(
        mean=[0.485, 0.456, 0.406], variance=[0.229**2, 0.224**2, 0.225**2]
    )
    np.testing.assert_allclose(
        EfficientNet("b0", **TINY).layers[1](images(2, 32)), keras(scaled), atol=1e-6
    )


def test_normalization_comes_first_and_has_no_weights() -> None:
    model = EfficientNet("b0", mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0), **TINY)
    layer = model.layers[1]
    np.testing.assert_allclose(layer(tf.constant([[11.0, 16.0, 30.0]])), [[1.0, -2.0, 0.0]])
    assert not layer.weights


@pytest.mark.parametrize(
    ("arguments", "size", "expected"),
    [
        ({}, 64, 2),
        ({"strides": SMALL_IMAGE_STRIDES}, 32, 4),
        ({"stem_stride": 1, "strides": (1, 1, 1, 2, 1, 2, 1)}, 16, 4),
        ({"stem_stride": 1, "strides": (1, 1, 1, 2, 1, 1, 1)}, 8, 4),
    ],
)
def test_final_map(arguments: dict, size: int, expected: int) -> None:
    model = EfficientNet("b0", image_size=size, **arguments, **TINY)
    assert model.input_shape == (None, size, size, 3)
    assert model.get_layer("top_activation").output_shape[1:3] == (expected, expected)


def test_any_input_size_and_features() -> None:
    model = EfficientNet("b0", **TINY)
    assert model.input_shape == (None, None, None, 3)
    features = tf.keras.Model(model.input, model.get_layer("avg_pool").output)
    assert features(tf.zeros([2, 40, 33, 3])).shape == (2, 320)


def test_mixed_precision_ends_in_float32(mixed_bfloat16: None) -> None:
    model = EfficientNet("b0", seed=1, strides=SMALL_IMAGE_STRIDES, **TINY)
    assert model.get_layer("block1a_dwconv").compute_dtype == "bfloat16"
    assert model.get_layer("normalize").compute_dtype == "float32"
    assert all(weight.dtype == tf.float32 for weight in model.weights)
    with model_noise(1, 2, tf.range(4), 4):
        logits = model(images(4, 32), training=True)
    assert logits.dtype == tf.float32
    # The logits are not merely cast at the end.
    assert np.any(logits.numpy() != tf.cast(tf.cast(logits, tf.bfloat16), tf.float32).numpy())


def test_noise_of_the_whole_model_belongs_to_the_row() -> None:
    model = EfficientNet(
        "b0",
        width=0.25,
        depth=0.5,
        num_classes=5,
        strides=SMALL_IMAGE_STRIDES,
        survival_probability=0.2,
        seed=1,
    )
    # Frozen batch normalization works on each example by itself, so a batch may be split.
    for layer in model.layers:
        layer.trainable = not isinstance(layer, tf.keras.layers.BatchNormalization)

    def logits(rows: list[int], step: int = 1) -> np.ndarray:
        with model_noise(7, step, tf.constant(rows), 6):
            return model(tf.gather(images(6, 32), rows), training=True).numpy()

    whole = logits([0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(
        np.concatenate([logits([0, 1]), logits([2, 3, 4, 5])]),
        whole,
        rtol=1e-4,
        atol=1e-5 * np.abs(whole).max(),
    )
    assert np.abs(logits([0, 1, 2, 3, 4, 5], step=2) - whole).max() > 0.01 * np.abs(whole).max()


def test_noise_can_be_turned_off() -> None:
    model = EfficientNet("b0", dropout=0, survival_probability=1, **TINY)
    assert not any(isinstance(layer, (Dropout, StochasticDepth)) for layer in model.layers)


def test_trains_under_plain_keras() -> None:
    model = EfficientNet("b0", seed=1, batch_norm_momentum=0.9, strides=SMALL_IMAGE_STRIDES, **TINY)
    before = [weight.numpy() for weight in model.trainable_weights]
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(images(8, 32), tf.range(8) % 5, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    unmoved = [
        weight.name
        for weight, old in zip(model.trainable_weights, before)
        if np.array_equal(weight, old)
    ]
    assert not unmoved  # every weight gets a gradient


@pytest.mark.parametrize("synchronized", [True, False])
def test_synchronized_survives_the_config(synchronized: bool) -> None:
    model = EfficientNet("b0", sync_batch_norm=synchronized, batch_norm_momentum=0.9, **TINY)
    again = tf.keras.Model.from_config(model.get_config())
    layers = [
        layer for layer in again.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    assert len(layers) == 2 + 3 * 7 - 1
    assert all(
        (layer.synchronized, layer.momentum, layer.epsilon) == (synchronized, 0.9, 1e-3)
        for layer in layers
    )


def test_saved_model_gives_the_same_logits(tmp_path: Path) -> None:
    own = {
        "sync_batch_norm": True,
        "batch_norm_momentum": 0.0,
        "mean": (1.0, 2.0, 3.0),
        "strides": SMALL_IMAGE_STRIDES,
    }
    model = EfficientNet("b0", seed=1, **own, **TINY)
    settle_batch_norm(model, images(16, 32))
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images(4, 32)), model(images(4, 32)))
    assert [layer.get_config() for layer in again.layers] == [
        layer.get_config() for layer in model.layers
    ]
    assert again.get_layer("stem_bn").synchronized
    with model_noise(1, 2, tf.range(4), 4):
        np.testing.assert_array_equal(
            again(images(4, 32), training=True), model(images(4, 32), training=True)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "b9"}, "no EfficientNet variant 'b9'.*b0"),
        ({"num_classes": None}, "num_classes"),
        ({"num_classes": 0}, "num_classes"),
        ({"stem_stride": 4}, "stem_stride"),
        ({"strides": (2, 2)}, "strides"),
        ({"dropout": 1.5}, "dropout rate"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"mean": (1.0,)}, "a number a channel"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EfficientNet(**{**TINY, **arguments})


@pytest.mark.parametrize(
    ("name", "size", "stem_stride", "strides"),
    [("b0", 64, 2, None), ("b1", 32, 1, (1, 2, 2, 1, 1, 1, 1)), ("lite1", 64, 2, None)],
)
def test_activations_are_the_maps_of_the_built_network(
    name: str, size: int, stem_stride: int, strides: tuple[int, ...] | None
) -> None:
    """Compares with the Keras model's convolutions, normalizations, swishes and gates by shape."""
    model = EfficientNet(
        name, num_classes=3, image_size=size, stem_stride=stem_stride, strides=strides
    )
    kept = ("_conv", "_bn", "_dwconv", "_activation", "_se_excite")
    expected = sum(
        int(np.prod(layer.output_shape[1:])) for layer in model.layers if layer.name.endswith(kept)
    )
    row = ARCHITECTURES[name]
    arguments = row.width, row.depth, size, stem_stride, strides or BASELINE_STRIDES
    assert count_activations(*arguments, lite=row.lite) == expected
    # XLA keeps each convolution's output and what the next layer reads.
    fused = ("_conv", "_dwconv", "_activation", "_project_bn")
    assert count_activations(*arguments, lite=row.lite, fused=True) == sum(
        int(np.prod(layer.output_shape[1:]))
        for layer in model.layers
        if layer.name.endswith(fused) and layer.name != "top_activation"
    )
    sizes: dict[str, int] = {}  # block or "" -> what is kept of it
    inputs: dict[str, int] = {}
    for layer in model.layers:
        block = block_name(layer) or ""
        if layer.name.endswith(kept):
            sizes[block] = sizes.get(block, 0) + int(np.prod(layer.output_shape[1:]))
        if block and block not in inputs:  # its first layer reads the block's input
            inputs[block] = int(np.prod(layer.input_shape[1:]))
    assert count_activations(*arguments, rematerialize=True, lite=row.lite) == sizes.pop("") + sum(
        inputs.values()
    ) + max(sizes.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swish_is_tensorflows_with_both_derivatives(dtype):
    """Tests the second one, too: Meta Pseudo Labels differentiates the student's gradient."""
    x, upstream = (
        tf.cast(tf.constant(values), dtype)
        for values in ([-30.0, -5.0, -1.0, 0.0, 1e-3, 1.0, 5.0, 30.0], np.arange(-3.0, 5.0))
    )
    found = []
    for function in (swish, tf.nn.silu):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = function(x)
            first = inner.gradient(y, x, upstream)
        found.append([tf.cast(t, tf.float32).numpy() for t in (y, first, outer.gradient(first, x))])
    for ours, tensorflows in zip(*found):
        rtol = 1e-5 if dtype == "float32" else 0.03
        np.testing.assert_allclose(ours, tensorflows, rtol=rtol, atol=rtol / 10)
