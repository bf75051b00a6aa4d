"""The optimizers against their recurrences in numpy, and RMSProp against TensorFlow 1's numbers."""

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from training import optimizers
from training.losses import l2
from training.optimizers import RMSProp
from training.schedules import WarmupCosine
from training.settings import ADDONS, OPTIMIZERS


def test_rmsprop_published_steps():
    # Three steps with g = 0.5, learning rate 0.1, from 1: the values of TensorFlow 1's RMSProp
    # (Keras's gives 0.690, 0.184, -0.462).
    variable = tf.Variable(1.0)
    optimizer = RMSProp(0.1, rho=0.9, momentum=0.9, epsilon=1e-3)
    seen = []
    for _ in range(3):
        optimizer.apply_gradients([(tf.constant(0.5), variable)])
        seen.append(float(variable))
    np.testing.assert_allclose(seen, [0.948, 0.847, 0.701], atol=5e-4)


def rounding(policy):
    """Returns the function that rounds to the numbers that a layer of this policy computes with."""
    dtype = policy.removeprefix("mixed_")
    return lambda array: tf.cast(tf.cast(array, dtype), tf.float64).numpy()


UNIT = {"float32": 2.0**-23, "mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}
"""Distance of 1 and the next number.

A product is off by at most that on every CPU. CPUs with bfloat16 instructions round to the nearest
number; on the others, Eigen's kernels cut digits off.
"""


def rmsprop(state, theta, g, rate, t):
    ms = 0.9 * state.get("ms", 1.0) + 0.1 * g**2
    mom = 0.8 * state.get("mom", 0.0) + rate * g / np.sqrt(ms + 1e-3)
    state.update(ms=ms, mom=mom)
    return theta - mom


def sgd(state, theta, g, rate, t):
    state["m"] = 0.8 * state.get("m", 0.0) - rate * g
    return theta + state["m"]


def nesterov(state, theta, g, rate, t):
    state["m"] = 0.8 * state.get("m", 0.0) - rate * g
    return theta + 0.8 * state["m"] - rate * g


def lars(state, theta, g, rate, t):
    trust = 0.02 * np.linalg.norm(theta) / np.linalg.norm(g) if theta.ndim > 1 else 1.0
    state["m"] = 0.8 * state.get("m", 0.0) + rate * trust * g
    return theta - state["m"]


def adam(state, theta, g, rate, t):
    m = 0.9 * state.get("m", 0.0) + 0.1 * g
    v = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    state.update(m=m, v=v)
    return theta - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)


@pytest.mark.parametrize("kind", ["dense", "clipped", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    ("name", "recurrence", "options"),
    [
        ("rmsprop", rmsprop, {}),
        ("sgd", sgd, {}),
        ("sgd", nesterov, {"nesterov": True}),
        ("lars", lars, {"trust_coefficient": 0.02}),
        ("adam", adam, {}),
        ("adam", adam, {"decoupled_weight_decay": 0.3}),
        ("sgd", nesterov, {"nesterov": True, "decoupled_weight_decay": 0.3}),
    ],
)
def test_fifty_steps_of_the_recurrence(name, recurrence, options, kind):
    """Follows the gradients in numpy, float64, with the learning rate of a schedule.

    Each gradient is compared with the product of the layer's rounded numbers first (`UNIT`).
    The weight decay of the loss is coupled, and both kinds of weight decay leave gamma alone.
    In float16 with a loss scale and small gradients. The gradients of one step overflow: the
    optimizer leaves that step out and counts it.
    """
    rng = np.random.default_rng(0)
    clip = 0.5 if kind == "clipped" else 0.0
    coupled, decoupled = 0.05, options.get("decoupled_weight_decay", 0.0)
    schedule = WarmupCosine(0.1, total_steps=60, warmup_steps=10)
    optimizer = optimizers.build(
        ConfigDict({"name": name, "momentum": 0.8, "clip_norm": clip, **options}), schedule
    )
    policy = kind if kind.startswith("mixed") else "float32"
    layer = tf.keras.layers.Dense(4, name="dense", dtype=policy)
    layer.build([1, 3])
    gamma = tf.Variable(rng.normal(size=4).astype("float32"), name="bn/gamma")
    variables = [layer.kernel, layer.bias, gamma]
    for v in variables:
        v.assign(rng.normal(size=v.shape))
    theta = [v.numpy().astype(np.float64) for v in variables]
    states = [{} for _ in variables]
    rounded, small, overflow = rounding(policy), 1.0, None
    if kind == "mixed_float16":
        optimizer, small, overflow = (
            tf.keras.mixed_precision.LossScaleOptimizer(optimizer),
            1e-5,
            20,
        )

    @tf.function
    def step(x, c, d):
        with tf.GradientTape() as tape:
            loss = (
                tf.reduce_sum(tf.cast(layer(x), tf.float32) * c)
                + tf.reduce_sum(gamma * d)
                + coupled * l2(variables)
            )
        gradients = optimizers.gradient(tape, loss, variables, optimizer)
        optimizer.apply_gradients(zip(gradients, variables))
        return gradients

    for t in range(1, 51):
        x, c, d = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 3), (1, 4), (4,)))
        c *= 1e9 if t == overflow else small
        before = [v.numpy().astype(np.float64) for v in variables]
        gradients = [g.numpy().astype(np.float64) for g in step(x, c, d)]
        if t == overflow:
            assert not all(np.isfinite(g).all() for g in gradients)
            continue
        products = [rounded(x).T * rounded(c / small) * small, rounded(c / small)[0] * small, d]
        for i, (g, product) in enumerate(zip(gradients, products)):
            decay = (0 if i == 2 else coupled) * before[i]
            off = UNIT[policy] * np.abs(product) + 2 * UNIT["float32"] * np.abs(decay)
            assert (np.abs(g - product - decay) <= off).all()
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        scale = min(1.0, clip / norm) if clip else 1.0
        rate = float(schedule(t - 1))
        for i, g in enumerate(gradients):
            kept = theta[i] * (1 - (0 if i == 2 else rate * decoupled))
            theta[i] = recurrence(states[i], kept, scale * g, rate, t)
    assert int(optimizer.iterations) == 50
    for variable, expected in zip(variables, theta):
        assert variable.dtype == tf.float32
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_lars_takes_the_plain_rate_where_a_norm_is_zero():
    zero, moved = tf.Variable(tf.zeros([2, 2])), tf.Variable(tf.ones([2, 2]))
    optimizer = optimizers.LARS(0.5, trust_coefficient=0.1)
    optimizer.apply_gradients([(tf.ones([2, 2]), zero), (tf.zeros([2, 2]), moved)])
    np.testing.assert_allclose(zero, -0.5 * np.ones([2, 2]))
    np.testing.assert_allclose(moved, np.ones([2, 2]))


