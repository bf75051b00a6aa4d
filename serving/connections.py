"""HTTP connections of the development server: uvicorn's, with limits on number, size and time.

httptools parses strictly: a request with `Content-Length` and `Transfer-Encoding`, or with two
lengths, is refused. A request that is refused before its body is read gets its answer at once. The
rest of the body is discarded, until the request's time is over.
"""

from __future__ import annotations

import asyncio
import http
import json
import socket
import threading
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_CONNECTIONS = 512
MAX_HEAD = 2**16  # bytes of request line and headers
GRACE = 1.0
"""Seconds that an idle connection stays open during a stop: a request may be on its way."""
DRAIN_SECONDS = 30
"""Seconds that a stop waits for requests in flight."""

_HEAD, _BODY = "head", "body"


class Server:
    """Server of an ASGI application, in its own thread.

    Args:
      application: the ASGI application.
      host: address to listen on.
      port: port to listen on; 0 takes a free one.
      seconds: time for a request to arrive whole, and for an idle connection to stay open.

    Raises:
      OSError: the port cannot be opened.
    """

    def __init__(self, application: Any, host: str, port: int, seconds: float):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(MAX_CONNECTIONS)
        except OSError:
            self._socket.close()
            raise
        self.server_address: tuple[str, int] = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            application,
            http=type("Connection", (_Connection,), {"seconds": seconds}),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=MAX_CONNECTIONS,
            timeout_keep_alive=seconds,  # type: ignore[arg-type]  # seconds of loop.call_later
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    def shutdown(self) -> None:
        """Stops taking connections, answers all requests in flight, and returns."""
        self._server.should_exit = True
        self._thread.join()


class _Connection(HttpToolsProtocol):
    """Connection of uvicorn, with limits.

    A connection ends if part of a request is missing when the request's time is over. So a slow or
    silent client holds nothing but its own place. If no place is left, the connection that has been
    idle longest is closed.
    """

    seconds: float

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._arriving: str | None = None  # which part of a request
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._requests = 0  # requests that had parts in the last data
        self._refusal = 400, "the request is not valid HTTP/1.1"
        self._draining = False
        self._idle_since = time.monotonic()

    def connection_made(self, transport: Any) -> None:
        """Takes the connection, or refuses it where there are too many."""
        if len(self.connections) >= MAX_CONNECTIONS and not self._make_room():
            transport.write(_answer(503, "too many connections; try again later"))
            transport.close()
            self.transport = transport
            return
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        self._start_timer()

    def _make_room(self) -> bool:
        idle = [one for one in self.connections if isinstance(one, _Connection) and one.is_idle()]
        if not idle:
            return False
        longest = min(idle, key=lambda one: one._idle_since)
        self.connections.discard(longest)  # this protocol learns of its end later
        longest.transport.close()
        return True

    def is_idle(self) -> bool:
        """Returns whether no request is arriving or waits for its answer."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self._arriving is None and not self.pipeline

    def data_received(self, data: bytes) -> None:
        """Parses what has come, and refuses a head that is too large."""
        if self.transport.is_closing():
            return
        self._requests = int(self._arriving is not None)
        super().data_received(data)
        # Data with the end of one request and the beginning of the next is not counted.
        if self._arriving == _HEAD and self._requests == 1 and not self.transport.is_closing():
            self._count_head(len(data))

    def on_message_begin(self) -> None:
        """Notes that a request begins."""
        super().on_message_begin()
        self._arriving, self._head_bytes = _HEAD, 0
        self._requests += 1
        self._start_timer()

    def on_url(self, url: bytes) -> None:
        """Adds a part of the request line."""
        super().on_url(url)
        if len(self.url) > MAX_HEAD:
            self._refusal = 414, f"the path has more than {MAX_HEAD:,} bytes"
            raise ValueError(self._refusal)

    def on_headers_complete(self) -> None:
        """Starts the application, unless the head is too large."""
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD:
            self._refusal = 431, f"the headers have more than {MAX_HEAD:,} bytes"
            raise ValueError(self._refusal)
        super().on_headers_complete()
        self._arriving = _BODY
        if self._draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Notes that the whole request is there."""
        super().on_message_complete()
        self._arriving = None
        self._stop_timer()

    def on_response_complete(self) -> None:
        """Notes that the answer is sent."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notes that the connection has ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Ends the connection after the request in flight, or after a short while without one."""
        self._draining = True
        if self.is_idle():
            self.loop.call_later(GRACE, self._close_if_idle)
        elif self._arriving != _HEAD:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuses a request that the parser refuses."""
        self._refuse(*self._refusal)

    def _close_if_idle(self) -> None:
        if self.is_idle():
            self.transport.close()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._refuse(431, f"the head has more than {MAX_HEAD:,} bytes")

    def _refuse(self, code: int, message: str) -> None:
        """Answers the request that is arriving, unless another answer is on its way, and ends."""
        if self._arriving == _BODY:
            if not (self.cycle.response_started or self.pipeline):
                self.transport.write(_answer(code, message))
                self.cycle.disconnected = True  # the application must not answer, too
                self.cycle.message_event.set()
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.write(_answer(code, message))
        self.transport.close()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.seconds, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """Ends a connection if its request has not arrived in time."""
        if self.transport.is_closing():
            return
        if self._arriving is None:
            self.transport.close()
        else:
            self._refuse(408, f"the request did not arrive within {self.seconds:g} s")


class _Joined:
    """Transport that sends head and body of an answer in one system call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Sends `data` in the next turn of the event loop."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Ends the connection behind what has been written."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _answer(code: int, message: str) -> bytes:
    content = json.dumps({"error": message}).encode()
    head = [
        f"HTTP/1.1 {code} {http.HTTPStatus(code).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + content
