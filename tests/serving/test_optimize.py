"""Folded BatchNorm, constants and 16-bit weights: the same function, within what is stated."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from cli.errors import InputError
from resnet import WideResNet
from serving import export
from training import optimize


def norm(seed, channels, **options):
    layer = tf.keras.layers.BatchNormalization(epsilon=0.01, **options)
    layer.build((None, 4, 4, channels))
    rng = np.random.Generator(np.random.PCG64([seed]))
    layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    return layer


def test_fold_equals_the_layers_one_after_the_other():
    inputs = tf.keras.Input((5, 6, 3))
    x = norm(0, 8)(tf.keras.layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs))
    x = norm(1, 16)(
        tf.keras.layers.DepthwiseConv2D(
            2, depth_multiplier=2, bias_initializer="normal", name="depthwise"
        )(x)
    )
    x = norm(2, 4, scale=False, center=False)(tf.keras.layers.Conv2D(4, 1, name="bare")(x))
    # The activation is between them.
    x = norm(3, 4)(tf.keras.layers.Conv2D(4, 1, activation="relu", name="active")(x))
    shared = tf.keras.layers.Conv2D(4, 1, name="shared")(x)
    # The addition reads the convolution, too.
    model = tf.keras.Model(inputs, norm(4, 4)(shared) + shared)
    folded = optimize.fold_batch_norm(model)
    images = np.random.Generator(np.random.PCG64([9])).normal(size=(2, 5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(folded(images), model(images, training=False), rtol=2e-5, atol=2e-5)
    left = [
        layer for layer in folded.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    assert len(left) == 2
    assert model.get_layer("conv").bias is None  # the model itself is as it was


@pytest.mark.parametrize("variant", ["standard", "release"])
def test_a_wide_resnet_keeps_its_logits(variant):
    """Tests the student of every Meta Pseudo Labels run.

    Its BatchNorms also stand before the convolutions, where none can be folded.
    """
    model = WideResNet("wrn_10_1", num_classes=5, image_size=16, variant=variant, seed=0)
    rng = np.random.Generator(np.random.PCG64([3]))
    norms = [
        layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    for layer in norms:
        layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    images = rng.uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    folded = optimize.fold_batch_norm(model)
    expected = model(images, training=False)
    np.testing.assert_allclose(folded(images, training=False), expected, atol=1e-4, rtol=0)
    assert np.std(expected) > 0.01  # logits that differ
    left = [
        layer for layer in folded.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    assert 0 < len(left) < len(norms)


def constants(version):
    """Counts elements of constants of at least 1,000 elements, by type, in the whole graph."""
    graph = (
        saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
        .meta_graphs[0]
        .graph_def
    )
    found = {}
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            if node.op == "Const":
                tensor = node.attr["value"].tensor
                name, size = (
                    tf.dtypes.as_dtype(tensor.dtype).name,
                    int(np.prod([d.size for d in tensor.tensor_shape.dim])),
                )
                if size >= 1000 and name != "string":
                    found[name] = found.get(name, 0) + size
    return found


def total(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("options", "limit", "dtype"),
    [
        ({"optimize": True}, 1e-4, "float32"),
        ({"weights": "bfloat16"}, 0.2, "bfloat16"),
        ({"weights": "float16", "optimize": True}, 0.03, "half"),
    ],
)
def test_exports(small, encoded_images, tmp_path, options, limit, dtype):
    export.main(str(tmp_path), str(small.directory), **options)
    version = tmp_path / "classifier" / "1"
    saved = tf.saved_model.load(str(version))
    encoded = [*encoded_images("PNG"), *encoded_images("JPEG")]
    answer = saved.signatures["serving_default"](image_bytes=tf.constant([*encoded, b"no image"]))
    difference = np.abs(answer["probabilities"][:-1] - small.evaluate(encoded)).max()
    assert difference <= limit
    assert answer["status"].numpy().tolist() == [0] * 6 + [1]
    measured = json.loads((version / "assets.extra" / "export.json").read_text())["deviation"]
    assert 0 < measured <= limit
    assert set(constants(version)) == {"float16" if dtype == "half" else dtype}
    assert (
        not list((version / "variables").glob("*.data*"))
        or (version / "variables").stat().st_size < 5000
    )
    graph = (
        saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
        .meta_graphs[0]
        .graph_def
    )
    ops = {node.op for function in graph.library.function for node in function.node_def}
    assert ("FusedBatchNormV3" in ops) is not options.get("optimize", False)


def test_a_weight_out_of_range_is_refused():
    weight = tf.Variable(np.full([300], 1e6, np.float32))
    function = tf.function(
        lambda x: [x * weight], input_signature=[tf.TensorSpec([None, 300], tf.float32)]
    ).get_concrete_function()
    with pytest.raises(InputError, match="take bfloat16"):
        optimize.freeze(function, "float16")
    (product,) = optimize.freeze(function, "bfloat16")(tf.ones([1, 300]))
    np.testing.assert_allclose(product, 1e6, rtol=2**-8)
