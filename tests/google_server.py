"""A server on loopback that answers as Google Cloud Storage does, and that can be made to fail.

It knows what the JSON API's reference says of listing in pages, metadata, content, uploads in one
request, deletion, generations and their conditions.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from cli import gcs, stores
from tests.bucket_server import BUCKET, another_machine


class Stored(NamedTuple):
    """An object."""

    content: bytes
    generation: int

    def described(self, key: str) -> dict[str, str]:
        """Returns its resource in JSON."""
        md5 = base64.b64encode(hashlib.md5(self.content).digest()).decode()
        size, generation = str(len(self.content)), str(self.generation)
        return {"name": key, "size": size, "generation": generation, "md5Hash": md5}


class Server:
    """Google Cloud Storage in this process, with the attributes of `bucket_server.Server`.

    Attributes:
      scheme, url, fault, requests: see there; an upload is a PUT.
      ignored: a parameter that it does not know, such as "ifGenerationMatch".
      damage: what it makes of each content that it gets.
      tokens: tokens of authorization that requests had.
      page: most objects in a page of a list.
    """

    scheme = "gs"
    condition = "ifGenerationMatch"

    def __init__(self) -> None:
        handler = type("Handler", (_Handler,), {"of": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.lock, self.generations = threading.Lock(), itertools.count(1_700_000_000_000_000, 999)
        self.reset()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def reset(self) -> None:
        """Empties the bucket, and answers everything."""
        self.fault: Callable[[str, str], str] = lambda method, key: ""
        self.damage: Callable[[bytes], bytes] = lambda content: content
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.stored: dict[str, Stored] = {}
        self.ignored, self.page = "", 1000

    def objects(self) -> dict[str, bytes]:
        """Returns what the bucket holds, by key."""
        return {key: it.content for key, it in sorted(self.stored.items())}

    def put(self, key: str, content: bytes) -> None:
        """Puts an object, as another program would."""
        with self.lock:
            self.stored[key] = Stored(content, next(self.generations))

    def remove(self, key: str) -> None:
        """Removes an object, as another program would."""
        del self.stored[key]


class _Handler(http.server.BaseHTTPRequestHandler):
    of: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: a second one would wait for its receipt

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        asked.pop(self.of.ignored, None)
        steps = parts.path.split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path == "/token":
            token = {"access_token": "very-secret", "expires_in": 3600, "token_type": "Bearer"}
            return self._send(200, json.dumps(token).encode(), {"Content-Type": "application/json"})
        if steps[1] in ("upload", "download"):
            del steps[1]
        bucket, key = steps[4], unquote(steps[6]) if len(steps) > 6 else asked.get("name", "")
        method = "PUT" if self.command == "POST" else self.command
        self.of.requests.append((method, key))
        self.of.tokens.add(self.headers.get("Authorization", ""))
        fault = self.of.fault(method, key)
        done = fault.removeprefix("after ")
        if fault and done == fault and fault not in ("cut", "slow"):
            return self._refuse(*fault.split(" "))
        if fault == "slow":
            time.sleep(0.05)
        with self.of.lock:
            status, content, headers = self._done(method, bucket, key, asked, body)
        if done != fault:
            return self._refuse(*done.split(" "))
        if status >= 400:
            return self._refuse(str(status), *headers.values())
        self._send(status, content, headers, len(content) // 2 if fault == "cut" else None)

    do_GET = do_POST = do_DELETE = _answer

    def _done(
        self, method: str, bucket: str, key: str, asked: dict[str, str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        if bucket != BUCKET:
            return (
                404,
                b"",
                {"reason": "notFound", "message": "The specified bucket does not exist."},
            )
        stored, found = self.of.stored, self.of.stored.get(key)
        if method == "PUT":
            generation = found.generation if found else 0
            if int(asked.get("ifGenerationMatch", generation)) != generation:
                return 412, b"", {"reason": "conditionNotMet"}
            stored[key] = Stored(self.of.damage(body), next(self.of.generations))
            return 200, json.dumps(stored[key].described(key)).encode(), {}
        if not key:
            keys = sorted(name for name in stored if name.startswith(asked.get("prefix", "")))
            start = int(asked.get("pageToken", 0))
            end = start + self.of.page
            page: dict[str, Any] = {}
            if keys[start:end]:
                page["items"] = [stored[name].described(name) for name in keys[start:end]]
            if end < len(keys):
                page["nextPageToken"] = str(end)
            return 200, json.dumps(page).encode(), {}
        if found is None:
            return 404, b"", {"reason": "notFound", "message": f"No such object: {bucket}/{key}"}
        described = found.described(key)
        if method == "DELETE":
            del stored[key]
            return 204, b"", {}
        if asked.get("alt") != "media":
            return 200, json.dumps(described).encode(), {}
        headers = {
            "X-Goog-Generation": described["generation"],
            "X-Goog-Hash": f"md5={described['md5Hash']}",
        }
        return 200, found.content, headers

    def _refuse(self, status: str, reason: str = "", message: str = "") -> None:
        error = {"code": int(status), "message": message, "errors": [{"reason": reason}]}
        self._send(int(status), json.dumps({"error": error}).encode() if reason else b"", {})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        self.close_connection = cut is not None


@functools.cache
def _the_server() -> Server:
    return Server()


@contextlib.contextmanager
def running(monkeypatch: Any, cache: Any) -> Iterator[Server]:
    """Yields a server with an empty bucket that the environment names, cached in `cache`."""
    server = _the_server()
    server.reset()
    monkeypatch.setenv(gcs.EMULATOR, server.url)
    monkeypatch.setattr(stores, "pause", lambda attempt: None)
    gcs._session.cache_clear()
    another_machine(monkeypatch, cache)
    yield server
