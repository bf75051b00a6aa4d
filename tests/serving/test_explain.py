"""Explanations: the occlusion map against classifiers that are known, and the server's answers."""

from __future__ import annotations

import base64
import io
import json
import threading

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from data.preprocessing import eval_image
from serving import explain
from serving.refused import Refused

from .conftest import NAMES
from .running import call

EXPLAIN = "/v1/models/classifier:explain"


def body(*images):
    instances = [{"image_bytes": {"b64": base64.b64encode(image).decode()}} for image in images]
    return json.dumps({"instances": instances}).encode()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 6), (6, 0), (6, 6)])
def test_a_classifier_that_looks_at_one_corner(row, column):
    """Its answer depends on 2 x 2 pixels of 28 x 28, which one square of the 49 covers."""
    rng = np.random.Generator(np.random.PCG64(1))
    image = rng.uniform(0, 255, (28, 28, 3)).astype(np.float32)
    top, left = 26 * (row > 0), 26 * (column > 0)
    image[top : top + 2, left : left + 2] = 250

    def predict(images):
        bright = images[:, top : top + 2, left : left + 2].mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1)

    drops = explain.occlusion(predict, image, 1)
    expected = np.zeros((7, 7))
    expected[row, column] = 250 / 255 - 0.5
    np.testing.assert_allclose(drops, expected, atol=1e-6)
    np.testing.assert_allclose(explain.occlusion(predict, image, 0), -expected, atol=1e-6)


@pytest.mark.parametrize("side", [5, 16, 224])
def test_each_square_covers_a_part_and_all_cover_everything(side):
    image = np.full((side, side, 3), 7, np.float32)
    copies = explain.covered(image)
    squares = (copies == 127.5).all(axis=-1)
    assert copies.shape == (49, side, side, 3) and squares.any(axis=(1, 2)).all()
    assert squares.any(axis=0).all() and (copies[~squares] == 7).all()
    assert squares.sum(axis=(1, 2)).max() <= (2 * side / 7 + 1) ** 2


def test_large_images_are_computed_in_pieces(monkeypatch):
    image = np.random.Generator(np.random.PCG64(2)).uniform(0, 255, (14, 14, 3))
    sizes = []

    def predict(images):
        sizes.append(len(images))
        mean = images.mean(axis=(1, 2, 3)) / 255
        return np.stack([mean, 1 - mean], axis=1)

    whole = explain.occlusion(predict, image.astype(np.float32), 0)
    monkeypatch.setattr(explain, "BATCH_PIXELS", 20 * 14 * 14)
    np.testing.assert_array_equal(explain.occlusion(predict, image.astype(np.float32), 0), whole)
    assert sizes == [50, 20, 20, 10]


def test_the_server_explains_as_the_trained_model_answers(server, small, encoded_images):
    (image,) = encoded_images("PNG", n=1)
    code, answer = call(server, EXPLAIN, body(image, b"no image"))
    assert code == 200 and answer["explanations"][1] == {"status": 1}
    found, expected = answer["explanations"][0], small.evaluate([image])[0]
    best = int(expected.argmax())
    assert (found["status"], found["version"], found["label"]) == (0, 1, NAMES[best])
    assert found["probability"] == pytest.approx(expected[best], abs=1e-5)
    assert found["neighbors"] is None

    pixels = eval_image(tf.constant(image), small.preprocessing).numpy()
    with PIL.Image.open(io.BytesIO(base64.b64decode(found["prepared"]))) as shown:
        np.testing.assert_allclose(np.asarray(shown), np.clip(pixels, 0, 255), atol=0.501)
    for row, column in ((0, 0), (2, 5), (6, 3)):  # cells of 16 / 7 pixels
        center = (np.array([row, column]) + 0.5) * 16 / 7
        first = np.maximum(np.rint(center - 16 / 7), 0).astype(int)
        last = np.minimum(np.rint(center + 16 / 7), 16).astype(int)
        changed = pixels.copy()
        changed[first[0] : last[0], first[1] : last[1]] = 127.5
        probabilities = tf.nn.softmax(small.model(changed[np.newaxis], training=False))[0]
        fallen = expected[best] - float(probabilities[best])
        assert found["drops"][row][column] == pytest.approx(fallen, abs=1e-5)
    assert np.ptp(found["drops"]) > 0.01


@pytest.mark.parametrize(
    ("request_body", "code", "message"),
    [
        (body(*[b"x"] * 5), 400, "at most 4 images"),
        (b'{"signature_name": "predict_prepared", "instances": []}', 400, "takes image_bytes"),
        (b"{", 400, "JSON parse error"),
    ],
)
def test_what_is_no_request_is_refused(server, request_body, code, message):
    found, answer = call(server, EXPLAIN, request_body)
    assert found == code and message in answer["error"]


def test_few_requests_wait(monkeypatch):
    go, explainer = threading.Event(), explain.Explainer()
    monkeypatch.setattr(explain, "answer", lambda version, images: str(go.wait(60)))
    one = {"image_bytes": np.array([b""], dtype=object)}
    waiting = [explainer.submit(None, one) for _ in range(explain.MOST_WAITING)]
    with pytest.raises(Refused, match="ask again later"):
        explainer.submit(None, one)
    go.set()
    assert [future.result(60) for future in waiting] == ["True"] * explain.MOST_WAITING
    assert explainer.submit(None, one).result(60) == "True"
