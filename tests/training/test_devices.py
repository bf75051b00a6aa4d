"""Both methods' steps on other devices.

Four replicas do what one device does, and nothing in the steps is beyond a TPU.

As a program (`python -m tests.training.test_devices`) it prints what four replicas computed:
TensorFlow splits the CPU only before its first use.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from meta_pseudo_labels.model import MetaPseudoLabels
from nets.layers import BatchNormalization, Layers
from nets.noise import Dropout, StochasticDepth
from noisy_student.model import NoisyStudent
from tests.training_runs import ROOT
from training.optimizers import RMSProp

METHODS = ("noisy_student", "meta_pseudo_labels")
K, B, RATIO, REPLICAS = 3, 8, 2, 4

# Ops of the distribution, not of the step: a TPU has CrossReplicaSum for the collectives, and
# arguments come to it by its own feeds. Also calls of functions, whose ops are listed with the
# others.
COLLECTIVES = {"CollectiveReduceV2", "CollectiveGatherV2", "CollectiveInitializeCommunicator"}
PLUMBING = {
    *COLLECTIVES,
    "Placeholder",
    "AnonymousIteratorV3",
    "PartitionedCall",
    "StatefulPartitionedCall",
}


def network(seed: int, synchronized: bool, noise: bool) -> tf.keras.Model:
    """Returns a network of all parts of the EfficientNets: (4, 4, 3) -> K logits."""
    layers, initializer = (
        tf.keras.layers,
        lambda i: tf.keras.initializers.HeNormal(seed=10 * seed + i),
    )
    inputs = tf.keras.Input([4, 4, 3])
    x = start = layers.Conv2D(4, 3, padding="same", kernel_initializer=initializer(1))(inputs)
    x = BatchNormalization(synchronized=synchronized, name="bn")(x)
    x = layers.DepthwiseConv2D(3, padding="same", depthwise_initializer=initializer(2))(x)
    x = Layers(synchronized, 0.99, seed).swish("swish")(x)
    gate = layers.Conv2D(4, 1, activation="sigmoid", kernel_initializer=initializer(3))(
        layers.GlobalAveragePooling2D(keepdims=True)(x)
    )
    x = StochasticDepth(0.8 if noise else 1.0, noise_id="depth")(layers.Multiply()([x, gate]))
    x = Dropout(0.3 if noise else 0.0, noise_id="dropout")(
        layers.GlobalAveragePooling2D()(layers.Add()([x, start]))
    )
    return tf.keras.Model(inputs, layers.Dense(K, kernel_initializer=initializer(4))(x))


def trainer(
    method: str,
    optimizer=lambda: tf.keras.optimizers.SGD(0.1),
    synchronized: bool = True,
    noise: bool = True,
    **options,
):
    if method == "noisy_student":
        result = NoisyStudent(network(1, synchronized, noise), ema_decay=0.9, seed=3, **options)
        result.compile(optimizer())
    else:
        result = MetaPseudoLabels(
            network(1, synchronized, noise),
            network(2, synchronized, noise),
            ema_decay=0.9,
            seed=3,
            **options,
        )
        result.compile(optimizer(), optimizer())
    result.build_optimizers()
    return result


def batch(method: str, part: slice = slice(None)):
    """Returns a global batch or a part of it.

    Rows are cut equally from all streams, so `part` is in 1/REPLICAS of them.
    """
    rng = np.random.default_rng(0)
    x, first, second = (
        rng.uniform(0, 4, (n, 4, 4, 3)).astype("float32") for n in (B, B * RATIO, B * RATIO)
    )
    # Each part is of another brightness, so that its statistics are its own.
    for images in (x, first, second):
        images += np.repeat(np.arange(REPLICAS), len(images) // REPLICAS)[:, None, None, None]
    y, q = rng.integers(0, K, B), rng.dirichlet(np.ones(K), B * RATIO).astype("float32")

    def cut(values):
        parts = values.reshape(REPLICAS, -1, *values.shape[1:])[part]
        return tf.constant(parts.reshape(-1, *values.shape[1:]))

    return (cut(x), cut(y)), (cut(first), cut(q) if method == "noisy_student" else cut(second))


def state(one) -> np.ndarray:
    """Returns all weights and averages."""
    return np.concatenate(
        [np.ravel(v.numpy()) for v in (*one.variables, *one.ema.shadows) if v.dtype.is_floating]
    )


def on_one_device(method: str, steps: int, part: slice = slice(None), **options) -> np.ndarray:
    one = trainer(method, **options)
    for _ in range(steps):  # eager steps end before a step's graph is made
        one.train_step(batch(method, part))
    one.reset_metrics()
    return state(one)


PARTS: dict[str, dict[str, Any]] = {
    "noisy_student": {"noise": False},
    "meta_pseudo_labels": {
        "noise": False,
        "feedback": "none",
        "pseudo_labels": "argmax",
        "uda_ramp_steps": 0,
    },
}
"""Options with which a step can be put together from the steps on its parts.

