"""Loads one exported version for the development server.

Its signatures are computed once before any client asks.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from cli.errors import InputError, one_line
from serving import metrics
from serving.batching import Arrays, Work
from serving.refused import Refused
from serving.settings import WARMUP
from serving.versions import MODELS_CONFIG, SAVED_MODEL, load

MAX_WARMUP_REQUESTS = 1000
"""Limit of TF Serving's own (`kMaxNumRecords` in saved_model_warmup_util.h)."""
# Of one input. A tensor of one repeated value takes few bytes on the wire, and many after it.
MAX_ELEMENTS = 2**26


class Input(NamedTuple):
    """Type (object for strings) and shape (None: any size) of an input."""

    dtype: np.dtype
    shape: tuple[int | None, ...]


class Signature(NamedTuple):
    """Function of a version: arrays by input's name -> arrays by output's name."""

    model: str
    version: int
    name: str
    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    work: Work


class Version(NamedTuple):
    """A loaded version.

    Attributes:
      path: its directory. The number alone does not name a version: `base_path` may change.
      number: number of the version.
      signatures: signatures by name.
      definitions: the signatures as TensorFlow's messages.
    """

    path: Path
    number: int
    signatures: dict[str, Signature]
    definitions: dict[str, meta_graph_pb2.SignatureDef]


def load_version(path: Path, model: str, measured: metrics.Metrics) -> Version:
    """Loads the version in `path` and plays its warm-up requests.

    Raises:
      InputError: there is no version, or it is damaged, or it cannot answer a warm-up request.
    """
    if not (path / SAVED_MODEL).is_file():
        raise InputError(
            f"{path} holds no SavedModel; mend {MODELS_CONFIG}, which names it, or export again"
        )
    try:
        loaded, content = load(path), (path / SAVED_MODEL).read_bytes()
    except OSError as error:  # no right to read it, or it is being replaced
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); mend its files' permissions"
        ) from error
    definitions = saved_model_pb2.SavedModel.FromString(content).meta_graphs[0].signature_def
    signatures = {
        name: _signature(model, int(path.name), name, loaded) for name in loaded.signatures
    }
    defined = {name: definition for name, definition in definitions.items() if name in signatures}
    _warm(path, model, signatures, measured)
    return Version(path, int(path.name), signatures, defined)


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Returns name, size and time of each file below `path`; it changes when a file does."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    found = ((str(file), file.stat()) for file in files)
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)


def array_of(proto: Any, name: str) -> np.ndarray:
    """Returns a TensorProto as an array. Raises Refused."""
    try:
        count = int(np.prod([dimension.size for dimension in proto.tensor_shape.dim], dtype=object))
        if not 0 <= count <= MAX_ELEMENTS:
            raise ValueError(f"{count} elements")
        array = tf.make_ndarray(proto)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        message = f"input {name!r} is not a tensor ({str(error)[:200]})"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message) from error
    return array.astype(object) if array.dtype.kind in "SO" else array


def _signature(model: str, number: int, name: str, loaded: Any) -> Signature:
    inputs, function = {}, loaded.signatures[name]
    for key, spec in function.structured_input_signature[1].items():
        dtype = np.dtype(object) if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)
        inputs[key] = Input(dtype, tuple(spec.shape.as_list()))
    outputs = tuple(sorted(function.structured_outputs))

    def compute(arrays: Arrays, kept: Any = loaded) -> Arrays:  # its resources end with it
        strings = {key for key, value in arrays.items() if value.dtype == object}
        try:
            tensors = {
                key: tf.constant(value, tf.string if key in strings else None)
                for key, value in arrays.items()
            }
            answer = function(**tensors)
            return {output: answer[output].numpy() for output in outputs}
        except tf.errors.OpError as error:
            code = _CODES.get(error.error_code, grpc.StatusCode.INTERNAL)
            raise Refused(code, reason(str(error.message))) from error

    return Signature(model, number, name, inputs, outputs, Work(model, name, compute))


def _warm(
    path: Path, model: str, signatures: dict[str, Signature], measured: metrics.Metrics
) -> None:
    """Answers the requests of `assets.extra/tf_serving_warmup_requests`, if the file exists."""
    file = path / "assets.extra" / WARMUP
    if not file.is_file():
        return
    began = time.perf_counter()
    try:
        for record in tf.data.TFRecordDataset(str(file)).take(MAX_WARMUP_REQUESTS):
            request = prediction_log_pb2.PredictionLog.FromString(
                record.numpy()
            ).predict_log.request
            signature = signatures[request.model_spec.signature_name or "serving_default"]
            signature.work.compute(
                {key: array_of(proto, key) for key, proto in request.inputs.items()}
            )
    except (Refused, KeyError, TypeError, DecodeError, tf.errors.OpError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} cannot answer its warm-up requests ({why}); export it again"
        ) from error
    microseconds = 1e6 * (time.perf_counter() - began)
    measured.observe(metrics.WARMUP, microseconds, f"{model}/{path.name}", "OK")


# tf.errors.OpError.error_code (google.rpc.Code) -> gRPC's own
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_STACK = ("Graph execution error:", "Detected at node", 'File "', "<stack traces unavailable>")


def reason(message: str) -> str:
    """Returns TensorFlow's error message as one line, without its Python stack.

    The stack names files of this machine.
    """
    lines = [line.strip() for line in message.splitlines()]
    last = max((i for i, line in enumerate(lines) if line.startswith(_STACK)), default=-1)
    text = " ".join(lines[last + 1 :])
    text = re.sub(r"\[\[.*?\]\]|\{\{.*?\}\}|\[Op:\w+\]", "", text)
    return " ".join(text.split())[:500] or "the model cannot compute this request"
