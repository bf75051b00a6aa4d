"""Makes smaller and faster graphs of the same function.

BatchNorm is folded, weights become constants, and weights can take 16 bits on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

from cli.errors import InputError

WEIGHTS = ("float32", "bfloat16", "float16")
MAX_GRAPH_BYTES = 1_900_000_000  # a graph is one protocol buffer, which ends at 2 GiB
_SMALL = 256  # constants with fewer weights stay float32: they save nothing


def fold_batch_norm(model: tf.keras.Model) -> tf.keras.Model:
    """Returns the same function without the BatchNorm layers that follow a convolution.

    γ·(Wx − μ)/√(σ² + ε) + β is the convolution with kernel W·γ/√(σ² + ε) and bias β + (b −
    μ)·γ/√(σ² + ε). The result is only for inference.

    Args:
      model: functional or sequential; convolutions with their own activation are left as they
        are.

    Returns:
      A new model with layers of the same names; a folded BatchNorm is an identity.
    """
    folds = {}  # name of the convolution -> BatchNorm
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            source = layer.inbound_nodes[0].inbound_layers
            convolution = isinstance(
                source, (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D)
            )
            if (
                convolution
                and len(source.outbound_nodes) == 1
                and source.activation is tf.keras.activations.linear
            ):
                folds[source.name] = layer
    gone = {layer.name for layer in folds.values()}

    def clone(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        config = layer.get_config()
        if layer.name in gone:
            return tf.keras.layers.Activation("linear", name=layer.name)
        if layer.name in folds:
            config["use_bias"] = True
        return type(layer).from_config(config)

    result = tf.keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        if layer.name not in gone:
            weights = (
                _fold(layer, folds[layer.name]) if layer.name in folds else layer.get_weights()
            )
            result.get_layer(layer.name).set_weights(weights)
    return result


def _fold(
    convolution: tf.keras.layers.Layer, norm: tf.keras.layers.BatchNormalization
) -> list[np.ndarray]:
    """Returns [kernel, bias] of a convolution followed by its BatchNorm.

    Computes in float64, so that only one rounding is left.
    """
    kernel, *bias = (weight.astype(np.float64) for weight in convolution.get_weights())
    mean, variance = (
        np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance)
    )  # (C,)
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    shift = (bias[0] if bias else 0.0) - mean
    shift = shift * scale + (np.asarray(norm.beta, np.float64) if norm.center else 0.0)
    # The kernel of a depthwise convolution is (h, w, C, multiplier), else it is (h, w, in, C).
    depthwise = isinstance(convolution, tf.keras.layers.DepthwiseConv2D)
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return [kernel.astype(np.float32), shift.astype(np.float32)]


def freeze(
    function: tf.types.experimental.ConcreteFunction, weights: str
) -> Callable[..., Sequence[tf.Tensor]]:
    """Returns `function` with its variables as constants and its weights stored as `weights`.

    Constant parts of the graph are computed. The graph casts 16-bit weights to float32, in which it
    sums. For all weights that fill less than 10 MB, TensorFlow casts once, when it loads the graph.

    Raises:
      InputError: the graph would be larger than a file of it can be.
    """
    size = sum(variable.shape.num_elements() for variable in function.variables) * (
        4 if weights == "float32" else 2
    )
    if size > MAX_GRAPH_BYTES:
        raise InputError(
            f"the weights fill {size / 1e9:.1f} GB, too much for constants in one graph; export"
            " without --optimize and --weights"
        )
    frozen = convert_variables_to_constants_v2(function)
    feeds, fetches = (
        [tensor.name for tensor in frozen.inputs],
        [tensor.name for tensor in frozen.outputs],
    )
    graph = _compute_constants(frozen.graph.as_graph_def(), fetches)
    if weights != "float32":
        graph = _store(graph, tf.dtypes.as_dtype(weights))
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            # Custom gradients: a graph of constants has no use for them and cannot save them.
            node.attr.pop("_gradient_op_type", None)
    imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    return imported.prune(
        [imported.graph.get_tensor_by_name(name) for name in feeds],
        [imported.graph.get_tensor_by_name(n) for n in fetches],
    )


def _compute_constants(graph: graph_pb2.GraphDef, fetches: Sequence[str]) -> graph_pb2.GraphDef:
    with tf.Graph().as_default() as scratch:
        tf.import_graph_def(graph, name="")
        meta: meta_graph_pb2.MetaGraphDef = tf.compat.v1.train.export_meta_graph(
            graph_def=graph, graph=scratch
        )
    meta.collection_def["train_op"].node_list.value.extend(fetches)  # what must stay
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.optimizers.append("constfold")
    config.graph_options.rewrite_options.min_graph_nodes = -1
    return tf_optimizer.OptimizeGraph(config, meta)


def _store(graph: graph_pb2.GraphDef, dtype: tf.DType) -> graph_pb2.GraphDef:
    """Stores each float32 constant of some size as a `dtype` constant and a cast.

    The cast takes the constant's name.

    Raises:
      InputError: a weight is outside of `dtype`'s range.
    """
    result = graph_pb2.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        values: Any = (
            tf.make_ndarray(node.attr["value"].tensor) if node.op == "Const" else np.zeros(0)
        )
        if values.dtype != np.float32 or values.size < _SMALL:
            result.node.append(node)
            continue
        with np.errstate(over="ignore"):  # reported below
            stored = values.astype(dtype.as_numpy_dtype)
        if not np.isfinite(stored.astype(np.float32)).all():
            raise InputError(
                f"--weights={dtype.name}: a weight of {np.abs(values).max():.3g} is outside its"
                " range; take bfloat16"
            )
        # Control inputs stay with the constant. Without them, a constant of a branch that is not
        # taken would count as that branch's result.
        constant = result.node.add(name=f"{node.name}/stored", op="Const", input=node.input)
        constant.attr["dtype"].type = dtype.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(stored))
        cast = result.node.add(name=node.name, op="Cast", input=[constant.name])
        cast.attr["SrcT"].type, cast.attr["DstT"].type = (
            dtype.as_datatype_enum,
            tf.float32.as_datatype_enum,
        )
    return result
