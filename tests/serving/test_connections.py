"""HTTP connections: framing, limits, times, and stops that lose nothing.

The application behind them has a few lines.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time

import pytest

from serving import connections


async def application(scope, receive, send):
    """Answers with the number of bytes of the body; /slow waits, /early does not read."""
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    text = str(size).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", str(len(text)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": text})


@pytest.fixture
def serve():
    """Starts servers, which end with the test."""
    servers = []

    def start(seconds=20.0):
        servers.append(connections.Server(application, "127.0.0.1", 0, seconds))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def connect(server):
    return socket.create_connection(server.server_address, timeout=20)


def read(connection):
    """Reads everything until the server closes the connection."""
    answer = b""
    while True:
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            return answer
        if not chunk:
            return answer
        answer += chunk


def raw(server, content):
    with connect(server) as connection:
        connection.sendall(content)
        return read(connection)


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n"),
        (b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n"),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
        (b"Content-Length: 5, 5\r\n", b"hello"),
        (b"Content-Length: +5\r\n", b"hello"),
        (b"Content-Length : 5\r\n", b"hello"),
        (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
        (CHUNKED, b"5;\nhello\r\n0\r\n\r\n"),
        (CHUNKED, b"-1\r\nhello\r\n0\r\n\r\n"),
    ],
)
def test_ambiguous_framing_is_refused(serve, head, body):
    """Otherwise a proxy in front could see another request in the same bytes."""
    answer = raw(serve(), HEAD + head + b"\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"connection: close" in answer.lower()


def test_bodies_by_length_and_in_chunks_on_one_connection(serve):
    client = http.client.HTTPConnection(*serve().server_address, timeout=20)
    chunks = iter([b"ab", b"cde"])  # an iterator is sent in chunks
    for body, size in ((b"x" * 300_000, 300_000), (chunks, 5), (b"", 0)):
        client.request("POST", "/", body)
        assert client.getresponse().read() == str(size).encode()
    client.close()


def test_an_early_answer_comes_before_the_body(serve):
    with connect(serve()) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_large_heads_are_refused(serve):
    server = serve()
    size = connections.MAX_HEAD
    assert raw(server, b"GET /" + b"x" * size + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 414 ")
    assert raw(server, HEAD + b"X: " + b"x" * size + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    with connect(server) as connection:  # without an end
        connection.sendall(HEAD)
        for _ in range(40):
            try:
                connection.sendall(b"X" * 4000)
            except OSError:
                break
        assert b" 431 " in read(connection)


def test_the_body_before_a_head_does_not_count_as_head(serve, monkeypatch):
    """A client may send its next request behind the body of the one before."""
    monkeypatch.setattr(connections, "MAX_HEAD", 200)
    size = 1000
    with connect(serve()) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size)
        time.sleep(0.1)
        connection.sendall(b"x" * size + HEAD)
        time.sleep(0.1)
        connection.sendall(b"Connection: close\r\nContent-Length: 2\r\n\r\nab")
        answers = read(connection)
    assert answers.count(b"HTTP/1.1 200 ") == 2 and answers.endswith(b"\r\n\r\n2")


def test_times(serve):
    """Ends a silent connection without a word, and a request that does not arrive with 408.

    Nobody else waits.
    """
    server = serve(seconds=0.4)
    silent, head, body = (connect(server) for _ in range(3))
    head.sendall(HEAD)
    body.sendall(HEAD + b"Content-Length: 5\r\n\r\nab")
    assert raw(server, HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nab").endswith(b"2")
    assert read(silent) == b""
    for connection in (head, body):
        assert read(connection).startswith(b"HTTP/1.1 408 ")
    for connection in (silent, head, body):
        connection.close()


def test_idle_connections_make_room_and_busy_ones_do_not(serve, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    server = serve()
    idle = [connect(server) for _ in range(4)]  # each takes the place of the oldest
    assert read(idle[0]) == read(idle[1]) == b""
    for connection in idle[2:]:
        connection.sendall(HEAD)  # a request has begun
    until = time.monotonic() + 10
    while not raw(server, b"").startswith(b"HTTP/1.1 503 "):
        assert time.monotonic() < until
    for connection in idle:
        connection.close()


def test_a_stop_answers_everything_in_flight(serve):
    server = serve()
    clients = [http.client.HTTPConnection(*server.server_address, timeout=20) for _ in range(16)]
    for i, client in enumerate(clients):
        client.request("POST", "/" if i % 2 else "/slow", b"x" * i)
    late = http.client.HTTPConnection(*server.server_address, timeout=20)
    late.connect()
    half = connect(server)
    half.sendall(HEAD + b"Content-Length: 5\r\n\r\nab")
    time.sleep(0.2)  # all have arrived, those for /slow are not answered
    stop = threading.Thread(target=server.shutdown)
    stop.start()
    time.sleep(0.2)
    half.sendall(b"cde")
    late.request("GET", "/")  # on its way when the stop began
    answers = [client.getresponse() for client in (*clients, late)]
    assert [answer.read() for answer in answers] == [*(str(i).encode() for i in range(16)), b"0"]
    assert read(half).endswith(b"\r\n\r\n5")
    stop.join(timeout=10)
    assert not stop.is_alive()
    with pytest.raises(OSError):
        connect(server)
    for connection in (*clients, late, half):
        connection.close()
