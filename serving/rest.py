"""TF Serving's REST protocol in front of `serving.local`: HTTP, JSON, and what is refused before TensorFlow sees it.

    GET  /v1/models/NAME[/versions/N|/labels/LABEL]            status
    GET  /v1/models/NAME[/versions/N|/labels/LABEL]/metadata   signatures
    POST /v1/models/NAME[/versions/N|/labels/LABEL]:predict    {"instances": […]} or {"inputs": …}, and "signature_name"

An error is {"error": "…"} with TF Serving's HTTP code for it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import re
import socket
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import grpc
import numpy as np

from serving.models import Models, Refused, Signature

HTTP_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
MAX_CONNECTIONS = 128
MAX_BYTES = 32 * 2**20  # of one request

_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d{1,18})|/labels/([^/:]+))?(?:(/metadata)|:(predict|classify|regress))?", re.IGNORECASE
)


class Server(ThreadingHTTPServer):
    """A thread a connection, so many at most, each request within its time.

    Args:
      address: host and port; port 0 takes a free one.
      models: what is served.
      seconds: for a request to arrive whole.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], models: Models, seconds: float):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)
        self.models, self.seconds = models, seconds
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts the connection's thread, or answers 503 where there are too many."""
        if self._free.acquire(blocking=False):
            return super().process_request(request, client_address)
        with contextlib.suppress(OSError):
            request.settimeout(1.0)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that went away; they are not the server's trouble."""


class _Timed(io.RawIOBase):
    """The bytes of a socket until a deadline. A time-out for each read alone lets a slow client hold its thread for ever."""

    def __init__(self, connection: socket.socket):
        self._connection, self.deadline, self.received, self.expired = connection, 0.0, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        try:
            if left <= 0:
                raise socket.timeout
            self._connection.settimeout(left)
            count = self._connection.recv_into(buffer)
        except socket.timeout:
            self.expired = True
            raise
        self.received += count
        return count


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "serving.local", ""

    def setup(self) -> None:
        """Puts the deadline between socket and parser."""
        super().setup()
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        """Reads and answers one request; the connection ends after one that was not read to its end."""
        self._timed.deadline, self._timed.received, self._answered = time.monotonic() + self.server.seconds, 0, False
        self.requestline, self.request_version, self.command = "", self.protocol_version, ""
        super().handle_one_request()
        if self._timed.expired and self._timed.received and not self._answered:
            self._late()

    def do_GET(self) -> None:
        """Status and metadata."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Predict."""
        self._answer(self._post)

    def _get(self, match: re.Match[str]) -> str:
        models, spec = self.server.models, _spec(match)
        if match[5]:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f":{match[5]} wants POST")
        return models.metadata_json(*spec) if match[4] else models.status_json(*spec)

    def _post(self, match: re.Match[str]) -> str:
        body = self._body()
        if not match[5]:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a POST wants :predict at the end of the path")
        if match[5].lower() != "predict":
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, f":{match[5]} is not served here, :predict is")
        return predict_json(self.server.models, _spec(match), body)

    def _answer(self, method: Any) -> None:
        match = _PATH.fullmatch(self.path.partition("?")[0])
        try:
            if match is None:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"no such path: {self.path[:200]}")
            self._send(200, method(match))
        except Refused as error:
            self.close_connection = self.close_connection or match is None
            self._send(error.http or HTTP_CODES.get(error.code, 500), json.dumps({"error": str(error)}, ensure_ascii=False))
        except socket.timeout:
            self._late()
        except OSError:  # the client is gone
            raise
        except Exception:  # a bug of ours ends neither the server nor in silence
            traceback.print_exc()
            self._send(500, json.dumps({"error": "internal error; the server's stderr says more"}))

    def _late(self) -> None:
        self.close_connection = True
        self._send(408, json.dumps({"error": f"the request did not arrive within {self.server.seconds:g} s"}))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is None:
            self.close_connection = True
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a request needs a Content-Length", http=411)
        if not re.fullmatch(r"\d{1,18}", length):
            self.close_connection = True
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"Content-Length is {length[:50]!r}")
        if int(length) > MAX_BYTES:
            self.close_connection = True
            self._drain(int(length))
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the body has {int(length):,} bytes; {MAX_BYTES:,} are accepted", http=413)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"the body ended after {len(body):,} of {int(length):,} bytes")
        return body

    def _drain(self, length: int) -> None:
        """Reads on for a while: most clients look for an answer only when they have sent everything."""
        left = min(length, 8 * MAX_BYTES)
        with contextlib.suppress(OSError):  # too slow, or gone
            while left > 0:
                chunk = self.rfile.read1(min(left, 1 << 20))
                if not chunk:
                    return
                left -= len(chunk)

    def _send(self, code: int, text: str) -> None:
        content = text.encode("utf-8")
        self._answered = True
        self.connection.settimeout(self.server.seconds)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself finds wrong: also as JSON."""
        self.close_connection = True
        self._send(code, json.dumps({"error": message or "bad request"}))

    def log_message(self, format: str, *values: Any) -> None:
        """No line a request."""


def _spec(match: re.Match[str]) -> tuple[str, int | None, str | None]:
    return unquote(match[1]), int(match[2]) if match[2] else None, unquote(match[3]) if match[3] else None


def predict_json(models: Models, spec: tuple[str, int | None, str | None], body: bytes) -> str:
    """The answer to a predict request, both as JSON."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"JSON parse error: {str(error)[:200]}") from error
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, 'the body must be an object with either "instances" or "inputs"')
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "'signature_name' must be a string")
    signature = models.signature(*spec, name)
    by_row = "instances" in request
    values = _columns(request["instances"], signature) if by_row else request["inputs"]
    if not isinstance(values, dict) or _is_b64(values):
        if len(signature.inputs) != 1:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"'inputs' must be an object with {', '.join(signature.inputs)}")
        values = {next(iter(signature.inputs)): values}
    outputs = models.run(signature, {key: _array(value, key, signature) for key, value in values.items()})
    lists = {key: _plain(value, key) for key, value in outputs.items()}
    if len(lists) == 1:
        (answer,) = lists.values()
    elif by_row:
        answer = [dict(zip(lists, row)) for row in zip(*lists.values())]
    else:
        answer = lists
    try:
        return json.dumps({"predictions" if by_row else "outputs": answer}, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        message = "the answer holds NaN or infinity, which JSON has no numbers for; ask over gRPC"
        raise Refused(grpc.StatusCode.INTERNAL, message) from error


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _columns(instances: Any, signature: Signature) -> Any:
    """Row format to columns: a list of values, or of objects with every input."""
    if not isinstance(instances, list):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "'instances' must be a list")
    if not instances or not isinstance(instances[0], dict) or _is_b64(instances[0]):
        return {next(iter(signature.inputs)): instances} if len(signature.inputs) == 1 else instances
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict) or instance.keys() != signature.inputs.keys():
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"instance {i} must be an object with {', '.join(signature.inputs)}")
    return {name: [instance[name] for instance in instances] for name in signature.inputs}


