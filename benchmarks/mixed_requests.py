"""Mixed requests over REST and gRPC, each answer compared with what its version must say.

Used by `benchmarks.rollover`. One `Client` has one connection of each protocol. What is asked
follows from a seed.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.json_requests import MAX_BYTES

TOLERANCE = 1e-3
"""Tolerance of a value, absolute and relative. Rounding, which differs with the batch, is less."""
STABLE, CANARY = "classifier", "classifier-canary"
PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(1, 5, 7, 3)
NONE = b'{"instances": []}'
HUGE = MAX_BYTES + 1


class Wrong(Exception):
    """An answer that is not the one that its version gives."""


class Refusal(Exception):
    """An answer that says no: its code and its words."""

    def __init__(self, code: int | grpc.StatusCode, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


class Unsent(Exception):
    """A connection that ended, without an answer, before the request was sent whole."""


STOPPING = ("the server is stopping", "Connection refused", "failed to connect")
"""Words of a refusal by a server that stops or has gone."""


def why_not_taken(error: Exception) -> str | None:
    """Says why the server cannot have computed a request that failed with `error`.

    Returns:
      One of `STOPPING`, or that the request was sent in part. None where the request may have been
      sent whole: without an answer it is lost.
    """
    if isinstance(error, Unsent):
        return "sent in part"
    return next((words for words in STOPPING if words in str(error)), None)


class Expected(NamedTuple):
    """Answers of the versions, as their graphs give them without a server.

    Attributes:
      images: encoded images; some are none.
      large: place of an image near the limit of pixels, which is asked for seldom.
      answers: version -> signature -> output -> array; a row for each image.
    """

    images: list[bytes]
    large: int
    answers: dict[int, dict[str, dict[str, np.ndarray]]]


class Allowed:
    """Versions that may answer under each name. A change widens the set, and narrows it after."""

    def __init__(self) -> None:
        self._versions: dict[str, frozenset[int]] = {STABLE: frozenset({1})}
        self._lock = threading.Lock()

    def of(self, name: str) -> frozenset[int]:
        """Returns the versions of `name`; none where the server may not know it."""
        with self._lock:
            return self._versions.get(name, frozenset())

    def widen(self, name: str, version: int) -> None:
        """Adds a version."""
        with self._lock:
            self._versions[name] = self._versions.get(name, frozenset()) | {version}

    def narrow(self, name: str, version: int) -> None:
        """Leaves one version."""
        with self._lock:
            self._versions[name] = frozenset({version})


class Client:
    """One client of both protocols.

    Args:
      rest: HOST:PORT.
      grpc_address: HOST:PORT.
      expected: what the versions answer.
      allowed: which of them may answer.
      seed: of the order and content of its requests.
    """

    def __init__(
        self, rest: str, grpc_address: str, expected: Expected, allowed: Allowed, seed: int
    ):
        self._rest = http.client.HTTPConnection(rest, timeout=120)
        self._channel = grpc.insecure_channel(
            grpc_address, [("grpc.max_send_message_length", 2 * HUGE)]
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._expected, self._allowed, self._rng = expected, allowed, random.Random(seed)
        self._kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "REST": (24, lambda: self._images(plain)),
            "REST, gzip": (12, lambda: self._images(gzipped)),
            "REST, chunked": (12, lambda: self._images(chunked)),
            "REST, embed": (8, lambda: self._images(plain, "embed")),
            "REST, pixels": (6, self._pixels),
            "gRPC": (24, self._grpc_images),
            "REST, no JSON": (3, lambda: self._refused(400, b'{"instances": [')),
            "REST, no such model": (3, lambda: self._refused(404, NONE, model="nobody")),
            "REST, damaged gzip": (3, lambda: self._refused(400, b"\x1f\x8b", gzip_named=True)),
            "REST, huge": (1, lambda: self._refused(413, bytes(HUGE))),
            "gRPC, wrong type": (3, self._grpc_wrong),
            "gRPC, huge": (1, self._grpc_huge),
        }

    def ask(self) -> str:
        """Sends one request, checks its answer, and returns its kind.

        Raises:
          Wrong: another answer than that of a version that may answer.
          Refusal: the server refuses what it must not refuse, or stops.
          Unsent: the connection broke before the request was sent whole.
          OSError, http.client.HTTPException: the connection broke after that.
        """
        weights = [weight for weight, _ in self._kinds.values()]
        (kind,) = self._rng.choices(list(self._kinds), weights)
        self._kinds[kind][1]()
        return kind

    def close(self) -> None:
        """Ends both connections."""
        self._rest.close()
        self._channel.close()

    def version(self, name: str) -> int:
        """Asks which version answers under a name. Raises Refusal."""
        return self._predict(name, [0]).model_spec.version.value

    def _draw(self) -> tuple[str, list[int]]:
        """Draws a model and some images."""
        names = [name for name in (STABLE, CANARY) if self._allowed.of(name)]
        places = [place for place in range(len(self._expected.images))]
        places.remove(self._expected.large)
        chosen = self._rng.choices(places, k=self._rng.randint(1, 4))
        if self._rng.random() < 0.003:
            chosen[0] = self._expected.large
        return self._rng.choice(names), chosen

    def _images(self, encode: Callable[[bytes], Any], signature: str = "serving_default") -> None:
        name, chosen = self._draw()
        before = self._allowed.of(name)
        rows = self._post(name, signature, self._instances(chosen), encode)
        allowed = before | self._allowed.of(name)
        outputs = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        self._compare(outputs, signature, chosen, allowed)

    def _pixels(self) -> None:
        before = self._allowed.of(STABLE)
        rows = self._post(STABLE, "predict_images_uint8", PIXELS.tolist(), plain)
        outputs = {"probabilities": np.array([rows[0]["probabilities"]])}
        allowed = before | self._allowed.of(STABLE)
        self._compare(outputs, "predict_images_uint8", [0], allowed)

    def _instances(self, chosen: Sequence[int]) -> list[Any]:
        images = (self._expected.images[place] for place in chosen)
        return [{"b64": base64.b64encode(image).decode()} for image in images]

    def _post(
        self, name: str, signature: str, instances: list[Any], encode: Callable[[bytes], Any]
    ) -> list[dict[str, Any]]:
        content = json.dumps({"signature_name": signature, "instances": instances}).encode()
        body, headers = encode(content)
        rows: list[dict[str, Any]] = self._call(name, body, headers)["predictions"]
        if len(rows) != len(instances):
            raise Wrong(f"{len(rows)} answers to {len(instances)} instances")
        return rows

    def _call(self, name: str, body: Any, headers: dict[str, str]) -> dict[str, Any]:
        try:
            broken = self._send(name, body, headers)
            try:
                response = self._rest.getresponse()
                answer: dict[str, Any] = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                if broken is None:
                    raise
                raise Unsent(f"{type(broken).__name__}: {broken}") from broken
        except (OSError, http.client.HTTPException, Unsent):
            self._rest.close()
            raise
        if response.status != 200:
            raise Refusal(response.status, str(answer["error"]))
        return answer

    def _send(self, name: str, body: Any, headers: dict[str, str]) -> OSError | None:
        """Sends a request. Returns what broke the connection before all was sent, or None.

        An answer may be there even so: a server refuses some requests by their heads.
        """
        try:
            self._rest.request("POST", f"/v1/models/{name}:predict", body, headers)
        except (BrokenPipeError, ConnectionResetError) as error:
            return error
        return None

    def _refused(
        self, code: int, body: bytes, model: str = STABLE, gzip_named: bool = False
    ) -> None:
        try:
            answer = self._call(model, body, {"Content-Encoding": "gzip"} if gzip_named else {})
        except Refusal as error:
            if error.code != code:
                raise
            return
        raise Wrong(f"{str(answer)[:200]} in place of {code}")

    def _predict(self, name: str, chosen: Sequence[int]) -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        images = [self._expected.images[place] for place in chosen]
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images))
        return self._answer(request)

    def _answer(self, request: Any) -> Any:
        try:
            return self._stub.Predict(request, timeout=120)
        except grpc.RpcError as error:
            raise Refusal(error.code(), error.details()) from error

    def _grpc_images(self) -> None:
        name, chosen = self._draw()
        before = self._allowed.of(name)
        response = self._predict(name, chosen)
        version, allowed = response.model_spec.version.value, before | self._allowed.of(name)
        if version not in allowed:
            raise Wrong(f"version {version} of {name} answers, and {sorted(allowed)} may")
        names = ("probabilities", "status")
        outputs = {key: tf.make_ndarray(response.outputs[key]) for key in names}
        self._compare(outputs, "serving_default", chosen, frozenset({version}))

    def _grpc_wrong(self) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = STABLE
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([1.0]))
        self._grpc_refused(request, grpc.StatusCode.INVALID_ARGUMENT)

    def _grpc_huge(self) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = STABLE
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([bytes(HUGE)]))
        self._grpc_refused(request, grpc.StatusCode.RESOURCE_EXHAUSTED)

    def _grpc_refused(self, request: Any, code: grpc.StatusCode) -> None:
        try:
            response = self._answer(request)
        except Refusal as error:
            if error.code != code:
                raise
            return
        raise Wrong(f"an answer of version {response.model_spec.version.value} in place of {code}")

    def _compare(
        self,
        outputs: dict[str, np.ndarray],
        signature: str,
        chosen: Sequence[int],
        allowed: frozenset[int],
    ) -> None:
        """Raises Wrong where no version that may answer gives these outputs for the images."""
        for version in allowed:
            answers = self._expected.answers[version][signature]
            if all(
                np.allclose(outputs[name], answers[name][chosen], rtol=TOLERANCE, atol=TOLERANCE)
                for name in outputs
                if name in answers
            ):
                return
        raise Wrong(f"no version of {sorted(allowed)} answers so to the images {list(chosen)}")


Encoded = tuple[Any, dict[str, str]]


def plain(content: bytes) -> Encoded:
    """Returns a body with its length."""
    return content, {}


def gzipped(content: bytes) -> Encoded:
    """Returns a compressed body."""
    return gzip.compress(content, 1), {"Content-Encoding": "gzip"}


def chunked(content: bytes) -> Encoded:
    """Returns a body in chunks of 10 kB."""

    def parts() -> Iterator[bytes]:
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    return parts(), {}
