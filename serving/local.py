"""A small server for development: TF Serving's protocols for the same exported models, where there is no TF Serving.

    ./run_serve.sh --serving_dir=SERVING_DIR --local

It answers predict, metadata and status over REST (`serving.rest`) and gRPC, on the service classes of tensorflow-serving-api,
and batches requests with TensorFlow's own scheduler by the numbers in `batching_parameters.txt`. **Not for production**: it
loads the versions of `models.config` once and looks for no others, keeps no metrics, knows no TLS, and Python is in its way.
"""

from __future__ import annotations

import signal
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from cli.errors import InputError
from serving import rest
from serving.models import Models, Refused

MAX_ELEMENTS = 2**26  # of one input: a tensor of one repeated value is small on the wire, and large after it
THREADS = 64
SECONDS = 30.0
"""For a REST request to arrive whole."""


def _spec(spec: Any) -> tuple[str, int | None, str | None]:
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label or None


def _array(proto: Any, name: str) -> np.ndarray:
    """A TensorProto as an array. Raises Refused."""
    try:
        count = int(np.prod([dimension.size for dimension in proto.tensor_shape.dim], dtype=object))
        if not 0 <= count <= MAX_ELEMENTS:
            raise ValueError(f"{count} elements")
        array = tf.make_ndarray(proto)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"input {name!r} is not a tensor ({str(error)[:200]})") from error
    return array.astype(object) if array.dtype.kind in "SO" else array


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """TF Serving's gRPC service for predictions: Predict and GetModelMetadata; the rest is UNIMPLEMENTED."""

    def __init__(self, models: Models):
        self._models = models

    def Predict(self, request: Any, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        """Computes a signature."""
        try:
            signature = self._models.signature(*_spec(request.model_spec), request.model_spec.signature_name)
            inputs = {name: _array(proto, name) for name, proto in request.inputs.items()}
            outputs = self._models.run(signature, inputs, tuple(request.output_filter))
        except Refused as error:
            context.abort(error.code, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = signature.model, signature.name
        response.model_spec.version.value = signature.version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value, tf.string if value.dtype == object else None))
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        try:
            if list(request.metadata_field) != ["signature_def"]:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "metadata_field must be signature_def")
            number = self._models.find(*_spec(request.model_spec))
        except Refused as error:
            context.abort(error.code, str(error))
        response.model_spec.name, response.model_spec.version.value = request.model_spec.name, number
        response.metadata["signature_def"].Pack(self._models.signature_map(request.model_spec.name, number))
        return response


class Status(model_service_pb2_grpc.ModelServiceServicer):
    """TF Serving's gRPC service for models: GetModelStatus; the rest is UNIMPLEMENTED."""

    def __init__(self, models: Models):
        self._models = models

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of one version, or of all."""
        try:
            return self._models.status(*_spec(request.model_spec))
        except Refused as error:
            context.abort(error.code, str(error))
            raise AssertionError from error  # abort raises


def start_grpc(host: str, port: int, models: Models) -> tuple[grpc.Server, int]:
    """The running server and its port (one that is free for `port` 0).

    Raises:
      InputError: the port is taken.
    """
    options = [("grpc.max_receive_message_length", rest.MAX_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=options, maximum_concurrent_rpcs=4 * THREADS)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise InputError(f"--grpc_port: {host}:{port} is taken; name another") from error
    server.start()
    return server, bound


def serve(serving_dir: Path, host: str, grpc_port: int, rest_port: int, batching: bool, seconds: float = SECONDS) -> None:
    """Serves until SIGINT or SIGTERM; the line `ready: …` says where.

    Raises:
      InputError: models that cannot be loaded, or a port that is taken.
    """
    models = Models(serving_dir, batching)
    grpc_server, grpc_port = start_grpc(host, grpc_port, models)
    try:
        rest_server = rest.start(host, rest_port, models, seconds)
    except OSError as error:
        grpc_server.stop(None)
        raise InputError(f"--rest_port: {host}:{rest_port} cannot be had ({error.strerror}); name another") from error
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    url = f"[{host}]" if ":" in host else host
    print(
        f"ready: http://{url}:{rest_server.server_address[1]} grpc://{url}:{grpc_port} (a server for development, not for production)",
        flush=True,
    )
    stop.wait()
    rest_server.shutdown()
    grpc_server.stop(grace=2.0).wait()
