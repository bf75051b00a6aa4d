"""The signatures of an export: answers against the evaluation path, and images that are none among good ones."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from data.preprocessing import Preprocessing, decode
from serving import images
from serving.answers import NOT_AN_IMAGE, OK, TOO_LARGE

from .conftest import NAMES

GOLDEN = 1e-5


def test_answers_equal_the_evaluation_path(exported, encoded_images):
    encoded = [*encoded_images("PNG"), *encoded_images("JPEG", (64, 16)), *encoded_images("PNG", (16, 16), "L")]
    encoded += [*encoded_images("BMP", n=1), *encoded_images("GIF", n=1)]
    answer = exported.serve(image_bytes=tf.constant(encoded))
    expected = exported.evaluate(encoded)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images do get different answers
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"], expected, atol=GOLDEN, rtol=0)
    order = np.argsort(-answer["probabilities"], axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(answer["classes"], order)
    assert answer["classes"].dtype == np.int32
    assert [[name.decode() for name in row] for row in answer["labels"]] == [[NAMES[c] for c in row] for row in order]
    assert answer["status"].tolist() == [OK] * len(encoded)


@pytest.mark.parametrize("size", [(37, 29), (16, 16), (7, 90)])
@pytest.mark.parametrize(("signature", "dtype"), [("predict_images", tf.float32), ("predict_images_uint8", tf.uint8)])
def test_pixels_get_the_answer_of_their_file(exported, encoded_images, size, signature, dtype):
    """PNG keeps pixels exactly."""
    encoded = encoded_images("PNG", size)
    answer = exported.serve(signature, images=tf.stack([tf.cast(decode(image), dtype) for image in encoded]))
    np.testing.assert_allclose(answer["probabilities"], exported.evaluate(encoded), atol=GOLDEN, rtol=0)
    assert set(answer) == {"probabilities", "classes", "labels", "status"}


def test_embedding_is_the_classifiers_input(small, encoded_images):
    encoded = encoded_images("PNG")
    answer = small.serve("embed", image_bytes=tf.constant([*encoded, b"no image"]))
    kernel, bias = small.model.get_layer("predictions").get_weights()
    logits = answer["embedding"][:3] @ kernel + bias
    np.testing.assert_allclose(tf.nn.softmax(logits), small.evaluate(encoded), atol=1e-5, rtol=0)
    assert answer["status"].tolist() == [OK, OK, OK, NOT_AN_IMAGE]
    assert not answer["embedding"][3].any()


def png_of(width, height, png):
    """A PNG that declares another size than it has."""
    return png[:16] + struct.pack(">II", width, height) + png[24:]


def gif_of(width, height, gif):
    """A GIF of one frame that declares a canvas of 1 × 1 and a frame of another size than it has."""
    frame = gif.index(b"\x2c\x00\x00\x00\x00")
    return gif[:6] + struct.pack("<HH", 1, 1) + gif[10 : frame + 5] + struct.pack("<HH", width, height) + gif[frame + 9 :]


def jpeg_of(width, height, jpeg):
    start = jpeg.index(b"\xff\xc0")
    return jpeg[: start + 5] + struct.pack(">HH", height, width) + jpeg[start + 9 :]


def bad_images(encoded_images):
    """(bytes, status) of images that must not be answered."""
    one = {format: encoded_images(format, (40, 30), n=1)[0] for format in ("PNG", "JPEG", "BMP", "GIF")}
    cases = [(b"", NOT_AN_IMAGE), (b"hello", NOT_AN_IMAGE), (bytes(2000), NOT_AN_IMAGE), (b"\xff" * 2000, NOT_AN_IMAGE)]
    for image in one.values():
        cases += [(image[:length], NOT_AN_IMAGE) for length in (1, 2, 3, 6, 17, 25)]
    cases += [(image[: len(image) // 2], NOT_AN_IMAGE) for format, image in one.items() if format != "GIF"]
    huge = [png_of(60000, 60000, one["PNG"]), jpeg_of(60000, 60000, one["JPEG"]), gif_of(60000, 60000, one["GIF"])]
    huge.append(one["BMP"][:18] + struct.pack("<ii", 60000, -60000) + one["BMP"][26:])
    return [*cases, *((image, TOO_LARGE) for image in huge)]


def test_bad_images_leave_the_others_their_answers(exported, encoded_images):
    good = [*encoded_images("PNG"), *encoded_images("JPEG"), *encoded_images("GIF")]
    bad = bad_images(encoded_images)
    batch, expected = [], []
    for i, (image, status) in enumerate(bad):
        batch += [good[i % len(good)], image]
        expected += [OK, status]
    answer = exported.serve(image_bytes=tf.constant(batch))
    assert answer["status"].tolist() == expected
    alone = exported.evaluate(good)
    np.testing.assert_allclose(answer["probabilities"][::2], alone[np.arange(len(bad)) % len(good)], atol=GOLDEN, rtol=0)
    assert not answer["probabilities"][1::2].any()
    assert (answer["classes"][1::2] == -1).all() and (answer["labels"][1::2] == b"").all()
    assert exported.serve(image_bytes=tf.constant([image for image, _ in bad]))["status"].tolist() == expected[1::2]  # not one good image


@pytest.mark.parametrize("signature", ["serving_default", "embed"])
def test_an_empty_batch_has_an_empty_answer(small, signature):
    answer = small.serve(signature, image_bytes=tf.constant([], tf.string))
    assert {name: value.shape[0] for name, value in answer.items()} == dict.fromkeys(answer, 0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF"])
def test_the_limit_is_on_the_pixels_of_the_header(encoded_images, format):
    image = encoded_images(format, (40, 30), n=1)[0]
    assert int(images.declared_pixels(tf.constant(image))) == 1200
    preprocessing = Preprocessing(image_size=16)
    for limit, status in [(1200, OK), (1199, TOO_LARGE)]:
        assert images.prepare(tf.constant([image]), preprocessing, limit)[1].numpy().tolist() == [status]


def test_all_frames_of_a_gif_count(encoded_images, monkeypatch):
    monkeypatch.setattr(images, "MAX_GIF_BLOCKS", 200)
    first, *others = [PIL.Image.open(io.BytesIO(image)) for image in encoded_images("PNG", (40, 30))]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, comment=b"c" * 700)
    declared = tf.function(images.declared_pixels, input_signature=[tf.TensorSpec([], tf.string)])
    assert int(declared(file.getvalue())) == 3600
    endless = file.getvalue()[:-1] + b"\x21\xfe" + b"\x01c" * 200
    assert int(declared(endless)) == tf.int64.max


def test_graph_holds_no_python_function(exported):
    saved = saved_model_pb2.SavedModel.FromString((exported.version / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    ops = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert {"DecodeImage", "ResizeBicubic", "IgnoreErrorsDataset"} <= ops  # the scan sees the preprocessing
    assert not {op for op in ops if "PyFunc" in op}


def test_saved_model_cli_shows_the_signatures(small):
    program = Path(sys.executable).parent / "saved_model_cli"
    command = [str(program), "show", "--dir", str(small.version), "--tag_set", "serve", "--signature_def"]
    done = subprocess.run([*command, "serving_default"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for text in (
        "inputs['image_bytes'] tensor_info",
        "dtype: DT_STRING",
        "outputs['probabilities']",
        "shape: (-1, 7)",
        "outputs['status']",
    ):
        assert text in done.stdout
