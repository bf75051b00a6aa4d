"""Development server: TF Serving's protocols for the same exported models, without TF Serving.

    ./run_serve.sh --serving_dir=SERVING_DIR --local

It answers predict, metadata and status over REST (`serving.rest`) and gRPC, on the service classes
of tensorflow-serving-api, and computes requests together (`serving.batching`) by the numbers in
`batching_parameters.txt`. It follows `models.config` and new versions, and stops without losing a
request. **Not for production**: it has no TLS, and Python slows it down.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
import traceback
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from cli.errors import InputError
from serving import rest
from serving.connections import DRAIN_SECONDS
from serving.json_requests import MAX_BYTES
from serving.loading import array_of
from serving.memory import Share
from serving.models import Models, Refused, signature_map
from serving.request_log import RequestLog

THREADS = 64
SECONDS = 30.0
"""Seconds for a REST request to arrive whole."""
POLL_SECONDS = 1.0
"""Seconds between two looks at `models.config` and the versions."""
GATE_SECONDS = 0.5
"""Seconds between the first refusal of a stop and the end of the ports."""
HEALTH = "grpc.health.v1.Health"


def _spec(spec: Any) -> tuple[str, int | None, str | None]:
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label or None


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    """TF Serving's gRPC service for predictions.

    It has Predict and GetModelMetadata; the rest is UNIMPLEMENTED.
    """

    def __init__(self, models: Models):
        self._models = models

    def Predict(self, request: Any, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        """Computes a signature."""
        spec = request.model_spec
        try:
            with (
                self._models.counted(spec.name, "Predict", "GRPC"),
                Share(self._models.memory) as share,
            ):
                share.add(request.ByteSize())
                signature = self._models.signature(*_spec(spec), spec.signature_name)
                inputs = {name: array_of(proto, name) for name, proto in request.inputs.items()}
                outputs = self._models.run(signature, inputs, tuple(request.output_filter))
        except Refused as error:
            context.abort(error.code, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = (
            signature.model,
            signature.name,
        )
        response.model_spec.version.value = signature.version
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(
                tf.make_tensor_proto(value, tf.string if value.dtype == object else None)
            )
        return response

    def GetModelMetadata(
        self, request: Any, context: grpc.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signatures."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        try:
            if list(request.metadata_field) != ["signature_def"]:
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT, "metadata_field must be signature_def"
                )
            version = self._models.find(*_spec(request.model_spec))
        except Refused as error:
            context.abort(error.code, str(error))
        response.model_spec.name, response.model_spec.version.value = (
            request.model_spec.name,
            version.number,
        )
        response.metadata["signature_def"].Pack(signature_map(version))
        return response


class Status(model_service_pb2_grpc.ModelServiceServicer):
    """TF Serving's gRPC service for models: GetModelStatus; the rest is UNIMPLEMENTED."""

    def __init__(self, models: Models):
        self._models = models

    def GetModelStatus(
        self, request: Any, context: grpc.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the state of one version, or of all."""
        try:
            return self._models.status(*_spec(request.model_spec))
        except Refused as error:
            context.abort(error.code, str(error))
            raise AssertionError from error  # abort raises


class Health:
    """gRPC's standard health service, `grpc.health.v1.Health`, with Check and without Watch.

    The package grpcio-health-checking needs a newer protobuf than TensorFlow 2.15 has on Python
    3.9. The wire format of its two messages is that of protobuf's StringValue and Int32Value.

    Attributes:
      draining: whether a stop has begun.
    """

    SERVING, NOT_SERVING = 1, 2

    def __init__(self, models: Models):
        self._models, self.draining = models, False

    def check_health(self, request: Any, context: grpc.ServicerContext) -> wrappers_pb2.Int32Value:
        """Returns the state of the server, of a TF Serving service, or of a model.

        The request's service is "" for the server, else the name of a service or model.
        """
        known = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
        if request.value not in known:
            try:
                self._models.find(request.value, None, None)
            except Refused as error:
                context.abort(error.code, f"unknown service {request.value[:200]!r}")
        return wrappers_pb2.Int32Value(value=self.NOT_SERVING if self.draining else self.SERVING)

    def add_to(self, server: grpc.Server) -> None:
        """Registers the service."""
        decode, encode = (
            wrappers_pb2.StringValue.FromString,
            wrappers_pb2.Int32Value.SerializeToString,
        )
        check = grpc.unary_unary_rpc_method_handler(self.check_health, decode, encode)
        handler = grpc.method_handlers_generic_handler(HEALTH, {"Check": check})
        server.add_generic_rpc_handlers((handler,))


class Gate(grpc.ServerInterceptor):
    """Interceptor that refuses requests with UNAVAILABLE once a stop has begun, except for health.

    `grpc.Server.stop` cancels requests that have arrived and that no thread has taken yet. Clients
    ask another server after UNAVAILABLE, not after CANCELLED. So requests are refused first, and
    the server stops when the earlier requests are answered.

    Attributes:
      draining: whether a stop has begun.
    """

    def __init__(self) -> None:
        self.draining = False

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Returns the handler that answers a request."""
        if not self.draining or details.method.startswith(f"/{HEALTH}/"):
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, request: bytes, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping; ask again later")


def start_grpc(
    host: str, port: int, models: Models, health: Health, gate: Gate
) -> tuple[grpc.Server, int]:
    """Starts the server, and returns it and its port (a free one for `port` 0).

    Raises:
      InputError: the port is taken.
    """
    options = [("grpc.max_receive_message_length", MAX_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS),
        interceptors=[gate],
        options=options,
        maximum_concurrent_rpcs=4 * THREADS,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(models), server)
    health.add_to(server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise InputError(f"--grpc_port: {host}:{port} is taken; name another") from error
    server.start()
    return server, bound


def _follow(models: Models, stop: threading.Event) -> None:
    """Looks for new versions until `stop`."""
    settled = True
    while not stop.wait(POLL_SECONDS):
        try:
            changed = models.refresh()
        except Exception:  # a bug of ours must not end the server
            traceback.print_exc()
            continue
        if not changed and not settled:  # a round later, so that no request holds an old version
            _collect()
        settled = not changed


def _collect() -> None:
    """Frees what is garbage, and takes the rest out of later rounds of the garbage collector.

    A full round goes through all objects of TensorFlow and of the models. It would stop every
    request meanwhile.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def serve(
    serving_dir: Path,
    host: str,
    grpc_port: int,
    rest_port: int,
    batching: bool,
    seconds: float = SECONDS,
    cors: bool = False,
    log_requests: Path | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; the line `ready: …` says where. All models are warm by then.

    A stop answers all requests in flight first.

    Raises:
      InputError: models that cannot be loaded, a port that is taken, or a log that cannot be
        written.
    """
    models = Models(serving_dir, batching)
    if log_requests is not None:
        models.log = RequestLog(log_requests, models.metrics)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _collect()
    health, gate = Health(models), Gate()
    grpc_server, grpc_port = start_grpc(host, grpc_port, models, health, gate)
    try:
        rest_server = rest.start(host, rest_port, models, seconds, cors)
    except OSError as error:
        grpc_server.stop(None)
        raise InputError(
            f"--rest_port: {host}:{rest_port} cannot be had ({error.strerror}); name another"
        ) from error
    url = f"[{host}]" if ":" in host else host
    print(
        f"ready: http://{url}:{rest_server.server_address[1]} grpc://{url}:{grpc_port} (a server"
        " for development, not for production)",
        flush=True,
    )
    _follow(models, stop)
    health.draining = gate.draining = True
    rest_server.drain()
    time.sleep(GATE_SECONDS)  # new clients are refused before the ports close
    ended = grpc_server.stop(grace=DRAIN_SECONDS)
    rest_server.shutdown()
    ended.wait()
    if models.log is not None:
        models.log.close()
