"""A client of TF Serving (or of `run_serve.sh --local`): a class to import, and a command.

    ./run_tool.sh client --url=http://127.0.0.1:8501 [--model=classifier] \
        [--version=2 | --label=LABEL] [--format=text|table|jsonl|csv|parquet] [--output=FILE] \
        [--batch_size=32] [--timeout=10] [--retries=3] IMAGE…

IMAGE is a file, a folder, a glob in quotes ('photos/**/*.jpg'), a list (`data.image_list`), or -
for one image on stdin. `--url=grpc://127.0.0.1:8500` speaks gRPC. Over REST the client imports
nothing but Python's own library.

    with Client("http://127.0.0.1:8501") as client:
        for answer in client.predict([Path("dog.jpg").read_bytes()]):
            best = answer["classes"][0]
            print(answer["labels"][0], answer["probabilities"][best], answer["status"])
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from serving.answers import OK, OUTPUTS, Answer, checked

Row = dict[str, Any]
T = TypeVar("T")

FIRST_PAUSE = 0.2  # seconds; doubled at each retry
_TRANSIENT_HTTP = (429, 502, 503, 504)


class ServingError(Exception):
    """Failure of a server that has not answered, or has refused; one line.

    Attributes:
      transient: whether the same request may succeed a little later.
    """

    def __init__(self, message: str, transient: bool = False):
        super().__init__(message)
        self.transient = transient


class Client:
    """Client that asks one model of a server, over REST or gRPC.

    Args:
      url: `http://HOST:PORT`, `https://…` or `grpc://HOST:PORT`.
      model: its name on the server.
      version: its version; None: the newest that is served under the name.
      label: instead of a version, where `models.config` has labels.
      timeout: seconds for each attempt.
      retries: attempts after the first. Only a failure that may pass is tried again: no
        connection, no answer in time, a full queue.
      batch_size: largest number of images in one request.

    Raises:
      ServingError: the URL has another form.
    """

    def __init__(
        self,
        url: str,
        model: str = "classifier",
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
        batch_size: int = 32,
    ):
        try:
            parts = urllib.parse.urlsplit(url)
            usable = (
                parts.scheme in ("http", "https", "grpc") and parts.hostname and parts.port != 0
            )
        except ValueError:  # half a pair of brackets, a port that is not a number
            usable = False
        if not usable:
            raise ServingError(
                f"the URL is {url!r}; it must be http://HOST:PORT, https://HOST:PORT or"
                " grpc://HOST:PORT"
            )
        if version is not None and label is not None:
            raise ServingError("name either a version or a label, not both")
        self.retries, self.batch_size = retries, batch_size
        transport = _Grpc if parts.scheme == "grpc" else _Rest
        self._transport: _Grpc | _Rest = transport(url, model, version, label, timeout)

    def predict(self, images: Sequence[bytes]) -> Iterator[Row]:
        """Yields the answer for each encoded image, as Python values.

        An answer has `probabilities` [K], `classes` [k], `labels` [k] and `status`.

        Raises:
          ServingError: no answer after all attempts, or a refusal. The answers for earlier images
            have been yielded.
        """
        return self._ask("serving_default", images)

    def embed(self, images: Sequence[bytes]) -> Iterator[Row]:
        """Yields for each encoded image its `embedding` [C] and `status`. Raises ServingError."""
        return self._ask("embed", images)

    def status(self) -> dict[int, str]:
        """Returns the state of each version, such as {1: "AVAILABLE"}. Raises ServingError."""
        return self._retry(self._transport.status)

    def metadata(self) -> dict[str, Any]:
        """Returns the signatures by name, each as TensorFlow's SignatureDef in JSON.

        Raises ServingError.
        """
        return self._retry(self._transport.metadata)

    def close(self) -> None:
        """Ends the connection."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, signature: str, images: Sequence[bytes]) -> Iterator[Row]:
        for first in range(0, len(images), self.batch_size):
            batch = images[first : first + self.batch_size]
            rows = self._retry(lambda batch=batch: self._transport.predict(signature, batch))  # type: ignore[misc]
            if len(rows) != len(batch):
                raise ServingError(f"{len(rows)} answers to {len(batch)} images")
            yield from rows

    def _retry(self, call: Callable[[], T]) -> T:
        pause = FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                return call()
            except ServingError as error:
                if not error.transient or attempt == self.retries:
                    raise
            # A random pause, so that many clients do not come back all at once.
            time.sleep(pause * random.SystemRandom().uniform(0.5, 1.5))
            pause *= 2
        raise AssertionError


