"""Requests that hold too much memory together are refused until others have their answers."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving import local, rest
from serving.memory import Memory, Share
from serving.refused import Refused

from .running import PREDICT

PATH = PREDICT.partition(":")[0]  # a POST to it is refused with 400 once its body is there


class Models:
    """Stands in for loaded models, where no request gets as far as one."""

    def __init__(self, most):
        self.memory = Memory(most)

    def counted(self, *names):
        return contextlib.nullcontext()


@pytest.fixture
def address():
    server = rest.start("127.0.0.1", 0, Models(3000), 20.0)
    yield server.server_address
    server.shutdown()


def post(address, path, body, **headers):
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["error"]
    finally:
        connection.close()


def test_bodies_that_are_arriving_count(address):
    slow = http.client.HTTPConnection(*address, timeout=20)
    slow.putrequest("POST", PATH)
    slow.putheader("Content-Length", "2500")
    slow.endheaders(bytes(2400))
    until = time.monotonic() + 20
    while (answer := post(address, PATH, bytes(1000)))[0] != 503:  # until the 2,400 are there
        assert answer[0] == 400 and time.monotonic() < until
    assert "hold too many bytes" in answer[1]
    slow.send(bytes(100))
    assert slow.getresponse().status == 400
    assert post(address, PATH, bytes(3000))[0] == 400
    slow.close()


def test_what_gzip_holds_counts(address):
    body = gzip.compress(bytes(3000))
    assert post(address, PREDICT, body, **{"Content-Encoding": "gzip"})[0] == 503
    assert post(address, PATH, bytes(3000))[0] == 400


def test_messages_of_grpc_count():
    class Context:
        def abort(self, code, message):
            raise Refused(code, message)

    request, models = predict_pb2.PredictRequest(), Models(3000)
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([bytes(3000)]))
    with pytest.raises(Refused, match="hold too many bytes") as caught:
        local.Prediction(models).Predict(request, Context())
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    with Share(models.memory) as share:
        share.add(3000)
        with pytest.raises(Refused), Share(models.memory) as other:
            other.add(1)
