"""The client with servers that refuse, or that are not TF Serving."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time

import pytest

from cli.errors import InputError
from serving import client
from serving.client import Client, ServingError


@pytest.fixture
def answer():
    """Starts a server that gives `answers` (code, JSON), one after another.

    Returns the answers and the server's URL.
    """
    answers = []

    class Given(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            code, said = answers.pop(0)
            body = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Given)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answers, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_retries(monkeypatch, answer):
    """No connection and a full queue are tried again, with growing pauses; a refusal is not."""
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServingError, match="cannot be reached"):
            Client(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=4).status()
    assert len(pauses) == 4
    assert all(0.5 <= pause / (client.FIRST_PAUSE * 2**i) <= 1.5 for i, pause in enumerate(pauses))

    answers, url = answer
    connected = Client(url, retries=2, timeout=20)
    answers[:] = [
        (503, {"error": "later"}),
        (429, {"error": "later"}),
        (200, {"model_version_status": []}),
    ]
    assert connected.status() == {}
    for code in (400, 404, 413):
        answers[:] = [(code, {"error": "never"}), (200, {})]
        with pytest.raises(ServingError, match=f"answers {code}: never"):
            connected.status()


FORM = r"another form than TF Serving's of a model|2 answers to 1 images"
ROW = {"status": 0, "probabilities": [0.1, 0.9], "classes": [1], "labels": ["b"]}


OTHERS = [
    {},
    [],
    {"predictions": 3},
    {"predictions": [[0.1, 0.9]]},
    {"predictions": [{name: value for name, value in ROW.items() if name != "status"}]},
    {"predictions": [{**ROW, "probabilities": 0.9}]},
    {"predictions": [{**ROW, "classes": [7]}]},
    {"predictions": [{**ROW, "classes": [], "labels": []}]},
    {"predictions": [ROW, ROW]},
]


def test_answers_of_another_form(answer, tmp_path, capsys):
    answers, url = answer
    connected = Client(url, retries=1)
    (tmp_path / "a.png").write_bytes(b"an image")
    options = {
        "model": "m",
        "version": None,
        "label": None,
        "format": "text",
        "batch_size": 8,
        "timeout": 9.0,
        "retries": 0,
    }
    calls = [
        connected.status,
        connected.metadata,
        lambda: list(connected.predict([b"x"])),
        lambda: list(connected.embed([b"x"])),
    ]
    for said in OTHERS:
        for call in calls:
            # One answer: a second attempt would end in an error of the server's.
            answers[:] = [(200, said)]
            with pytest.raises(ServingError, match=FORM):
                call()
        answers[:] = [(200, said)]
        with pytest.raises(InputError, match=FORM) as refused:
            client.main(url, arguments=[str(tmp_path / "a.png")], **options)
        assert "\n" not in str(refused.value)
    answers[:] = [(200, {"predictions": [ROW]})]
    client.main(url, arguments=[str(tmp_path / "a.png")], **options)
    assert capsys.readouterr().out.endswith("a.png: b 90.0 %  (top 1: b 0.900)\n")


@pytest.mark.parametrize(
    "url", ["http://[::1:8501", "http://host:port", "http://:8501", "grpc://", "host:8501"]
)
def test_urls_that_are_none(url):
    with pytest.raises(ServingError, match="it must be http://HOST:PORT"):
        Client(url)