def _understood(url: str, read: Callable[[], T]) -> T:
    """Returns what `read` finds in an answer. Raises ServingError where the layout is wrong."""
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ServingError(
            f"{url} gives an answer of another form than TF Serving's of a model of run_export.sh"
        ) from error


def _row(signature: str, row: Row) -> Row:
    """Returns an image's answer, with checked types of its values.

    Raises KeyError, TypeError or ValueError.
    """
    status = int(row["status"])
    if signature == "embed":
        return {**row, "status": status, "embedding": [float(value) for value in row["embedding"]]}
    kinds = dict(zip(OUTPUTS, (float, int, str)))
    columns = {name: [kind(value) for value in row[name]] for name, kind in kinds.items()}
    places = range(len(columns["probabilities"]))
    fit = len(columns["classes"]) == len(columns["labels"]) > 0 and all(
        place in places for place in columns["classes"]
    )
    if status == OK and not fit:
        raise ValueError("classes that are not those of the probabilities")
    return {**row, **columns, "status": status}


class _Rest:
    """Transport of TF Serving's REST protocol."""

    def __init__(
        self, url: str, model: str, version: int | None, label: str | None, timeout: float
    ):
        self._base, self._timeout = (
            f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}",
            timeout,
        )
        if version is not None:
            self._base += f"/versions/{version}"
        elif label is not None:
            self._base += f"/labels/{urllib.parse.quote(label, safe='')}"
        # Proxies of the environment are for the outside world; a model server is asked directly.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def predict(self, signature: str, images: Sequence[bytes]) -> list[Row]:
        instances = [
            {"image_bytes": {"b64": base64.b64encode(image).decode("ascii")}} for image in images
        ]
        body = json.dumps({"signature_name": signature, "instances": instances}).encode()
        return self._call(
            ":predict", lambda answer: [_row(signature, row) for row in answer["predictions"]], body
        )

    def status(self) -> dict[int, str]:
        return self._call(
            "",
            lambda answer: {
                int(one["version"]): str(one["state"]) for one in answer["model_version_status"]
            },
        )

    def metadata(self) -> dict[str, Any]:
        return self._call(
            "/metadata", lambda answer: {**answer["metadata"]["signature_def"]["signature_def"]}
        )

    def close(self) -> None:
        pass

    def _call(self, path: str, read: Callable[[Any], T], body: bytes | None = None) -> T:
        url = self._base + path
        try:
            request = urllib.request.Request(
                url, body, {"Content-Type": "application/json"} if body else {}
            )
            with self._opener.open(request, timeout=self._timeout) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.reason
            # The connection may break here, too.
            with contextlib.suppress(OSError, http.client.HTTPException):
                text = error.read(2000).decode("utf-8", "replace")
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                text = json.loads(text)["error"]
            raise ServingError(
                f"{url} answers {error.code}: {' '.join(str(text).split())[:300]}",
                error.code in _TRANSIENT_HTTP,
            ) from error
        except socket.timeout as error:
            raise ServingError(
                f"{url} has not answered within {self._timeout:g} s", True
            ) from error
        except urllib.error.URLError as error:
            late = isinstance(error.reason, socket.timeout)
            reason = (
                f"has not answered within {self._timeout:g} s"
                if late
                else f"cannot be reached ({error.reason})"
            )
            raise ServingError(f"{url} {reason}", True) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"{url}: the connection broke ({error})", True) from error
        except (ValueError, RecursionError) as error:
            raise ServingError(
                f"{url} answers something that is not JSON; is it TF Serving's REST port?"
            ) from error
        return _understood(url, lambda: read(answer))


