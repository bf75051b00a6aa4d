"""`benchmarks.mixed_requests`: which failed requests are lost."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from benchmarks.mixed_requests import Allowed, Client, Expected, chunked, plain, why_not_taken

LARGE = bytes(20_000_000)  # more than the buffers of two sockets hold


def _fails(answer, received, content, encode=plain):
    """Sends a request to a server that ends the connection; returns why it was not taken.

    Args:
      answer: bytes that the server sends before the end.
      received: returns whether the server has read enough of the request.
      content: body of the request.
      encode: encoding of the body.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def serve():
            with server.accept()[0] as connection:
                connection.settimeout(30)
                read = b""
                while not received(read):
                    read += connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        client = Client(address, "127.0.0.1:1", Expected([], 0, {}), Allowed(), 0)
        try:
            with pytest.raises(Exception) as caught:
                client._call("classifier", *encode(content))
        finally:
            client.close()
            thread.join()
    return why_not_taken(caught.value)


@pytest.mark.parametrize(("encode", "end"), [(plain, b"}"), (chunked, b"0\r\n\r\n")])
def test_a_whole_request_without_an_answer_is_lost(encode, end):
    assert _fails(b"", lambda read: read.endswith(end), b'{"instances": []}', encode) is None


def test_half_an_answer_is_lost():
    half = b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"predi'
    assert _fails(half, lambda read: read.endswith(b"}"), b'{"instances": []}') is None


@pytest.mark.parametrize("encode", [plain, chunked])
def test_a_request_in_part_was_not_taken(encode):
    assert _fails(b"", lambda read: len(read) > 500, LARGE, encode) == "sent in part"


def test_the_answer_to_a_request_in_part_is_read():
    body = json.dumps({"error": "the server is stopping; ask again later"}).encode()
    answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert _fails(answer, lambda read: len(read) > 500, LARGE) == "the server is stopping"


def test_a_closed_port_takes_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    client = Client(address, "127.0.0.1:1", Expected([], 0, {}), Allowed(), 0)
    with pytest.raises(OSError, match="Connection refused") as caught:
        client._call("classifier", b"{}", {})
    client.close()
    assert why_not_taken(caught.value) == "Connection refused"
