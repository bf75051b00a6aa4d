"""The optimizers of tensorflow-addons against their papers' formulas in numpy, and in training."""

import importlib.util
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.start import python_m
from tests.training_runs import ROOT
from training import addons, optimizers
from training.schedules import WarmupCosine
from training.settings import ADDONS

RATES = WarmupCosine(0.1, total_steps=40, warmup_steps=5)
DECAY = 0.3
OVERFLOW = 3
"""The step, from 1, at which the gradients overflow with the loss scale."""


def made(name, decay=0.0, clip=0.0):
    settings = {"name": name, "momentum": 0.8, "clip_norm": clip, "decoupled_weight_decay": decay}
    return optimizers.build(ConfigDict(settings), RATES)


def lamb(state, theta, g, rate, t, decay):
    """Computes You et al. 2020, Algorithm 2, with φ the identity.

    There is no trust ratio where there is no decay (gamma).
    """
    m = state["m"] = 0.8 * state.get("m", 0.0) + 0.2 * g
    v = state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    update = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + decay * theta
    trust = np.linalg.norm(theta) / np.linalg.norm(update) if state["decays"] else 1.0
    return theta - rate * trust * update


def novograd(state, theta, g, rate, t, decay):
    """Computes Ginsburg et al. 2019, Algorithm 1, with the weight decay as its own step.

    The momentum includes the learning rate.
    """
    square = np.sum(g**2)
    v = state["v"] = square if t == 1 else 0.98 * state["v"] + 0.02 * square
    m = state["m"] = 0.8 * state.get("m", 0.0) + rate * g / (np.sqrt(v) + 1e-7)
    return theta - m - rate * decay * theta


def radam(state, theta, g, rate, t, decay):
    """Computes Liu et al. 2020, Algorithm 2.

    The published code and this one rectify from ρ = 5 on, the paper above 4.
    """
    m = state["m"] = 0.8 * state.get("m", 0.0) + 0.2 * g
    v = state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
    most = 2 / (1 - 0.999) - 1
    rho = most - 2 * t * 0.999**t / (1 - 0.999**t)
    step = m / (1 - 0.8**t)
    if rho >= 5:
        r = np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        step = r * step / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return theta - rate * step - rate * decay * theta


def adabelief(state, theta, g, rate, t, decay):
    """Computes Zhuang et al. 2020, Algorithm 2."""
    m = state["m"] = 0.8 * state.get("m", 0.0) + 0.2 * g
    s = state["s"] = 0.999 * state.get("s", 0.0) + 0.001 * (g - m) ** 2 + 1e-14
    step = m / (1 - 0.8**t) / (np.sqrt(s / (1 - 0.999**t)) + 1e-14)
    return theta - rate * step - rate * decay * theta


RULES = {"lamb": lamb, "novograd": novograd, "radam": radam, "adabelief": adabelief}
needs_addons = pytest.mark.skipif(
    importlib.util.find_spec(addons.PACKAGE) is None, reason="tensorflow-addons is not installed"
)


def weights(rng):
    return [
        tf.Variable(rng.normal(size=s).astype("float32"), name=n)
        for s, n in (((3, 4), "kernel"), ((4,), "bias"), ((4,), "bn/gamma"))
    ]


@needs_addons
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ADDONS)
def test_twenty_steps_of_the_formula(name, scaled):
    """Steps are clipped to a norm, with decoupled weight decay that leaves gamma alone.

    A step that overflows changes no weight.
    """
    rng = np.random.default_rng(0)
    variables, optimizer = weights(rng), made(name, DECAY, clip=0.5)
    if scaled:
        optimizer = tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    theta = [v.numpy().astype(np.float64) for v in variables]
    states = [{"decays": i < 2} for i in range(3)]

    @tf.function
    def step(gradients):
        optimizer.apply_gradients(zip(gradients, variables))

    t = 0
    for i in range(1, 21):
        gradients = [rng.normal(size=v.shape) for v in variables]
        if scaled and i == OVERFLOW:
            gradients[0] += np.inf
        step([tf.constant(g, tf.float32) for g in gradients])
        if scaled and i == OVERFLOW:
            continue
        t += 1
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        for k, (state, g) in enumerate(zip(states, gradients)):
            decay = DECAY if state["decays"] else 0.0
            theta[k] = RULES[name](
                state, theta[k], g * min(1, 0.5 / norm), float(RATES(i - 1)), t, decay
            )
    assert int(optimizer.iterations) == 20
    for variable, expected in zip(variables, theta):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-3, atol=1e-4)


@needs_addons
@pytest.mark.parametrize("name", ADDONS)
def test_slots_survive_a_checkpoint_to_the_bit(name, tmp_path):
    gradients = [
        [
            tf.random.stateless_normal(v.shape, [i, k])
            for k, v in enumerate(weights(np.random.default_rng(0)))
        ]
        for i in range(4)
    ]
    variables, optimizer = weights(np.random.default_rng(0)), made(name, DECAY)
    for of_step in gradients[:2]:
        optimizer.apply_gradients(zip(of_step, variables))
    path = tf.train.Checkpoint(v=variables, o=optimizer).save(str(tmp_path / "c"))
    again, other = weights(np.random.default_rng(1)), made(name, DECAY)
    other.build(again)
    tf.train.Checkpoint(v=again, o=other).restore(path).assert_consumed()
    for of_step in gradients[2:]:
        optimizer.apply_gradients(zip(of_step, variables))
        other.apply_gradients(zip(of_step, again))
    for a, b in zip([*variables, *optimizer.variables], [*again, *other.variables]):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@needs_addons
def test_two_replicas_move_as_one():
    """Runs in its own process: TensorFlow splits the CPU only before its first use."""
    subprocess.run(python_m("tests.training.test_addons"), cwd=ROOT, check=True, timeout=300)


def compare_replicas():
    """Raises AssertionError if two replicas move the weights otherwise than one device does."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def moved(name, strategy, replicas):
        with strategy.scope():
            variables, optimizer = weights(np.random.default_rng(0)), made(name, DECAY)

        def move():
            gradients = [
                tf.random.stateless_normal(v.shape, [7, k]) / replicas
                for k, v in enumerate(variables)
            ]
            optimizer.apply_gradients(zip(gradients, variables))

        step = tf.function(lambda: strategy.run(move))
        step()
        step()
        return [v.numpy() for v in variables]

    for name in ADDONS:
        for a, b in zip(moved(name, tf.distribute.get_strategy(), 1), moved(name, two, 2)):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setattr(addons, "PACKAGE", "no_such_package")
    with pytest.raises(
        InputError,
        match=r"^optimizer\.name=lamb is of the package tensorflow-addons, .*not installed",
    ):
        addons.require("lamb")
    addons.require("adam")


if __name__ == "__main__":
    compare_replicas()
