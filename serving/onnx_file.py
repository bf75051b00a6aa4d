"""Writes the exported model as an ONNX file: `run_export.sh --onnx`.

`assets.extra/model.onnx` maps `images` float32 [batch, S, S, 3], prepared as `serving.preprocess`
does, to `logits` and `probabilities` float32 [batch, K]. It is the signature `predict_prepared`
with BatchNorm folded into the convolutions. With `--weights=float16` the file stores large weights
in 16 bits; the file's sums stay float32. Its metadata hold labels, preprocessing and license.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cli.errors import InputError, one_line
from cli.files import atomic_path
from cli.quiet import silent
from data.preprocessing import Preprocessing
from serving.signatures import Classifier
from training.model_dir import ModelSpec

OPSET = 17
"""Operator set of the file.

ONNX Runtime 1.12, TensorRT 8.6 and OpenVINO 2022.3, and later releases, read it.
"""

FILE = "model.onnx"

LIMITS = {"float32": 1e-5, "float16": 2e-3}
"""Type of the weights -> largest accepted difference of a probability from the trained model's."""

MAX_WEIGHTS = 450_000_000  # an ONNX file is one protocol buffer, which ends at 2 GiB
_SMALL = 256  # fewer weights than this stay float32: storing them as float16 saves nothing


def check_available(weights: str) -> None:
    """Raises InputError where `--onnx` is not possible: other weights, or missing packages."""
    if weights not in LIMITS:
        known = " or ".join(LIMITS)
        raise InputError(
            f"--onnx: weights are {known}, not {weights}; change --weights, or leave out --onnx"
        )
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import tf2onnx  # noqa: F401
    except ImportError as error:
        reason = one_line(error)
        raise InputError(
            f"--onnx needs tf2onnx, onnx and onnxruntime ({reason}); install the extra `serving`"
        ) from error


def write(
    path: Path,
    model: tf.keras.Model,
    spec: ModelSpec,
    metadata: Mapping[str, str],
    weights: str,
    images: np.ndarray,
) -> float:
    """Converts the model, compares the answers and, last, writes the file.

    Args:
      path: file to write.
      model: the trained model, float32 [N, S, S, 3] -> logits [N, K].
      spec: specification of the model.
      metadata: name -> text, stored in the file.
      weights: type of the stored weights, float32 or float16.
      images: prepared images float32 [N, S, S, 3] on which the answers are compared.

    Returns:
      The largest difference of a probability between ONNX Runtime and the trained model.

    Raises:
      InputError: the model cannot be converted, or it answers differently. No file is left.
    """
    content = convert(model, spec, metadata, weights)
    found = deviation(content, model, images)
    if not found <= LIMITS[weights]:  # NaN, too
        raise InputError(
            f"--onnx: the probabilities of the ONNX file differ by {found:.2g} from the trained"
            f" model's; {LIMITS[weights]:g} is accepted for {weights}. Export with"
            " --weights=float32, or without --onnx."
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return found


def convert(
    model: tf.keras.Model,
    spec: ModelSpec,
    metadata: Mapping[str, str],
    weights: str,
) -> bytes:
    """Returns the ONNX file of a model. Raises InputError where the model cannot be converted."""
    import onnx
    import tf2onnx

    count = model.count_params()
    if count > MAX_WEIGHTS:
        raise InputError(
            f"--onnx: the model has {count:,} weights; a file holds at most {MAX_WEIGHTS:,}. Export"
            " without --onnx."
        )
    function: Any = Classifier(model, spec, fold=True).functions["predict_prepared"]
    try:
        with _quiet():
            signature = function.input_signature
            proto, _ = tf2onnx.convert.from_function(function, signature, opset=OPSET)
    except Exception as error:  # tf2onnx raises whatever it meets
        raise InputError(
            f"--onnx: tf2onnx cannot convert the model ({one_line(error)}); export without --onnx"
        ) from error
    if weights == "float16":
        _store_half(proto.graph)
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]  # shapes inside, with other names for the batch
    proto.graph.name = "classifier"
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _store_half(graph: Any) -> None:
    """Stores large float32 constants of a graph as float16. A cast takes the constant's name."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _SMALL:
            continue
        with np.errstate(over="ignore"):  # reported below
            stored = values.astype(np.float16)
        if not np.isfinite(stored).all():
            largest = np.abs(values).max()
            raise InputError(
                f"--onnx: a weight of {largest:.3g} is outside float16's range; take"
                " --weights=float32"
            )
        name, other = tensor.name, f"{tensor.name}/stored"
        casts.append(helper.make_node("Cast", [other], [name], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(stored, other))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def deviation(content: bytes | Path, model: tf.keras.Model, images: np.ndarray) -> float:
    """Returns the largest difference of a probability between an ONNX file and a model.

    ONNX Runtime computes all prepared images at once, and the first one alone. NaN where an answer
    is not finite.
    """
    expected = tf.nn.softmax(tf.cast(model(images, training=False), tf.float32)).numpy()
    session = session_of(content)
    batches = images, images[:1]
    together, alone = (session.run(["probabilities"], {"images": b})[0] for b in batches)
    largest = np.abs(np.concatenate([together - expected, alone - expected[:1]])).max()
    return float(largest) if np.isfinite(largest) else math.nan


def session_of(content: bytes | Path, threads: int = 0) -> Any:
    """Opens an ONNX file in ONNX Runtime on the CPU.

    Args:
      content: the file, or its bytes.
      threads: threads of an operation; 0: as many as there are cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # no CPU for waiting
    source = content if isinstance(content, bytes) else str(content)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def set_license(path: Path, text: str) -> None:
    """Writes another license into the metadata of an ONNX file. Raises InputError."""
    import onnx

    try:
        proto = onnx.load_model(str(path))
    except Exception as error:  # onnx raises whatever a damaged file leads to
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); export the model again"
        ) from error
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {**properties, "license": text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def metadata(spec: ModelSpec, license: str, fingerprint: str) -> dict[str, str]:
    """Returns what the file says of itself; values of more than one line are JSON."""
    return {
        "labels": json.dumps(spec.label_names, ensure_ascii=False),
        "preprocessing": json.dumps(describe(spec.preprocessing)),
        "license": license,
        "model": fingerprint,
    }


def describe(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns the content of `preprocessing.json`, which `serving.preprocess` reads."""
    crop: dict[str, Any] = {"kind": "none"}
    if preprocessing.style == "imagenet":
        crop = {"kind": "central_square", "padding": preprocessing.crop_padding}
    return {
        "image_size": preprocessing.image_size,
        "color": "RGB",
        "layout": "NHWC",
        "dtype": "float32",
        "range": [0, 255],
        "transparency": "over white",
        "crop": crop,
        "resize": {
            "method": "bicubic",
            "a": -0.75,
            "half_pixel_centers": False,
            "antialias": False,
            "clip": False,
        },
        "normalization": {
            "where": "inside the model",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences tf2onnx's reports of its steps, and TensorFlow's C++ below it."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with silent():
            yield
    finally:
        logger.setLevel(level)