def _array(value: Any, name: str, signature: Signature) -> np.ndarray:
    """JSON's nested lists as an array of the input's type."""
    if name not in signature.inputs:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"no input {name[:100]!r}; the signature has {', '.join(signature.inputs)}")
    dtype = signature.inputs[name].dtype
    try:
        if dtype == np.object_:
            array = np.array(_strings(value), dtype=object)
            if not all(isinstance(item, bytes) for item in array.flat):
                raise ValueError("lists of different lengths or depths")  # of which numpy makes an array of lists
            return array
        array = np.array(value)  # ragged lists raise
        if array.size == 0:
            return array.astype(dtype)
        if array.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
            raise ValueError(f"{array.dtype} where {dtype} is wanted")
        if dtype.kind in "iu" and (array.min() < np.iinfo(dtype).min or array.max() > np.iinfo(dtype).max):
            raise ValueError(f"a number outside of {dtype}")
        return array.astype(dtype)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"input {name!r}: {str(error)[:200]}") from error


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if _is_b64(value) and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64 ({error})") from error
    raise ValueError('a string or {"b64": "…"} is wanted')


def _plain(value: np.ndarray, name: str) -> Any:
    if value.dtype != np.object_:
        return value.tolist()

    def text(item: Any) -> Any:
        if isinstance(item, list):
            return [text(one) for one in item]
        return {"b64": base64.b64encode(item).decode()} if name.endswith("_bytes") else item.decode("utf-8", "replace")

    return text(value.tolist())


def start(host: str, port: int, models: Models, seconds: float) -> Server:
    """Serves in a thread of its own; `shutdown()` ends it."""
    server = Server((host, port), models, seconds)
    threading.Thread(target=server.serve_forever, name="rest", daemon=True).start()
    return server
