"""`jit_compile` and `steps_per_execution`: other ways to run the same steps of every method."""

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from fixmatch.method import FixMatch
from meta_pseudo_labels.model import MetaPseudoLabels
from noisy_student.model import NoisyStudent
from training import resolve
from training.optimizers import RMSProp
from training.supervised import Supervised
from training.uda import UDA

STEPS, B, K = 3, 4, 3


def network(seed):
    """Returns a small network without noise: XLA draws other numbers than TensorFlow's kernels."""
    layers, initializer = tf.keras.layers, tf.keras.initializers.HeNormal(seed=seed)
    inputs = tf.keras.Input([4, 4, 3])
    x = layers.ReLU()(
        layers.BatchNormalization()(layers.Conv2D(4, 3, kernel_initializer=initializer)(inputs))
    )
    return tf.keras.Model(
        inputs, layers.Dense(K, kernel_initializer=initializer)(layers.GlobalAveragePooling2D()(x))
    )


def made(method):
    """Returns a compiled trainer."""
    one, common = network(1), {"ema_decay": 0.9, "seed": 3}
    if method == "meta_pseudo_labels":
        pair = MetaPseudoLabels(network(2), one, pseudo_labels="soft", **common)
        pair.compile(tf.keras.optimizers.SGD(0.1, 0.9), RMSProp(0.01))
        return pair
    kinds = {
        "supervised": Supervised,
        "noisy_student": NoisyStudent,
        "uda": UDA,
        "fixmatch": FixMatch,
    }
    more = {"fixmatch": {"threshold": 0.0}, "uda": {"uda_threshold": 0.0, "uda_ramp_steps": 0}}.get(
        method, {}
    )
    trainer = kinds[method](one, **common, **more)
    trainer.compile(RMSProp(0.01))
    return trainer


def data(method):
    rng = np.random.default_rng(0)
    x, weak, strong = (
        rng.uniform(0, 4, (STEPS * n, 4, 4, 3)).astype("float32") for n in (B, 2 * B, 2 * B)
    )
    y, q = rng.integers(0, K, STEPS * B), rng.dirichlet(np.ones(K), STEPS * 2 * B).astype("float32")
    labeled = tf.data.Dataset.from_tensor_slices((x, y)).batch(B, drop_remainder=True)
    second = (weak, q) if method == "noisy_student" else (weak, strong)
    unlabeled = tf.data.Dataset.from_tensor_slices(second).batch(2 * B, drop_remainder=True)
    return labeled if method == "supervised" else tf.data.Dataset.zip((labeled, unlabeled))


def trained(jit_compile=False, steps_per_execution=1):
    """Returns (mean loss of the steps, all weights and averages)."""
    trainer = made("supervised")
    trainer.jit_compile = jit_compile
    trainer.steps_per_execution = steps_per_execution
    history = trainer.fit(data("supervised"), steps_per_epoch=STEPS, verbose=0).history
    values = [v.numpy() for v in (*trainer.model.variables, *trainer.ema.shadows)]
    return history["loss"][0], np.concatenate([np.ravel(v) for v in values])


@pytest.mark.parametrize(
    "method", ["supervised", "noisy_student", "uda", "fixmatch", "meta_pseudo_labels"]
)
def test_a_compiled_step_is_the_same_step(method):
    plain, compiled = made(method), made(method)
    step = tf.function(compiled.train_step, jit_compile=True)
    compiled.build_optimizers()
    for element in data(method):
        plain.train_step(element)
        step(element)
    for one, other in (
        (plain.logged[name], compiled.logged[name])
        for name in ("loss", "gradient_norm", "update_norm")
    ):
        np.testing.assert_allclose(other.result(), one.result(), rtol=1e-4)
    for one, other in zip(
        (*plain.model.variables, *plain.ema.shadows),
        (*compiled.model.variables, *compiled.ema.shadows),
    ):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)


def test_settings_of_an_execution_leave_the_steps_as_they_are():
    """Several steps at once give the same bits, also if the last execution has fewer steps.

    Compiled steps agree within rounding.
    """
    one, several, compiled = trained(), trained(steps_per_execution=2), trained(jit_compile=True)
    assert several[0] == one[0]
    np.testing.assert_array_equal(several[1], one[1])
    np.testing.assert_allclose(compiled[0], one[0], rtol=1e-5)
    np.testing.assert_allclose(compiled[1], one[1], rtol=1e-3, atol=1e-5)


def test_intervals_are_multiples_of_the_steps_of_an_execution():
    train = {
        "epochs": None,
        "min_steps": 0,
        "steps": 100,
        "batch_size": 8,
        "log_every": 5,
        "checkpoint_every": 10,
        "evaluate_every": 10,
    }
    train.update(keep_every=0, unlabeled_ratio=0, steps_per_execution=4)
    resolved = resolve.section(train, labeled_examples=100, unlabeled=False)
    assert [resolved[f"{name}_every"] for name in ("log", "checkpoint", "evaluate")] == [8, 16, 16]


def test_a_compiled_step_is_for_one_device(tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    from training import run, strategy

    monkeypatch.setattr(
        strategy,
        "create",
        lambda *_: type("Two", (), {"num_replicas_in_sync": 2, "extended": None})(),
    )
    monkeypatch.setattr(run.workers, "require_same", lambda *_: None)
    section = {
        "batch_size": 8,
        "unlabeled_ratio": 0,
        "precision": "float32",
        "jit_compile": True,
        "steps": 1,
    }
    inputs = run.Inputs(tmp_path, None)
    with pytest.raises(
        InputError, match=r"jit_compile=True works on one device only, but there are 2 replicas"
    ):
        run.train(
            tmp_path,
            {"seed": 0, "train": ConfigDict(section).to_dict()},
            None,
            None,
            inputs,
            run.Devices("mirrored", 2),
        )
