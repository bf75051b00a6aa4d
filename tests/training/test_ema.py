"""The moving average against its recurrence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from training.ema import ExponentialMovingAverage


def test_follows_the_ramp():
    variable = tf.Variable([1.0, 2.0])
    ema = ExponentialMovingAverage([variable], 0.9)
    expected = np.array([1.0, 2.0])
    for step in range(1, 200):
        variable.assign_add([0.5, -0.25])
        ema.update(tf.constant(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * variable.numpy()
    np.testing.assert_allclose(ema.shadows[0].numpy(), expected, rtol=1e-4)


def test_covers_batch_norm_statistics_and_swaps_back_exactly():
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(3, input_shape=(4,)), tf.keras.layers.BatchNormalization()]
    )
    ema = ExponentialMovingAverage(model.variables, 0.5)
    assert len(ema.shadows) == 6
    for variable in model.variables:
        variable.assign_add(tf.random.stateless_normal(variable.shape, [1, 2]))
    ema.update(tf.constant(5))
    before = model.get_weights()
    with ema.swapped():
        inside = model.get_weights()
        np.testing.assert_array_equal(inside[-1], ema.shadows[-1].numpy())
        assert any((a != b).any() for a, b in zip(before, inside))
    for a, b in zip(before, model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_what_is_read_of_three_replicas_is_what_each_holds(tmp_path):
    """Runs in its own process: TensorFlow splits the CPU only before its first use."""
    program = """
import sys
import numpy as np, tensorflow as tf
from training.ema import ExponentialMovingAverage
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(3)])
with strategy.scope():
    ema = ExponentialMovingAverage([\
tf.Variable(np.random.default_rng(0).normal(size=1000).astype("float32"))], 0.9)
values = strategy.experimental_local_results(ema.shadows[0])[1].numpy()
checkpoint = tf.train.Checkpoint(ema=ema)
checkpoint.restore(checkpoint.write(sys.argv[1]))
for local in strategy.experimental_local_results(ema.shadows[0]):
    assert (local.numpy() == values).all()
"""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", program, str(tmp_path / "ema")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_refuses_a_decay_of_one():
    with pytest.raises(ValueError, match="decay"):
        ExponentialMovingAverage([], 1.0)
