"""The steps of MetaPseudoLabels, ReducedMetaPseudoLabels and UDA on two replicas.

Both replicas have the same h, and the step is that of one device.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from meta_pseudo_labels.model import MetaPseudoLabels
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from nets.noise import Dropout
from training.uda import UDA

K = 3
ESTIMATORS = {
    "finite_difference": 1.0,
    "dot_product": 1.0,
    "cosine": 1.0,
    "per_example": 1.0,
    "soft": 10.0,
}  # with the weight of the feedback
PARTS = ("parts soft", "parts cosine")
"""Here one device takes the whole batch; each of the two replicas takes its own in two parts."""
GRAPHS = ("per_example", "float16 soft", "reduced", "parts soft")
"""Cases that run as graphs on replicas: each form of h, both kinds of step, a loss scale."""
OVERFLOWS = 2.0**17  # a loss scale at which float16 overflows in the first of two steps


def test_two_replicas_have_the_same_feedback_and_the_same_step():
    """Runs in its own process: TensorFlow splits the CPU only before its first use."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, __file__],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    compared = json.loads(result.stdout.splitlines()[-1])
    assert list(compared) == [
        *ESTIMATORS,
        "float16 dot_product",
        "float16 soft",
        *PARTS,
        "reduced",
        "uda",
    ]
    for name, values in compared.items():
        tolerance = (
            {"rtol": 0.03, "atol": 1e-3}
            if name.startswith("float16")
            else {"rtol": 2e-3, "atol": 2e-6}
        )
        np.testing.assert_allclose(values["two"], values["one"], **tolerance, err_msg=name)
        assert np.abs(values["one"]).max() > 1e-3
        h = values["h"]
        if name == "uda":
            assert h == [0.0] * 3  # it has none
        elif np.ndim(h[0]) == 0:
            assert h[1] == h[2], "the two replicas' h must be the same number"
            assert h[1] == pytest.approx(h[0], rel=0.05 if name.startswith("float16") else 1e-3), (
                name
            )
        else:
            tolerance = (
                {"rtol": 0.05, "atol": 1e-3}
                if name.startswith("float16")
                else {"rtol": 1e-3, "atol": 1e-7}
            )
            np.testing.assert_allclose(h[1] + h[2], h[0], **tolerance, err_msg=name)


def flat(arrays):
    return np.concatenate([np.asarray(a).ravel() for a in arrays])


