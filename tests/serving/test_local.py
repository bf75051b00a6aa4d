"""The development server as a process on loopback ports, and the client on it.

The tests cover answers, refusals, and slow and greedy clients.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from cli.errors import InputError
from serving import client, connections, json_requests, local, rest
from serving.answers import NOT_FINITE, OK, TOO_LARGE
from serving.client import Client, ServingError
from serving.models import Input, Refused, Signature

from .conftest import NAMES
from .running import PREDICT, ROOT, call

ATOL = 1e-5


@pytest.fixture(params=["http", "grpc"])
def connected(server, request):
    """Connects a client of each protocol."""
    with Client(server.url[request.param], retries=0, batch_size=4, timeout=60) as connected:
        yield connected


def test_answers_equal_the_evaluation_path(connected, small, encoded_images):
    encoded = [*encoded_images("PNG"), *encoded_images("JPEG")]
    rows = list(connected.predict([encoded[0], b"no image", *encoded[1:]]))
    assert [row["status"] for row in rows] == [0, 1, 0, 0, 0, 0, 0]
    del rows[1]
    np.testing.assert_allclose(
        [row["probabilities"] for row in rows], small.evaluate(encoded), atol=ATOL, rtol=0
    )
    assert [row["labels"][0] for row in rows] == [
        NAMES[c] for c in small.evaluate(encoded).argmax(axis=1)
    ]
    expected = small.serve("embed", image_bytes=tf.constant(encoded))["embedding"]
    np.testing.assert_allclose(
        [row["embedding"] for row in connected.embed(encoded)], expected, atol=ATOL, rtol=1e-4
    )
    assert list(connected.predict([])) == []


def test_status_and_metadata(connected):
    assert connected.status() == {1: "AVAILABLE"}
    signatures = connected.metadata()
    assert set(signatures) == {
        "serving_default",
        "predict_images",
        "predict_images_uint8",
        "embed",
        "predict_prepared",
    }
    assert signatures["serving_default"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_versions_and_labels(server, encoded_images, scheme):
    images = encoded_images("PNG", n=1)
    for options in ({"version": 1}, {}):
        with Client(server.url[scheme], retries=0, timeout=60, **options) as connected:
            assert next(connected.predict(images))["status"] == 0
            assert connected.status() == {1: "AVAILABLE"}
    wrong = [
        ({"version": 7}, "404|NOT_FOUND"),
        ({"label": "gold"}, "400|INVALID"),
        ({"model": "none"}, "404|NOT_FOUND"),
    ]
    for options, match in wrong:
        with Client(server.url[scheme], retries=0, timeout=60, **options) as connected:
            for call in (
                lambda: next(connected.predict(images)),
                connected.status,
                connected.metadata,
            ):
                with pytest.raises(ServingError, match=match):
                    call()


def test_concurrent_clients_get_their_own_answers(server, small, encoded_images):
    """Requests are batched together in the server, but nobody gets another's rows.

    A bad image affects its sender alone.
    """
    encoded = [*encoded_images("PNG"), *encoded_images("JPEG"), b"no image"]
    expected = [*small.evaluate(encoded[:-1]), np.zeros(len(NAMES))]

    def ask(i):
        with Client(server.url["http"], retries=0, timeout=60) as connected:
            picked = [(i + k) % len(encoded) for k in range(1 + i % 3)]
            for row, k in zip(connected.predict([encoded[k] for k in picked]), picked):
                np.testing.assert_allclose(row["probabilities"], expected[k], atol=ATOL, rtol=0)
        return 1

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(ask, range(60))) == 60


GOOD = {"b64": base64.b64encode(b"no image, but bytes").decode()}
REFUSED = {
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "no object": b"[]",
    "neither": b"{}",
    "both": {"instances": [GOOD], "inputs": [GOOD]},
    "wrong signature": {"signature_name": "gold", "instances": [GOOD]},
    "signature no string": {"signature_name": 1, "instances": [GOOD]},
    "instances no list": {"instances": 7},
    "invalid base64": {"instances": [{"image_bytes": {"b64": "*&^"}}]},
    "base64 no string": {"instances": [{"image_bytes": {"b64": 1}}]},
    "wrong input": {"instances": [{"picture": GOOD}]},
    "one wrong input": {"instances": [{"image_bytes": GOOD}, {"picture": GOOD}]},
    "extra input": {"inputs": {"image_bytes": [GOOD], "more": [1]}},
    "wrong type": {"instances": [1]},
    "wrong rank": {"instances": [[GOOD]]},
    "null": {"instances": [None]},
    "wrong shape": {"signature_name": "predict_images", "instances": [[[1.0, 2.0]]]},
    "four channels": {"signature_name": "predict_images", "instances": [[[[1, 2, 3, 4]]]]},
    "ragged strings": {"instances": [["a"], ["b", "c"]]},
    "strings of other depths": {"inputs": ["a", ["b"]]},
    "ragged": {"signature_name": "predict_images", "instances": [[[[1, 2, 3]], [[1, 2]]]]},
    "strings for numbers": {"signature_name": "predict_images", "instances": [[[["1", "2", "3"]]]]},
    "out of range": {"signature_name": "predict_images_uint8", "instances": [[[[1, 2, 256]]]]},
    "fractions": {"signature_name": "predict_images_uint8", "instances": [[[[1, 2, 2.5]]]]},
    "deep": b'{"instances":' + b"[" * 100_000,
    "too many": {"instances": [GOOD] * 33},  # more than a batch may hold
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_malformed_requests_are_400(server, body):
    code, answer = call(server, PREDICT, body if isinstance(body, bytes) else json.dumps(body))
    assert code == 400
    assert answer.keys() == {"error"} and answer["error"]
    assert 'File "' not in answer["error"] and "\n" not in answer["error"]


def test_too_many_images_are_one_line(server):
    code, answer = call(server, PREDICT, json.dumps(REFUSED["too many"]))
    assert (code, answer["error"]) == (
        400,
        "the request has 33 rows; at most 32 are accepted in one request",
    )


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/nothing", None, 404),
        ("/v1/models/classifier/versions/x", None, 404),
        ("/v1/models/none:predict", b'{"instances": []}', 404),
        ("/v1/models/classifier/versions/99999999999999999999", None, 404),
        ("/v1/models/classifier", b"{}", 400),
        (PREDICT, None, 400),
        ("/v1/models/classifier:classify", b"{}", 501),
    ],
)
def test_paths_that_are_none(server, path, body, expected):
    # A host that is none changes nothing.
    code, answer = call(server, path, body, headers={"Host": "[::1"})
    assert (code, list(answer)) == (expected, ["error"])


def test_json_forms(server, small, encoded_images):
    """Tests rows and columns, one input with and without its name, and numbers.

    The requests use one connection, as http clients do.
    """
    encoded = encoded_images("PNG", (16, 16))
    images = [{"b64": base64.b64encode(image).decode()} for image in encoded]
    expected = small.evaluate(encoded)
    forms = [
        {"instances": images},
        {"instances": [{"image_bytes": image} for image in images]},
        {"inputs": images},
    ]
    forms.append({"inputs": {"image_bytes": images}})
    pixels = [tf.io.decode_image(image, 3).numpy().tolist() for image in encoded]
    forms += [
        {"signature_name": name, "instances": pixels}
        for name in ("predict_images", "predict_images_uint8")
    ]
    connection = http.client.HTTPConnection(urlsplit(server.url["http"]).netloc, timeout=60)
    for form in forms:  # one connection for all of them
        connection.request("POST", PREDICT, json.dumps(form))
        answer = json.loads(connection.getresponse().read())
        rows = (
            answer["outputs"]["probabilities"]
            if "inputs" in form
            else [row["probabilities"] for row in answer["predictions"]]
        )
        np.testing.assert_allclose(rows, expected, atol=ATOL, rtol=0)
    connection.request("POST", PREDICT, '{"instances": []}')
    assert json.loads(connection.getresponse().read()) == {"predictions": []}
    connection.close()


def no_number(text):
    raise AssertionError(f"{text} is no JSON")


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999"])
def test_pixels_that_are_not_finite_get_a_status(server, value):
    body = (
        f'{{"signature_name": "predict_images", "instances": [[[[{value}, 1, 2]]], [[[0, 1, 2]]]]}}'
    )
    connection = http.client.HTTPConnection(urlsplit(server.url["http"]).netloc, timeout=60)
    connection.request("POST", PREDICT, body)
    rows = json.loads(connection.getresponse().read(), parse_constant=no_number)["predictions"]
    connection.close()
    assert [row["status"] for row in rows] == [NOT_FINITE, OK]
    assert rows[0]["probabilities"] == [0] * len(NAMES) and sum(
        rows[1]["probabilities"]
    ) == pytest.approx(1)


def test_one_long_string_does_not_make_all_others_long():
    """NumPy's arrays of text give each value the room of the longest one: here 4 TB."""
    signature = Signature(
        "m", 1, "serving_default", {"x": Input(np.dtype(np.float32), (None,))}, ("y",), None
    )
    body = json.dumps({"instances": ["x" * 10**6] + [""] * 10**6}).encode()
    with pytest.raises(Refused, match="str where float32 is wanted"):
        json_requests.parse(body, lambda name: signature)


