"""Tests what the development server has beside TF Serving's protocols.

That is: bodies, health, metrics, its description, its stop.
"""

from __future__ import annotations

import base64
import gc
import gzip
import http.client
import json
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest

from serving import json_requests, local, rest
from serving.client import Client, ServingError

from .running import PREDICT, PROGRAM, Process, call

ATOL = 1e-5


def test_gzip_bodies(server, encoded_images, small):
    (image,) = encoded_images("PNG", n=1)
    body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}).encode()
    headers = {"Content-Encoding": "gzip"}
    code, answer = call(server, PREDICT, gzip.compress(body), headers=headers)
    assert code == 200
    np.testing.assert_allclose(
        answer["predictions"][0]["probabilities"], small.evaluate([image])[0], atol=ATOL, rtol=0
    )
    bomb = gzip.compress(b" " * (json_requests.MAX_BYTES + 1))
    assert len(bomb) < 50_000
    for content, expected in (
        (bomb, 413),
        (body, 400),
        (gzip.compress(body)[:-1], 400),
        (gzip.compress(body) + b"x", 400),
    ):
        assert call(server, PREDICT, content, headers=headers)[0] == expected
    assert call(server, PREDICT, body, headers={"Content-Encoding": "br"})[0] == 415


def test_chunked_bodies(server, encoded_images):
    body = json.dumps(
        {
            "instances": [
                {"b64": base64.b64encode(image).decode()} for image in encoded_images("PNG")
            ]
        }
    ).encode()
    code, answer = call(server, PREDICT, iter([body[:100], body[100:]]))
    assert code == 200 and [row["status"] for row in answer["predictions"]] == [0, 0, 0]
    code, answer = call(server, PREDICT, (bytes(2**20) for _ in range(33)))
    assert code == 413 and "more than 33,554,432 bytes" in answer["error"]


def test_health(server):
    assert call(server, "/healthz") == (200, {"status": "ok"})
    # grpc.health.v1: HealthCheckRequest has `string service = 1`, HealthCheckResponse the enum
    # `status = 1`, SERVING 1.
    with grpc.insecure_channel(server.url["grpc"][7:]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for service in (b"", b"\x0a\x0aclassifier"):
            assert check(service, timeout=20) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x04none", timeout=20)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_metrics(server, encoded_images):
    def scrape():
        connection = http.client.HTTPConnection(urlsplit(server.url["http"]).netloc, timeout=60)
        connection.request("GET", "/monitoring/prometheus/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if not line.startswith("#")
        }

    before = scrape()
    images = [{"b64": base64.b64encode(image).decode()} for image in encoded_images("PNG")]
    assert call(server, PREDICT, json.dumps({"instances": images}))[0] == 200
    assert call(server, PREDICT, b"{")[0] == 400
    assert call(server, "/v1/models/none:predict", b"{}")[0] == 400
    after, changes = scrape(), {}
    for key, value in after.items():
        if value != before.get(key, 0) and "_bucket" not in key and "_sum" not in key:
            changes[key] = value - before.get(key, 0)
    names = 'model_name="classifier"'
    op = 'op_name="serving_default"'
    assert changes == {
        f':tensorflow:serving:request_count{{{names},status="OK"}}': 1,
        f':tensorflow:serving:request_count{{{names},status="INVALID_ARGUMENT"}}': 1,
        ':tensorflow:serving:request_count{model_name="",status="INVALID_ARGUMENT"}': 1,
        f':tensorflow:serving:request_latency_count{{{names},API="predict",entrypoint="REST"}}': 1,
        f':tensorflow:serving:runtime_latency_count{{{names},API="Predict",runtime="TF2"}}': 1,
        f":tensorflow:serving:batching:batch_size_count{{{names},{op}}}": 1,
        f':tensorflow:serving:batching:processed_batch_size_v2{{{names},{op},batch_size="4"}}': 1,
        ":tensorflow:serving:batching:batch_delay_us_v2_count"
        f'{{{names},{op},processed_batch_size="4"}}': (1),
    }
    size = f":tensorflow:serving:batching:batch_size_sum{{{names},{op}}}"
    assert after[size] - before.get(size, 0) == 3


def test_openapi_document_describes_what_is_served(server):
    code, document = call(server, "/openapi.json")
    assert code == 200 and document["openapi"] == "3.1.0"
    values = {"name": "classifier", "version": 1, "label": "stable"}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post") and not path.endswith(("metrics", "openapi.json")):
                body = b'{"instances": []}' if method == "post" else None
                code, answer = call(server, path.format(**values), body, method.upper())
                if "{label}" in path:  # an export has no labels
                    assert code == 400 and "no version label" in answer["error"]
                    continue
                reference = operation["responses"]["200"]["content"]["application/json"]["schema"][
                    "$ref"
                ]
                schema = document["components"]["schemas"][reference.rpartition("/")[2]]
                schema = schema.get("oneOf", [schema])[0]
                assert code == 200 and set(schema["required"]) <= answer.keys()


def test_pages_of_other_origins_may_ask_with_cors_alone(small):
    class Nothing:
        pass

    for cors in (False, True):
        server = rest.start("127.0.0.1", 0, Nothing(), 20.0, cors)
        connection = http.client.HTTPConnection(*server.server_address, timeout=20)
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        connection.request("OPTIONS", PREDICT, headers={"Origin": "http://example.org", **asked})
        response = connection.getresponse()
        response.read()
        answer = response.status, response.getheader("Access-Control-Allow-Origin")
        assert answer == ((200, "*") if cors else (405, None))
        connection.close()
        server.shutdown()


def test_a_stop_answers_every_request_and_ends_with_0(small, encoded_images):
    """Lets 16 clients over each protocol ask on and on; a stop refuses requests but breaks none."""
    process = Process([sys.executable, "-c", PROGRAM, str(small.path)])
    images, answered, stopping = encoded_images("PNG", n=1), [], threading.Event()

    def ask(scheme):
        with Client(process.url[scheme], retries=0, timeout=60) as connected:
            while True:
                stopped = stopping.is_set()
                try:
                    (row,) = connected.predict(images)
                except ServingError as error:
                    # Only after the stop, and only because the server is gone.
                    return (
                        str(error) if stopped or stopping.wait(5) else f"before the stop: {error}"
                    )
                answered.append(row["status"])

    with ThreadPoolExecutor(32) as pool:
        asking = [pool.submit(ask, scheme) for scheme in ("http", "grpc") for _ in range(16)]
        until = time.monotonic() + 60
        while len(answered) < 100:
            assert time.monotonic() < until
            time.sleep(0.01)
        stopping.set()
        assert process.stop() == 0
        reasons = {future.result() for future in asking}
    assert set(answered) == {0}
    assert all(
        re.search("refused|the server is stopping|UNAVAILABLE", reason) for reason in reasons
    ), reasons


def test_a_round_after_a_change_its_objects_leave_the_garbage_collector(monkeypatch):
    """A full round through TensorFlow's objects holds up every request for a tenth of a second."""
    stop, changes, told = threading.Event(), iter([False, True, True, False, False]), []

    class Changing:
        def __init__(self):
            self.version = []

        def refresh(self):
            told.append(any(one is self.version for one in gc.get_objects()))
            changed = next(changes, None)
            if changed is None:
                stop.set()
            if changed:
                self.version = [[]]
            return changed

    monkeypatch.setattr(local, "POLL_SECONDS", 0)
    try:
        local._follow(Changing(), stop)
    finally:
        gc.unfreeze()
    assert told == [True, True, True, True, False, False]