def test_slots_survive_a_checkpoint(tmp_path):
    def step(optimizer, variable):
        optimizer.apply_gradients([(2.0 * variable.read_value(), variable)])

    variable, optimizer = tf.Variable([1.0, -2.0]), RMSProp(0.1)
    step(optimizer, variable)
    path = tf.train.Checkpoint(v=variable, o=optimizer).save(str(tmp_path / "c"))
    step(optimizer, variable)
    again, other = tf.Variable([0.0, 0.0]), RMSProp(0.1)
    other.build([again])
    tf.train.Checkpoint(v=again, o=other).restore(path).assert_existing_objects_matched()
    step(other, again)
    np.testing.assert_array_equal(again.numpy(), variable.numpy())


def test_unknown_optimizer_is_the_users_error():
    with pytest.raises(
        InputError,
        match=(
            r"optimizer\.name is \'lion\'; it can be rmsprop, sgd, lars, adam, lamb, novograd,"
            r" radam or adabelief"
        ),
    ):
        optimizers.build(ConfigDict({"name": "lion", "momentum": 0.9, "clip_norm": 0.0}), 0.1)


class Halved(tf.keras.optimizers.SGD):
    """A subclass of Keras's SGD with another step."""

    def update_step(self, gradient, variable):
        super().update_step(gradient / 2, variable)


def loss_scaled(optimizer):
    return tf.keras.mixed_precision.LossScaleOptimizer(optimizer, dynamic=False, initial_scale=8.0)


FALLING = tf.keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [0.4, 0.2, 0.1])
SGD, Adam = tf.keras.optimizers.SGD, tf.keras.optimizers.Adam


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda: SGD(0.2), 0.2),
        (lambda: SGD(0.2, nesterov=True), 0.2),  # Nesterov of no momentum
        (lambda: SGD(0.2, 0.9), 0.2),
        (lambda: SGD(0.2, 0.9, nesterov=True), 0.38),
        (lambda: SGD(0.2, 0.5, nesterov=True), 0.3),
        (lambda: SGD(FALLING, 0.9, nesterov=True), 0.38),
        (lambda: SGD(FALLING, 0.9, nesterov=True, weight_decay=0.5), 0.38),
        (lambda: SGD(0.2, 0.9, use_ema=True), 0.2),
        (lambda: loss_scaled(SGD(FALLING, 0.9, nesterov=True, weight_decay=0.5)), 0.38),
        (
            lambda: optimizers.build(
                ConfigDict({"name": "sgd", "momentum": 0.9, "nesterov": True, "clip_norm": 0.0}),
                FALLING,
            ),
            0.38,
        ),
    ],
)
def test_the_linear_factor_is_that_of_the_second_step(make, factor):
    """Two optimizers of one past make different second moves.

    The moves differ by -factor times what the gradients differ by.
    """
    moved = []
    for second in ([1.0, -2.0], [0.5, 3.0]):
        optimizer, variable = make(), tf.Variable([1.0, 2.0])
        for gradient in ([3.0, 4.0], second):
            optimizer.apply_gradients([(tf.constant(gradient), variable)])
        moved.append(variable.numpy())
    np.testing.assert_allclose(optimizers.linear_factor(optimizer), factor, rtol=1e-6)
    np.testing.assert_allclose(moved[0] - moved[1], -factor * np.array([0.5, -5.0]), rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(0.1, clipnorm=1.0),
        lambda: SGD(0.1, clipvalue=1.0),
        lambda: SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
        lambda: Halved(0.1),
        lambda: tf.keras.optimizers.legacy.SGD(0.1),
        lambda: loss_scaled(Adam()),
        tf.keras.optimizers.AdamW,
        tf.keras.optimizers.Adagrad,
        tf.keras.optimizers.RMSprop,
    ],
)
def test_no_linear_factor_where_none_is_known(make):
    assert optimizers.linear_factor(make()) is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_recipes_optimizers_without_a_linear_factor(name):
    if name in ADDONS:
        pytest.importorskip("tensorflow_addons")
    optimizer = optimizers.build(
        ConfigDict({"name": name, "momentum": 0.9, "clip_norm": 1.0}), FALLING
    )
    assert (optimizers.linear_factor(optimizer) is None) == (name in optimizers.NOT_LINEAR)