@pytest.mark.parametrize("dtype", [np.float32, object])
def test_lists_in_lists_without_end_are_refused(dtype):
    """NumPy 1 has arrays of up to 32 dimensions, NumPy 2 of up to 64."""
    signature = Signature(
        "m", 1, "serving_default", {"x": Input(np.dtype(dtype), (None,))}, ("y",), None
    )
    body = b'{"inputs": ' + 100 * b"[" + b'["a"]' + 100 * b"]" + b"}"
    with pytest.raises(Refused, match="input 'x': lists of different lengths or depths"):
        json_requests.parse(body, lambda name: signature)


def test_an_answer_of_nan_is_an_error():
    """JSON has no NaN, which a model that is not this project's may answer."""

    signature = Signature(
        "m", 1, "serving_default", {"x": Input(np.dtype(np.float32), (None,))}, ("y",), None
    )
    asked = json_requests.parse(b'{"instances": [1.0]}', lambda name: signature)
    with pytest.raises(Refused, match="JSON has no numbers for") as caught:
        json_requests.answer({"y": asked.inputs["x"] * np.nan}, asked.by_row)
    assert caught.value.code == grpc.StatusCode.INTERNAL


def test_bombs_are_not_decoded(connected, encoded_images):
    """Sends a few hundred bytes that declare 100 million pixels, beside a good image."""
    jpeg, good = encoded_images("JPEG", (40, 30), n=1)[0], encoded_images("PNG", n=1)[0]
    start = jpeg.index(b"\xff\xc0") + 5
    bomb = jpeg[:start] + (9999).to_bytes(2, "big") + (10000).to_bytes(2, "big") + jpeg[start + 4 :]
    assert [row["status"] for row in connected.predict([bomb, good, bomb])] == [
        TOO_LARGE,
        OK,
        TOO_LARGE,
    ]