def replicas() -> None:
    """Prints how the networks moved in two steps, and h on each replica.

    It does so for each estimator and method, on one device and on two.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    rng = np.random.default_rng(0)
    x, weak, strong = (rng.normal(size=(n, 4)).astype("float32") for n in (6, 8, 8))
    y, q = rng.integers(0, K, 6), rng.dirichlet(np.ones(K), 8).astype("float32")
    mirrored = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"]
    )  # one only: a second one's collectives collide with the first one's
    student = functools.partial(tf.keras.optimizers.SGD, 0.1, momentum=0.9, global_clipnorm=1.0)
    teacher = functools.partial(tf.keras.optimizers.SGD, 0.1)

    def reduced():
        calibrator = Calibrator(K, hidden=4)
        calibrator.set_weights(
            [
                np.random.default_rng(i).normal(size=v.shape)
                for i, v in enumerate(calibrator.get_weights())
            ]
        )
        return ReducedMetaPseudoLabels(calibrator, synchronized()[1], feedback_weight=10.0, seed=3)

    def in_parts(name):
        parts = tf.distribute.get_strategy().num_replicas_in_sync
        networks = synchronized(batch_norm=False)
        return MetaPseudoLabels(
            *networks, feedback=name, feedback_weight=10.0, accumulation=parts, seed=3
        )

    makers = {
        **{
            name: lambda name=name, weight=weight: MetaPseudoLabels(
                *synchronized(), feedback=name, feedback_weight=weight, seed=3
            )
            for name, weight in ESTIMATORS.items()
        },
        **{
            f"float16 {name}": lambda name=name: MetaPseudoLabels(
                *synchronized(), feedback=name, seed=3
            )
            for name in ("dot_product", "soft")
        },
        **{name: lambda name=name: in_parts(name.split()[1]) for name in PARTS},
        "reduced": reduced,
        "uda": lambda: UDA(synchronized()[0], uda_ramp_steps=0, uda_threshold=0.5, seed=3),
    }
    results = {}
    for name, make in makers.items():
        views = (strong, q) if name == "reduced" else (weak, strong)
        moved, seen = [], []
        tf.keras.mixed_precision.set_global_policy(
            "mixed_float16" if name.startswith("float16") else "float32"
        )
        wrap = functools.partial(
            tf.keras.mixed_precision.LossScaleOptimizer, initial_scale=OVERFLOWS
        )
        scaled = wrap if name.startswith("float16") else lambda optimizer: optimizer
        for strategy in (tf.distribute.get_strategy(), mirrored):
            n = strategy.num_replicas_in_sync
            with strategy.scope():
                one = make()
                one.compile(scaled(student()), *([] if name == "uda" else [teacher()]))
                one.build_optimizers()
            before = flat(v.numpy() for v in one.trainable_variables)
            feedbacks = {}  # by thread: each replica is traced in its own thread

            estimator = getattr(one, "estimator", None)

            def record(h, *arguments, estimator=estimator, to=feedbacks):
                known = to.get(threading.get_ident())
                to[threading.get_ident()] = (
                    h if known is None or not h.shape.rank else tf.concat([known, h], 0)
                )
                return estimator.teacher_loss(h, *arguments)

            if estimator:
                one.estimator = dataclasses.replace(estimator, teacher_loss=record)

            def step(
                one=one, n=n, feedbacks=feedbacks, views=views, labeled=4 if name in PARTS else 6
            ):
                r = tf.distribute.get_replica_context().replica_id_in_sync_group
                feedbacks.pop(threading.get_ident(), None)  # of the step before
                part = [
                    tf.gather(v, r * (len(v) // n) + tf.range(len(v) // n))
                    for v in (x[:labeled], y[:labeled], *views)
                ]
                one.train_step(((part[0], part[1]), (part[2], part[3])))
                return feedbacks.get(threading.get_ident(), tf.zeros([]))

            run = functools.partial(strategy.run, step)
            if n > 1 and name in GRAPHS:  # two steps take less time than tracing one
                run = tf.function(run)
            run()
            seen += [v.numpy().tolist() for v in strategy.experimental_local_results(run())]
            if name.startswith("float16"):
                assert (
                    float(one.optimizer.loss_scale) == OVERFLOWS / 2
                    and int(one.optimizer.iterations.numpy()) == 2
                )
            moved.append((flat(v.numpy() for v in one.trainable_variables) - before).tolist())
        results[name] = {"one": moved[0], "two": moved[1], "h": seen}
    print(json.dumps(results))


def synchronized(batch_norm=True):
    """Returns two classifiers with BatchNorm over the global batch.

    Their noise belongs to the example.
    """
    result = []
    for seed in (1, 2):
        inputs = tf.keras.Input([4])
        initializer = tf.keras.initializers.RandomNormal(0, 0.7, seed=seed)
        hidden = tf.keras.layers.Dense(5, kernel_initializer=initializer)(inputs)
        if batch_norm:
            hidden = tf.keras.layers.BatchNormalization(synchronized=True)(hidden)
        hidden = tf.nn.tanh(hidden)
        initializer = tf.keras.initializers.RandomNormal(0, 0.7, seed=seed + 10)
        outputs = tf.keras.layers.Dense(K, kernel_initializer=initializer)(
            Dropout(0.3, noise_id="d")(hidden)
        )
        result.append(tf.keras.Model(inputs, outputs))
    return result


if __name__ == "__main__":
    replicas()