class _Grpc:
    """Transport of TF Serving's gRPC protocol."""

    def __init__(
        self, url: str, model: str, version: int | None, label: str | None, timeout: float
    ):
        import grpc  # here, with TensorFlow below: REST needs neither
        import tensorflow as tf
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            get_model_status_pb2,
            model_service_pb2_grpc,
            predict_pb2,
            prediction_service_pb2_grpc,
        )

        self._tf, self._grpc, self._url, self._timeout = tf, grpc, url, timeout
        self._predict, self._status, self._metadata = (
            predict_pb2,
            get_model_status_pb2,
            get_model_metadata_pb2,
        )
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = grpc.insecure_channel(urllib.parse.urlsplit(url).netloc, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._spec = predict_pb2.PredictRequest().model_spec
        self._spec.name = model
        if version is not None:
            self._spec.version.value = version
        elif label is not None:
            self._spec.version_label = label

    def predict(self, signature: str, images: Sequence[bytes]) -> list[Row]:
        request = self._predict.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        request.inputs["image_bytes"].CopyFrom(
            self._tf.make_tensor_proto(list(images), self._tf.string)
        )
        outputs = self._call(self._prediction.Predict, request).outputs

        def rows() -> list[Row]:
            columns = {
                name: self._tf.make_ndarray(proto).tolist() for name, proto in outputs.items()
            }
            if "labels" in columns:
                columns["labels"] = [
                    [label.decode("utf-8", "replace") for label in row] for row in columns["labels"]
                ]
            return [_row(signature, dict(zip(columns, row))) for row in zip(*columns.values())]

        return _understood(self._url, rows)

    def status(self) -> dict[int, str]:
        response = self._call(
            self._model.GetModelStatus, self._status.GetModelStatusRequest(model_spec=self._spec)
        )
        return {
            state.version: self._status.ModelVersionStatus.State.Name(state.state)
            for state in response.model_version_status
        }

    def metadata(self) -> dict[str, Any]:
        from google.protobuf import json_format

        request = self._metadata.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        signatures = self._metadata.SignatureDefMap()
        self._call(self._prediction.GetModelMetadata, request).metadata["signature_def"].Unpack(
            signatures
        )
        found = json_format.MessageToDict(signatures, preserving_proto_field_name=True)
        return _understood(self._url, lambda: found["signature_def"])

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout)
        except self._grpc.RpcError as error:
            code, details = error.code(), " ".join((error.details() or "").split())[:300]
            transient = code in (
                self._grpc.StatusCode.UNAVAILABLE,
                self._grpc.StatusCode.DEADLINE_EXCEEDED,
            )
            raise ServingError(f"{self._url} answers {code.name}: {details}", transient) from error


def main(
    url: str,
    model: str,
    version: int | None,
    label: str | None,
    format: str,
    batch_size: int,
    timeout: float,
    retries: int,
    arguments: Sequence[str],
    output: str | None = None,
) -> None:
    """Prints or writes the server's answers for the images `arguments`; see the module.

    Raises InputError.
    """
    from cli.errors import InputError
    from serving import predict

    names = predict.find_image_files(format, arguments, output)
    options: dict[str, Any] = {
        "version": version,
        "label": label,
        "timeout": timeout,
        "retries": retries,
    }
    try:
        with Client(url, model, batch_size=batch_size, **options) as client:
            if output is None:
                predict.show(_answers(client, names), format, names)
            else:
                predict.save(
                    lambda left: _answers(client, left),
                    format,
                    names,
                    output,
                    f"{url} {model} {version} {label}",
                )
    except ServingError as error:
        raise InputError(str(error)) from error


def _answers(client: Client, names: Sequence[str]) -> Iterator[Answer]:
    from serving import predict

    for first in range(0, len(names), client.batch_size):  # no more in memory than one request
        batch = names[first : first + client.batch_size]
        rows = client.predict([predict.read(name) for name in batch])
        for name, row in zip(batch, rows):
            top = (
                [
                    (label, row["probabilities"][c])
                    for label, c in zip(row["labels"], row["classes"])
                ]
                if row["status"] == OK
                else []
            )
            yield checked(name, row["status"], top)