Noise goes by the row in the batch, and feedback by the whole step's student.
"""


@pytest.fixture(scope="module")
def four():
    """Returns what `main` prints."""
    command = [sys.executable, "-m", "tests.training.test_devices"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", METHODS)
def test_four_replicas_do_what_one_does(four, method):
    """Makes two steps with all noise and synchronized BatchNorm: weights, statistics, averages."""
    expected, start = on_one_device(method, 2), on_one_device(method, 0)
    assert np.abs(expected - start).max() > 1e-3
    np.testing.assert_allclose(
        np.array(four[method]["synchronized"]) - start, expected - start, rtol=2e-3, atol=3e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_of_each_replica_is_that_of_its_part(four, method):
    """The documented difference: a step is the mean of the steps on the parts.

    Moving variances are means of the parts' variances.
    """
    options = PARTS[method]
    parts = [
        on_one_device(method, 1, slice(i, i + 1), synchronized=False, **options)
        for i in range(REPLICAS)
    ]
    np.testing.assert_allclose(four[method]["per_replica"], np.mean(parts, 0), rtol=1e-4, atol=2e-6)
    assert np.abs(on_one_device(method, 1, **options) - np.mean(parts, 0)).max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_four_replicas_evaluate_every_example_once(four, method):
    assert four[method]["examples"] == 13


@pytest.mark.parametrize("method", METHODS)
def test_the_step_compiles_whole(method):
    """XLA refuses a function with an unknown op, or with a shape that depends on data."""
    # RMSProp needs the approximate feedback.
    options = {"approximate_feedback": True} if method == "meta_pseudo_labels" else {}
    one = trainer(method, lambda: RMSProp(0.01), **options)
    before = state(one)
    values = tf.function(one.train_step, jit_compile=True)(batch(method))
    assert np.isfinite([float(value) for value in values.values()]).all()
    assert np.abs(state(one) - before).max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_the_distributed_step_has_no_op_that_TPUs_lack(four, method):
    """TPUs lack the ops that TensorFlow's compiler has no kernel for.

    Random ops with a state are excluded too: XLA draws other numbers there than TensorFlow.

    Sources: "Known issues", tensorflow.org/xla/known_issues; "Available TensorFlow ops",
      cloud.google.com/tpu/docs/tensorflow-ops.
    """
    tf.function(
        lambda: tf.constant(1.0) + 1.0, jit_compile=True
    )()  # registers the compiler's kernels
    ops = set(four[method]["ops"])
    assert {"Conv2DBackpropFilter", "FusedBatchNormV3", "StatelessRandomUniformV2"} & ops
    assert without_kernel(ops - PLUMBING) == set()
    assert not {"RandomUniform", "RandomStandardNormal", "Multinomial"} & ops
    assert without_kernel(
        {"PyFunc", "EagerPyFunc", "Unique", "StringJoin", "DecodeJpeg", "AddV2"}
    ) >= {
        "PyFunc",
        "EagerPyFunc",
        "DecodeJpeg",
    }


def without_kernel(ops):
    return {
        op
        for op in ops
        if not any("XLA" in k.device_type for k in kernels.get_registered_kernels_for_op(op).kernel)
    }


@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_static(method):
    """All tensors of a step have known shapes if the batches have, as the data pipeline's do."""
    one = trainer(method)
    graph = tf.function(one.train_step).get_concrete_function(batch(method)).graph
    open_ended = [
        f"{op.type} {output}"
        for op in graph.get_operations()
        for output in op.outputs
        if output.dtype not in (tf.resource, tf.variant) and not output.shape.is_fully_defined()
    ]
    assert not open_ended


def all_ops(graph_def) -> list[str]:
    """Returns the types of the ops of a graph and of the functions it calls."""
    names = {function.signature.name for function in graph_def.library.function}
    nodes = [
        *graph_def.node,
        *(node for function in graph_def.library.function for node in function.node_def),
    ]
    return sorted({node.op for node in nodes} - names)


def main() -> None:
    """Prints what four replicas computed.

    These are the state after two synchronized steps, the state after one without, the count of an
    evaluation, and the step's ops.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])

    def dataset(method):
        def make(_):
            per_replica = [batch(method, slice(i, i + 1)) for i in range(REPLICAS)]
            return tf.data.Dataset.from_tensor_slices(
                tf.nest.map_structure(lambda *t: tf.stack(t), *per_replica)
            ).repeat()

        return strategy.distribute_datasets_from_function(make)

    results = {}
    for method in METHODS:
        found = results[method] = {}
        with strategy.scope():
            one = trainer(method)
        one.fit(dataset(method), steps_per_epoch=2, verbose=0)
        # Asking for the function by its arguments would trace it again.
        (traced,) = one.train_function._list_all_concrete_functions()
        found["ops"] = all_ops(traced.graph.as_graph_def())
        one.reset_metrics()
        found["synchronized"] = state(one).tolist()
        images = tf.data.Dataset.from_tensor_slices(
            (tf.ones([16, 4, 4, 3]), tf.zeros([16], tf.int64), tf.repeat([1.0, 0.0], [13, 3]))
        )
        evaluated = strategy.distribute_datasets_from_function(
            lambda _, images=images: images.batch(2)
        )
        found["examples"] = one.evaluate(evaluated, steps=2, verbose=0, return_dict=True)[
            "examples"
        ]
        with strategy.scope():
            one = trainer(method, synchronized=False, **PARTS[method])
            one.run_eagerly = True
        one.fit(dataset(method), steps_per_epoch=1, verbose=0)
        one.reset_metrics()
        found["per_replica"] = state(one).tolist()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
