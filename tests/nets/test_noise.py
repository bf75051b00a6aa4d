"""The noise layers: what they do to an example, and on what their random numbers depend."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from efficientnet import ARCHITECTURES
from efficientnet.architectures import blocks
from nets.noise import Dropout, StochasticDepth, _contexts, model_noise

LAYERS = [
    pytest.param(
        lambda noise_id="a": StochasticDepth(0.75, noise_id=noise_id), 0.75, id="stochastic_depth"
    ),
    pytest.param(lambda noise_id="a": Dropout(0.25, noise_id=noise_id), 0.75, id="dropout"),
]
Make = Callable[..., tf.keras.layers.Layer]


def kept(
    layer: tf.keras.layers.Layer,
    num_rows: int = 512,
    seed: int = 1,
    step: int = 2,
    rows: tf.Tensor | None = None,
) -> np.ndarray:
    """Tells which of num_rows examples of 3 features the layer keeps: bool (b, 3)."""
    rows = tf.range(num_rows) if rows is None else tf.constant(rows)
    with model_noise(seed, step, rows, num_rows):
        return layer(tf.ones([len(rows), 3]), training=True).numpy() > 0


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_keep_rate_and_mean(make: Make, keep: float) -> None:
    images = tf.random.stateless_uniform([20_000, 1, 1, 2], [3, 4], 1.0, 2.0)
    with model_noise(5, 6, tf.range(20_000), 20_000):
        noised = make()(images, training=True).numpy()
    is_kept = noised > 0
    np.testing.assert_allclose(noised, np.where(is_kept, images / keep, 0), rtol=1e-6)
    sigma = np.sqrt(keep * (1 - keep) / 20_000)
    assert np.abs(is_kept.mean(0) - keep).max() < 4 * sigma
    # E[y] = E[x] = 1.5, Var[y] = E[x^2] / p - 1.5^2.
    assert np.abs(noised.mean(0) - 1.5).max() < 4 * np.sqrt((7 / 3 / keep - 2.25) / 20_000)


def test_keep_rates_of_every_block_of_b0() -> None:
    draws, deviations = 20_000, {}
    for block in blocks(1.0, 1.0):
        p = block.survival_probability
        is_kept = kept(StochasticDepth(p, noise_id=f"{block.name}_drop"), draws)[:, 0]
        if p == 1:
            assert is_kept.all()
        else:
            deviations[block.name] = (is_kept.mean() - p) / np.sqrt(p * (1 - p) / draws)
    assert len(deviations) == 9  # b0's blocks with a skip
    assert max(map(abs, deviations.values())) < 4
    # Chi-square of 9 degrees of freedom, 0.1 %.
    assert sum(z * z for z in deviations.values()) < 27.9


def test_a_frozen_layer_makes_no_noise() -> None:
    for layer in (StochasticDepth(0.5, noise_id="a"), Dropout(0.5, noise_id="a")):
        layer.trainable = False
        assert kept(layer).all()


def test_stochastic_depth_drops_whole_examples() -> None:
    is_kept = kept(StochasticDepth(0.5, noise_id="a"))
    assert set(is_kept.sum(1)) == {0, 3}


def test_dropout_drops_single_features() -> None:
    assert set(kept(Dropout(0.5, noise_id="a")).sum(1)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_noise_belongs_to_the_row(make: Make, keep: float) -> None:
    whole = kept(make(), 12)
    halves = [
        kept(make(), 12, rows=[0, 1, 2, 3, 4]),
        kept(make(), 12, rows=[5, 6, 7, 8, 9, 10, 11]),
    ]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    np.testing.assert_array_equal(kept(make(), 12, rows=[7, 2, 2]), whole[[7, 2, 2]])


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_seeds_steps_and_layers_are_independent(make: Make, keep: float) -> None:
    variants = {
        "reference": kept(make(), 4096),
        "seed": kept(make(), 4096, seed=2),
        "step": kept(make(), 4096, step=3),
        "swapped": kept(make(), 4096, seed=2, step=1),
        "layer": kept(make("b"), 4096),
    }
    by_chance = keep**2 + (1 - keep) ** 2
    bound = 4.5 * np.sqrt(by_chance * (1 - by_chance) / 4096)
    for (first, one), (second, other) in itertools.combinations(variants.items(), 2):
        assert abs((one == other)[:, 0].mean() - by_chance) < bound, (first, second)


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_noise_is_repeatable(make: Make, keep: float) -> None:
    first = kept(make())
    tf.random.uniform([3])
    StochasticDepth(0.3)
    np.testing.assert_array_equal(kept(make()), first)


def test_numbers_are_pinned() -> None:
    """A run resumed after an update of the project goes on with the noise that it began with."""
    assert StochasticDepth(0.5, noise_id="block2b_drop").layer_index == -1138493832
    np.testing.assert_array_equal(
        kept(StochasticDepth(0.5, noise_id="block2b_drop"), 16)[:, 0].astype(int),
        [1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 1],
    )


def test_layer_indices_of_every_variant_are_distinct() -> None:
    for architecture in ARCHITECTURES.values():
        names = [
            f"{block.name}_drop"
            for block in blocks(architecture.width, architecture.depth, lite=architecture.lite)
        ] + ["top_dropout"]
        assert len({StochasticDepth(0.5, noise_id=name).layer_index for name in names}) == len(
            names
        )


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_traced_equals_eager_and_takes_tensors(make: Make, keep: float) -> None:
    layer = make()

    @tf.function
    def traced(seed: tf.Tensor, step: tf.Tensor, rows: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
        with model_noise(seed, step, rows, num_rows):
            return layer(tf.ones([tf.shape(rows)[0], 3]), training=True)

    for step in (2, 2**40 + 2, 7):  # beyond 31 bits a step wraps
        noised = traced(
            tf.constant(1),
            tf.constant(step, tf.int64),
            tf.range(64, dtype=tf.int64),
            tf.constant(64),
        )
        np.testing.assert_array_equal(noised > 0, kept(layer, 64, step=step))
    np.testing.assert_array_equal(kept(layer, 64, step=2**40 + 2), kept(layer, 64, step=2))


@pytest.mark.parametrize(("make", "keep"), LAYERS)
@pytest.mark.parametrize("training", [False, None])
def test_identity_outside_training(make: Make, keep: float, training: bool | None) -> None:
    images = tf.random.stateless_uniform([8, 4], [1, 2])
    np.testing.assert_array_equal(make()(images, training=training), images)
    with model_noise(1, 2, tf.range(8), 8):
        np.testing.assert_array_equal(make()(images, training=training), images)


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_without_a_context_noise_is_fresh(make: Make, keep: float) -> None:
    layer, ones = make(), tf.ones([4096, 1])
    first, second = layer(ones, training=True).numpy() > 0, layer(ones, training=True).numpy() > 0
    assert abs(first.mean() - keep) < 6 * np.sqrt(keep * (1 - keep) / 4096)
    assert (first != second).any()


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_without_rows_noise_is_a_function_of_seed_and_step(make: Make, keep: float) -> None:
    layer = make()

    def draw(step: int) -> np.ndarray:
        with model_noise(1, step):
            return layer(tf.ones([512, 1]), training=True).numpy()

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_compute_dtype(dtype: str) -> None:
    images = tf.ones([64, 2, 2, 3])
    for make in (StochasticDepth, Dropout):
        exact, rounded = (
            make(0.5, noise_id="a"),
            make(0.5, noise_id="a", dtype=f"mixed_{dtype}" if dtype != "float32" else dtype),
        )
        with model_noise(1, 2, tf.range(64), 64):
            assert rounded(images, training=True).dtype == dtype
            np.testing.assert_array_equal(
                tf.cast(rounded(images, training=True), tf.float32), exact(images, training=True)
            )


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_noise_for_some_examples_only(make: Make, keep: float) -> None:
    x, rows, some = tf.ones([64, 3]), tf.range(64), tf.range(64) % 2 == 0
    with model_noise(1, 2, rows, 64):
        everywhere = make()(x, training=True).numpy()
    with model_noise(1, 2, rows, 64, noised=some):
        half = make()(x, training=True).numpy()
    np.testing.assert_array_equal(half[::2], everywhere[::2])
    np.testing.assert_array_equal(half[1::2], 1.0)
    assert (everywhere[1::2] != 1).any()


@pytest.mark.parametrize(("make", "keep"), LAYERS)
def test_noise_in_inference(make: Make, keep: float) -> None:
    x = tf.ones([64, 3])
    with model_noise(1, 2, inference=True):
        noised = make()(x, training=False).numpy()
    with model_noise(1, 2):
        np.testing.assert_array_equal(make()(x, training=True).numpy(), noised)
    assert (noised == 0).any()


def test_inner_context_wins_and_contexts_close_on_errors() -> None:
    layer, ones = Dropout(0.5, noise_id="a"), tf.ones([64, 1])
    with model_noise(1, 1, tf.range(64), 64):
        outer = layer(ones, training=True)
        with model_noise(2, 1, tf.range(64), 64):
            assert (layer(ones, training=True).numpy() != outer.numpy()).any()
        np.testing.assert_array_equal(layer(ones, training=True), outer)
        with pytest.raises(ZeroDivisionError), model_noise(2, 1, tf.range(64), 64):
            raise ZeroDivisionError
        np.testing.assert_array_equal(layer(ones, training=True), outer)
    assert not _contexts.stack


def test_recomputed_forward_pass_repeats_the_noise() -> None:
    layer = Dropout(0.5, noise_id="a")
    ones = tf.ones([64, 2])
    with model_noise(1, 2, tf.range(64), 64), tf.GradientTape() as tape:
        tape.watch(ones)
        outputs = tf.recompute_grad(lambda x: layer(x, training=True))(ones)
        gradient = tape.gradient(outputs, ones)
    np.testing.assert_array_equal(gradient, outputs)  # y = k x / (1 - r) at x = 1


@pytest.mark.parametrize(
    "layer", [StochasticDepth(0.7, noise_id="a", name="n"), Dropout(0.3, noise_id="b", name="n")]
)
def test_config_round_trip(layer: tf.keras.layers.Layer) -> None:
    again = tf.keras.layers.deserialize(tf.keras.layers.serialize(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(kept(again), kept(layer))


def test_bad_arguments() -> None:
    for bad in (0.0, 1.1, -0.5):
        with pytest.raises(InputError, match="survival_probability"):
            StochasticDepth(bad)
    for bad in (1.0, -0.1):
        with pytest.raises(InputError, match="rate"):
            Dropout(bad)
    with pytest.raises(InputError, match="num_rows"), model_noise(1, 2, tf.range(3)):
        pass
    with (
        pytest.raises(InputError, match="1 rows for a batch of 4"),
        model_noise(1, 2, tf.range(1), 8),
    ):
        Dropout(0.5)(tf.ones([4, 2]), training=True)


TWO_REPLICAS = """
import cli
import numpy as np
import tensorflow as tf
from nets.noise import Dropout, StochasticDepth, model_noise

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
layers = [StochasticDepth(0.5, noise_id="a"), Dropout(0.5, noise_id="b")]

def noised(rows, use_rows=True):
    with model_noise(1, tf.constant(2, tf.int64), rows if use_rows else None, 64):
        return [layer(tf.ones([tf.shape(rows)[0], 3]), training=True) for layer in layers]

@tf.function
def step(rows, use_rows):
    return strategy.run(noised, (rows, use_rows))

halves = strategy.experimental_distribute_values_from_function(
    lambda context: tf.range(32) + 32 * context.replica_id_in_sync_group)
for whole, parts in zip(noised(tf.range(64)), step(halves, True)):
    np.testing.assert_array_equal(tf.concat(strategy.experimental_local_results(parts), 0), whole)
for parts in step(halves, False):
    first, second = strategy.experimental_local_results(parts)
    assert (first.numpy() != second.numpy()).any()
print("same")
"""


def test_two_replicas_draw_the_noise_of_one() -> None:
    """Runs in its own process: logical devices must be set before TensorFlow starts."""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("same"), done.stderr
    assert "AutoGraph" not in done.stderr
