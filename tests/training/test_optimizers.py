"""RMSProp against TensorFlow 1's recurrence written in numpy."""

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from stages.errors import InputError
from training import optimizers
from training.optimizers import RMSProp


def test_rmsprop_published_steps():
    # Three steps with g = 0.5, learning rate 0.1, from 1: the values of TensorFlow 1's RMSProp (Keras's gives 0.690, 0.184, -0.462).
    variable = tf.Variable(1.0)
    optimizer = RMSProp(0.1, rho=0.9, momentum=0.9, epsilon=1e-3)
    seen = []
    for _ in range(3):
        optimizer.apply_gradients([(tf.constant(0.5), variable)])
        seen.append(float(variable))
    np.testing.assert_allclose(seen, [0.948, 0.847, 0.701], atol=5e-4)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_rmsprop_follows_the_recurrence(clip_norm):
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (5,)]
    start = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    variables = [tf.Variable(v) for v in start]
    optimizer = RMSProp(lambda: 0.03, rho=0.9, momentum=0.8, epsilon=1e-3, global_clipnorm=clip_norm)
    theta = [v.astype(np.float64) for v in start]
    ms, mom = [np.ones(s) for s in shapes], [np.zeros(s) for s in shapes]
    for _ in range(50):
        gradients = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        optimizer.apply_gradients(zip([tf.constant(g) for g in gradients], variables))
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        for i, g in enumerate(gradients):
            g = g.astype(np.float64) * scale
            ms[i] = 0.9 * ms[i] + 0.1 * g**2
            mom[i] = 0.8 * mom[i] + 0.03 * g / np.sqrt(ms[i] + 1e-3)
            theta[i] = theta[i] - mom[i]
    for variable, expected in zip(variables, theta):
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(InputError, match="rmsprop, sgd, adam"):
        optimizers.build(ConfigDict({"name": "lion", "momentum": 0.9, "clip_norm": 0.0}), 0.1)