def test_a_body_of_50_megabytes_is_413(server):
    code, answer = call(server, PREDICT, bytes(50_000_000))
    assert code == 413 and "50,000,000 bytes" in answer["error"]


def raw(server, *parts, pause=0.0):
    """Returns what the server answers to bytes that are sent one part after another."""
    host, port = urlsplit(server.url["http"]).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause)
        answer = b""
        while True:
            chunk = connection.recv(65536)
            if not chunk:
                return answer
            answer += chunk


HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n".encode()


@pytest.mark.parametrize(
    ("parts", "pause", "code"),
    [
        # A byte every half second.
        ([HEAD + b"Content-Length: 1000\r\n\r\n", *[b"x"] * 10], 0.5, 408),
        ([HEAD, *[b"X-A: b\r\n"] * 10], 0.5, 408),  # header after header
        ([HEAD + b"\r\n"], 0, 411),
        # Empty.
        ([HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], 0, 400),
        ([HEAD + b"Content-Length: -5\r\n\r\n"], 0, 400),
        ([HEAD + b"Content-Length: 99999999999\r\n\r\n"], 0, 413),
        ([b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n"], 0, 414),
        ([b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"], 0, 400),  # TLS
    ],
    ids=["slow body", "slow head", "no length", "chunked", "negative", "huge", "long path", "tls"],
)
def test_clients_that_misbehave(server, parts, pause, code):
    began = time.monotonic()
    answer = raw(server, *parts, pause=pause)
    assert f" {code} ".encode() in answer.split(b"\r\n")[0] or (
        code == 400 and b'{"error"' in answer
    )
    assert time.monotonic() - began < 20


def test_a_client_that_hangs_up_half_way(server):
    host, port = urlsplit(server.url["http"]).netloc.split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert call(server, "/v1/models/classifier")[0] == 200


def test_grpc_refusals(server):
    with grpc.insecure_channel(
        server.url["grpc"][7:], [("grpc.max_send_message_length", -1)]
    ) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def refused(request, method=stub.Predict):
            with pytest.raises(grpc.RpcError) as caught:
                method(request, timeout=60)
            return caught.value.code()

        def request(value, signature="", **more):
            request = predict_pb2.PredictRequest(**more)
            request.model_spec.name, request.model_spec.signature_name = "classifier", signature
            request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(value))
            return request

        code = grpc.StatusCode
        assert refused(request([b"x"], "gold")) == code.FAILED_PRECONDITION
        assert refused(request([[b"x"]])) == code.INVALID_ARGUMENT
        assert refused(request([1.0])) == code.INVALID_ARGUMENT
        assert refused(request([b"x"], output_filter=["gold"])) == code.INVALID_ARGUMENT
        assert refused(request([b"x"] * 33)) == code.INVALID_ARGUMENT
        assert refused(request([bytes(50_000_000)])) == code.RESOURCE_EXHAUSTED
        assert refused(predict_pb2.PredictRequest()) == code.NOT_FOUND
        bomb = request([b"x"])
        bomb.inputs["image_bytes"].tensor_shape.dim[0].size = 10**12  # one value, repeated
        assert refused(bomb) == code.INVALID_ARGUMENT
        assert (
            refused(get_model_status_pb2.GetModelStatusRequest(), stub.GetModelMetadata)
            == code.INVALID_ARGUMENT
        )
        filtered = stub.Predict(request([b"x"], output_filter=["status"]), timeout=60)
        assert list(filtered.outputs) == ["status"] and filtered.model_spec.version.value == 1
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        status = models.GetModelStatus(
            get_model_status_pb2.GetModelStatusRequest(model_spec=request([b"x"]).model_spec),
            timeout=60,
        )
        assert status.model_version_status[0].status.error_code == 0


def test_client_command(server, small, encoded_images, tmp_path, capsys, monkeypatch):
    encoded = encoded_images("PNG")
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "1.png", tmp_path / "2.png", tmp_path / "deep" / "3.png"]
    for file, content in zip(files, encoded):
        file.write_bytes(content)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encoded[1])))

    def run(*arguments, format="json", batch_size=2, **options):
        values = {
            "url": server.url["http"],
            "model": "classifier",
            "version": None,
            "label": None,
            "timeout": 60.0,
            "retries": 0,
        }
        client.main(
            **{**values, **options}, format=format, batch_size=batch_size, arguments=list(arguments)
        )
        return capsys.readouterr().out.splitlines()

    answers = [json.loads(line) for line in run(f"{tmp_path}/**/*.png", "-")]
    assert [answer["file"] for answer in answers] == [*map(str, files), "-"]
    expected = small.evaluate([*encoded, encoded[1]])
    np.testing.assert_allclose(
        [answer["probability"] for answer in answers], expected.max(axis=1), atol=ATOL, rtol=0
    )
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 2 images could not be used"):
        run(str(tmp_path / "bad.png"), str(files[0]), format="table")
    lines = capsys.readouterr().out.splitlines()
    assert "not a JPEG, PNG, BMP or GIF" in lines[0] and " %" in lines[1]
    for options, match in [
        ({"format": "xml"}, "text, table, jsonl, json, csv, parquet"),
        ({"url": "ftp://x"}, "must be http://HOST:PORT"),
        ({"url": "http://[::1:8501"}, "must be http://HOST:PORT"),
        ({"model": "none"}, "answers 404: Servable not found"),
        ({"version": 1, "label": "stable"}, "either a version or a label"),
    ]:
        with pytest.raises(InputError, match=match):
            run(str(files[0]), **options)
    wrong = [
        ([], "no images"),
        ([str(tmp_path / "*.gif")], "matches no files"),
        (["-", "-"], "named twice"),
        (["a" * 300], "not exist"),
    ]
    for names, match in wrong:
        with pytest.raises(InputError, match=match):
            run(*names)


