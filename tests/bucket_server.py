"""An S3 server on loopback, moto's, that can be made to fail."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from cli import buckets, stores

BUCKET = "bucket"
ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>no</Message></Error>'


class Server:
    """moto's S3 in this process.

    Attributes:
      scheme: what URLs of its places begin with.
      url: its address.
      fault: (method, key) -> what to do with a request: "" (answer it), a status and code such as
        "500 InternalError" or "429 ", "after " and these (do it, and say so nevertheless), "cut"
        (half of the answer) or "slow".
      ignored: a header that it does not know, such as "HTTP_IF_NONE_MATCH".
      requests: method and key of each request.
    """

    scheme = "s3"
    condition = "HTTP_IF_NONE_MATCH"

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.fault: Callable[[str, str], str] = lambda method, key: ""
        self.requests: list[tuple[str, str]] = []
        self.ignored = ""
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"].partition(f"/{BUCKET}/")[2]
        self.requests.append((method, key))
        environ.pop(self.ignored, None)
        fault = self.fault(method, key)
        done = fault.removeprefix("after ")
        if fault and done == fault and fault not in ("cut", "slow"):
            # Else what was sent would be taken for the next request on this connection.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._say(fault, start)
        if fault == "slow":
            time.sleep(0.05)
        answered: list[Any] = []
        content = b"".join(self._app(environ, lambda *line: answered.append(line)))
        if done != fault:
            return self._say(done, start)
        start(*answered[0])
        return self._cut(content) if fault == "cut" else [content]

    def _say(self, fault: str, start: Callable[..., Any]) -> Iterable[bytes]:
        status, _, code = fault.partition(" ")
        start(f"{status} x", [("Content-Type", "application/xml")])
        return [ERROR.format(code).encode()] if code else [b""]

    def _cut(self, content: bytes) -> Iterator[bytes]:
        yield content[: len(content) // 2]
        raise ConnectionAbortedError

    @functools.cached_property
    def client(self) -> Any:
        """A separate client, which meets no faults but the planned ones."""
        import boto3
        from botocore.config import Config

        retries = Config(retries={"total_max_attempts": 1})
        return boto3.client("s3", endpoint_url=self.url, config=retries)

    def objects(self) -> dict[str, bytes]:
        """Returns what the bucket holds, by key."""
        fault, self.fault = self.fault, lambda method, key: ""
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        keys = [row["Key"] for page in pages for row in page.get("Contents", ())]
        found = {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
        self.fault = fault
        return found

    def put(self, key: str, content: bytes) -> None:
        """Puts an object, as another program would."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def remove(self, key: str) -> None:
        """Removes an object, as another program would."""
        self.client.delete_object(Bucket=BUCKET, Key=key)


@functools.cache
def _the_server() -> Server:
    return Server()


@contextlib.contextmanager
def running(monkeypatch: Any, cache: Any) -> Iterator[Server]:
    """Yields a server with an empty bucket that the environment names, cached in `cache`."""
    for package in ("boto3", "moto"):
        pytest.importorskip(package)
    import moto.backends

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "very-secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = _the_server()
    server.fault, server.ignored = lambda method, key: "", ""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr(stores, "pause", lambda attempt: None)
    another_machine(monkeypatch, cache)
    moto.backends.get_backend("s3").reset()
    server.client.create_bucket(Bucket=BUCKET)
    server.requests.clear()
    yield server


def another_machine(monkeypatch: Any, cache: Any) -> None:
    """Goes on with another cache folder, and with nothing in memory."""
    monkeypatch.setenv(buckets.CACHE, str(cache))
    monkeypatch.setattr(buckets, "_shelf", buckets.Shelf())