def test_too_many_connections_are_503(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    server = rest.start("127.0.0.1", 0, None, 20.0)
    waiting = []
    try:
        for _ in range(2):
            waiting.append(socket.create_connection(server.server_address, timeout=20))
            waiting[-1].sendall(HEAD)  # an idle one would make room
            time.sleep(0.1)
        with socket.create_connection(server.server_address, timeout=20) as third:
            assert third.recv(100).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in waiting:
            connection.close()
        server.shutdown()


def test_settings_that_are_missing(small, tmp_path):
    with pytest.raises(InputError, match=r"holds no models\.config"):
        local.Models(tmp_path, batching=False)
    (tmp_path / "models.config").write_text((small.path / "models.config").read_text())
    with pytest.raises(InputError, match=r"batching_parameters\.txt is missing"):
        local.Models(tmp_path, batching=True)
    (tmp_path / "models.config").write_text(
        'model_config_list { config { name: "classifier" base_path: "/models/classifier" } }'
    )
    with pytest.raises(
        InputError, match=r"classifier holds no version of a model; mend models\.config"
    ):
        local.Models(tmp_path, batching=False)
    (tmp_path / "classifier").mkdir()
    with pytest.raises(InputError, match="holds no version"):
        local.Models(tmp_path, batching=False)
    (tmp_path / "models.config").write_text((small.path / "models.config").read_text())
    (tmp_path / "batching_parameters.txt").write_text("max_batch_size { value: 3 }")
    with pytest.raises(InputError, match="does not say num_batch_threads"):
        local.Models(tmp_path, batching=True)
    with pytest.raises(InputError, match="holds no SavedModel"):
        local.Models(tmp_path, batching=False)
    version = tmp_path / "classifier" / "1"
    version.mkdir()
    whole = (small.version / "saved_model.pb").read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole):  # the last one without its variables
        (version / "saved_model.pb").write_bytes(content)
        with pytest.raises(InputError, match=rf"{version} cannot be loaded") as caught:
            local.Models(tmp_path, batching=False)
        assert "\n" not in str(caught.value)


def test_a_taken_port_is_one_line(small):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = [
            f"--serving_dir={small.path}",
            "--local",
            "--grpc_port=0",
            f"--rest_port={taken.getsockname()[1]}",
        ]
        command = [sys.executable, "-m", "cli", "serve", *flags]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=dict(os.environ)
        )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --rest_port") and len(done.stderr.splitlines()) == 1
