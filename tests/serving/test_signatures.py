"""The signatures of an export: answers against the evaluation path.

Some of the inputs are not images, among good ones.
"""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from data.examine import examine
from data.preprocessing import Preprocessing, decode, eval_image
from serving import images
from serving.answers import NOT_AN_IMAGE, NOT_FINITE, OK, TOO_LARGE, UNSUPPORTED

from .conftest import NAMES

GOLDEN = 1e-5


def test_answers_equal_the_evaluation_path(exported, encoded_images):
    encoded = [
        *encoded_images("PNG"),
        *encoded_images("JPEG", (64, 16)),
        *encoded_images("PNG", (16, 16), "L"),
    ]
    encoded += [*encoded_images("BMP", n=1), *encoded_images("GIF", n=1)]
    answer = exported.serve(image_bytes=tf.constant(encoded))
    expected = exported.evaluate(encoded)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images do get different answers
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"], expected, atol=GOLDEN, rtol=0)
    order = np.argsort(-answer["probabilities"], axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(answer["classes"], order)
    assert answer["classes"].dtype == np.int32
    assert [[name.decode() for name in row] for row in answer["labels"]] == [
        [NAMES[c] for c in row] for row in order
    ]
    assert answer["status"].tolist() == [OK] * len(encoded)


def test_transparent_images_get_the_answer_of_the_same_image_over_white(exported, encoded_images):
    transparent, over_white = [], []

    def add(image, mask, kind, **options):
        white = PIL.Image.new("RGB", image.size, "white")
        flat = PIL.Image.composite(image.convert("RGB"), white, mask)
        for files, picture, format in ((transparent, image, kind), (over_white, flat, "PNG")):
            file = io.BytesIO()
            picture.save(file, format, **(options if picture is image else {}))
            files.append(file.getvalue())

    for encoded in encoded_images("PNG"):
        image = PIL.Image.open(io.BytesIO(encoded))
        mask = image.convert("L").point(lambda level: 255 * (level > 127))
        add(PIL.Image.merge("RGBA", [*image.split(), mask]), mask, "PNG")
        few = image.quantize(4)
        mask = PIL.Image.fromarray(np.where(np.asarray(few) == 1, 0, 255).astype(np.uint8))
        add(few, mask, "PNG", transparency=1)
        add(few, mask, "GIF", transparency=1)
    answer = exported.serve(image_bytes=tf.constant(transparent))
    np.testing.assert_allclose(
        answer["probabilities"], exported.evaluate(over_white), atol=GOLDEN, rtol=0
    )


@pytest.mark.parametrize("size", [(37, 29), (16, 16), (7, 90)])
@pytest.mark.parametrize(
    ("signature", "dtype"), [("predict_images", tf.float32), ("predict_images_uint8", tf.uint8)]
)
def test_pixels_get_the_answer_of_their_file(exported, encoded_images, size, signature, dtype):
    """PNG keeps pixels exactly."""
    encoded = encoded_images("PNG", size)
    answer = exported.serve(
        signature, images=tf.stack([tf.cast(decode(image), dtype) for image in encoded])
    )
    np.testing.assert_allclose(
        answer["probabilities"], exported.evaluate(encoded), atol=GOLDEN, rtol=0
    )
    assert set(answer) == {"probabilities", "classes", "labels", "status"}


def test_prepared_pixels_get_logits_and_the_same_answer(exported, encoded_images):
    encoded = encoded_images("PNG")
    images = tf.stack([eval_image(image, exported.preprocessing) for image in encoded])
    answer = exported.serve("predict_prepared", images=images)
    assert set(answer) == {"logits", "probabilities"}
    np.testing.assert_allclose(
        answer["logits"], exported.model(images, training=False), atol=1e-4, rtol=0
    )
    np.testing.assert_allclose(
        answer["probabilities"], exported.evaluate(encoded), atol=GOLDEN, rtol=0
    )
    nodes = exported.saved.signatures["predict_prepared"].graph.as_graph_def()
    kinds = {node.op for f in nodes.library.function for node in f.node_def} | {
        node.op for node in nodes.node
    }
    assert not [kind for kind in kinds if re.search("Resize|String|Decode|If$|While$", kind)]


def test_embedding_is_the_classifiers_input(small, encoded_images):
    encoded = encoded_images("PNG")
    answer = small.serve("embed", image_bytes=tf.constant([*encoded, b"no image"]))
    kernel, bias = small.model.get_layer("predictions").get_weights()
    logits = answer["embedding"][:3] @ kernel + bias
    np.testing.assert_allclose(tf.nn.softmax(logits), small.evaluate(encoded), atol=1e-5, rtol=0)
    assert answer["status"].tolist() == [OK, OK, OK, NOT_AN_IMAGE]
    assert not answer["embedding"][3].any()


def png_of(width, height, png):
    """Makes a PNG that declares another size than it has."""
    return png[:16] + struct.pack(">II", width, height) + png[24:]


def gif_of(width, height, gif):
    """Makes a GIF of one frame that declares a canvas of 1 × 1 and another size for the frame."""
    frame = gif.index(b"\x2c\x00\x00\x00\x00")
    return (
        gif[:6]
        + struct.pack("<HH", 1, 1)
        + gif[10 : frame + 5]
        + struct.pack("<HH", width, height)
        + gif[frame + 9 :]
    )


def jpeg_of(width, height, jpeg):
    start = jpeg.index(b"\xff\xc0")
    return jpeg[: start + 5] + struct.pack(">HH", height, width) + jpeg[start + 9 :]


def bad_images(encoded_images):
    """Returns (bytes, status) of images that must not be answered."""
    one = {
        format: encoded_images(format, (40, 30), n=1)[0] for format in ("PNG", "JPEG", "BMP", "GIF")
    }
    cases = [
        (b"", NOT_AN_IMAGE),
        (b"hello", NOT_AN_IMAGE),
        (bytes(2000), NOT_AN_IMAGE),
        (b"\xff" * 2000, NOT_AN_IMAGE),
    ]
    for image in one.values():
        cases += [(image[:length], NOT_AN_IMAGE) for length in (1, 2, 3, 6, 17, 25)]
    cases += [
        (image[: len(image) // 2], NOT_AN_IMAGE) for format, image in one.items() if format != "GIF"
    ]
    huge = [
        png_of(60000, 60000, one["PNG"]),
        jpeg_of(60000, 60000, one["JPEG"]),
        gif_of(60000, 60000, one["GIF"]),
    ]
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
    np.testing.assert_allclose(
        answer["probabilities"][::2], alone[np.arange(len(bad)) % len(good)], atol=GOLDEN, rtol=0
    )
    assert not answer["probabilities"][1::2].any()
    assert (answer["classes"][1::2] == -1).all() and (answer["labels"][1::2] == b"").all()
    # There is not one good image.
    assert (
        exported.serve(image_bytes=tf.constant([image for image, _ in bad]))["status"].tolist()
        == expected[1::2]
    )


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
        assert images.prepare(tf.constant([image]), preprocessing, limit)[1].numpy().tolist() == [
            status
        ]


def test_all_frames_of_a_gif_count(encoded_images, monkeypatch):
    monkeypatch.setattr(images, "MAX_GIF_BLOCKS", 200)
    first, *others = [
        PIL.Image.open(io.BytesIO(image)) for image in encoded_images("PNG", (40, 30))
    ]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, comment=b"c" * 700)
    declared = tf.function(images.declared_pixels, input_signature=[tf.TensorSpec([], tf.string)])
    assert int(declared(file.getvalue())) == 3600
    endless = file.getvalue()[:-1] + b"\x21\xfe" + b"\x01c" * 200
    assert int(declared(endless)) == tf.int64.max


def marked(jpeg, marker):
    """Makes a JPEG with another start marker of the frame than baseline's."""
    return jpeg.replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


def png_after_a_chunk(png):
    """Makes a PNG with another first chunk than its header.

    The first chunk is a private one, with 1 × 1 where the size would be.
    """
    chunk = b"prVt" + struct.pack(">II", 1, 1) + bytes(5)
    return png[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[8:]


def gif_of_a_tall_and_a_wide_frame():
    """Makes a GIF with 6,000 × 6,000 pixels to allocate, though its frames have 12,000."""
    frames = []
    for size in [(1, 6000), (6000, 1)]:
        file = io.BytesIO()
        PIL.Image.new("P", size).save(file, "GIF")
        frames.append(file.getvalue()[file.getvalue().index(b"\x2c\0\0\0\0") : -1])
    # A screen of 1 × 1 and two colors.
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + b"".join(frames) + b";"


def bombs(encoded_images):
    """Returns name -> small files that declare more pixels than an export decodes by default.

    The default is 25 million. The files do so in every way that the decoder follows.
    """
    one = {
        format: encoded_images(format, (40, 30), n=1)[0] for format in ("PNG", "JPEG", "BMP", "GIF")
    }
    bmp = one["BMP"]
    found = {
        f"JPEG of frame {marker:x}": marked(jpeg_of(10000, 9999, one["JPEG"]), marker)
        for marker in (0xC0, 0xC1, 0xC2)
    }
    found["PNG"] = png_of(5001, 5000, one["PNG"])
    found["GIF"] = gif_of(6000, 5000, one["GIF"])
    found["GIF's screen"] = one["GIF"][:6] + struct.pack("<HH", 60000, 60000) + one["GIF"][10:]
    found["GIF of a tall and a wide frame"] = gif_of_a_tall_and_a_wide_frame()
    # 65536 × 65536 is 2^32, which is 0 in int32.
    for width, height in [
        (6000, 5000),
        (6000, -5000),
        (65536, 65536),
        (1, -(2**31)),
        (2**31 - 1, 2**31 - 1),
    ]:
        found[f"BMP of {width} x {height}"] = (
            bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
        )
    found["PNG of 65536 x 65536"] = png_of(65536, 65536, one["PNG"])
    return found


def test_bombs_are_not_decoded(small, encoded_images):
    names, encoded = zip(*bombs(encoded_images).items())
    assert max(map(len, encoded)) < 4000
    status = small.serve(image_bytes=tf.constant(encoded))["status"]
    assert dict(zip(names, status.tolist())) == dict.fromkeys(names, TOO_LARGE)
    assert small.serve("embed", image_bytes=tf.constant(encoded))["status"].tolist() == [
        TOO_LARGE
    ] * len(names)
    png = encoded_images("PNG", n=1)[0]
    others = [
        png_after_a_chunk(png),
        png_of(2**31, 1, png),
        png_of(2**32 - 1, 2**32 - 1, png),
        b"RIFF\x10\0\0\0WEBPVP8 ",
    ]
    assert small.serve(image_bytes=tf.constant(others))["status"].tolist() == [NOT_AN_IMAGE] * len(
        others
    )


GRAY = b"".join(bytes([i, i, i, 0]) for i in range(256))
STANDARD = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)


def bmp_of(bits, compression=0, header=40, table=b"", masks=b"", start=None):
    """Makes a BMP of 8 × 8 pixels: blue, green, red in 24 bits and more."""
    pixels = (bytes(range(8, 250)) * 8)[: 8 * bits]
    info = struct.pack("<IiiHHIIiiII", header, 8, 8, 1, bits, compression, 0, 0, 0, 0, 0) + masks
    info += bytes(max(0, header - len(info)))
    start = 14 + len(info) + len(table) if start is None else start
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + table + pixels


def palette_bmp():
    file = io.BytesIO()
    PIL.Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert("P").save(
        file, "BMP"
    )
    return file.getvalue()


BITMAPS = {
    "24 bits": (bmp_of(24), OK),
    "32 bits": (bmp_of(32), OK),
    "gray": (bmp_of(8, table=GRAY), OK),
    "128 gray levels": (bmp_of(8, table=GRAY[:512]), OK),
    "long header": (bmp_of(24, header=124), OK),
    "long header, masks": (bmp_of(32, 3, header=108, masks=STANDARD), OK),
    "masks in the usual order": (bmp_of(32, 3, masks=STANDARD), OK),
    "masks in another order": (
        bmp_of(32, 3, masks=struct.pack("<III", 0xFF, 0xFF00, 0xFF0000)),
        UNSUPPORTED,
    ),
    "colors": (palette_bmp(), UNSUPPORTED),
    "gray from white to black": (
        bmp_of(8, table=b"".join(GRAY[i : i + 4] for i in range(1020, -4, -4))),
        UNSUPPORTED,
    ),
    "run lengths": (bmp_of(8, 1, table=GRAY), UNSUPPORTED),
    "a JPEG inside": (bmp_of(24, 4), UNSUPPORTED),
    "1 bit": (bmp_of(1, table=GRAY[:8]), UNSUPPORTED),
    "4 bits": (bmp_of(4, table=GRAY[:64]), UNSUPPORTED),
    "16 bits": (bmp_of(16), UNSUPPORTED),
    "12 bits": (bmp_of(12), UNSUPPORTED),
    "short header": (bmp_of(24, header=12), UNSUPPORTED),
    "pixels inside the header": (bmp_of(24, start=20), NOT_AN_IMAGE),
    "pixels behind the end": (bmp_of(24, start=2**31 - 1), NOT_AN_IMAGE),
    "text": (
        b"BMW is a brand of cars; this is no picture of one, and it is long enough",
        NOT_AN_IMAGE,
    ),
}


def test_bmps_are_decoded_rightly_or_refused(small):
    encoded = [image for image, _ in BITMAPS.values()]
    answer = small.serve(image_bytes=tf.constant(encoded))
    expected = {name: status for name, (_, status) in BITMAPS.items()}
    assert dict(zip(BITMAPS, answer["status"].tolist())) == expected
    good = [image for image, status in BITMAPS.values() if status == OK]
    pixels = np.stack(
        [np.asarray(PIL.Image.open(io.BytesIO(image)).convert("RGB")) for image in good]
    )
    np.testing.assert_array_equal([decode(image) for image in good], pixels)
    # The same as the preparation of data, which looks at color tables alone.
    for image, status in BITMAPS.values():
        if status in (OK, UNSUPPORTED) and image[28] == 8 and image[30] == 0:
            assert isinstance(examine(image), str) == (status == UNSUPPORTED)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_pixels_that_are_not_finite_get_a_status(exported, value):
    """So do finite ones whose answer is not, here by an overflow."""
    images = np.full([3, 40, 40, 3], 100, np.float32)
    images[1, 0, 0, 0] = value  # a corner, which the imagenet style crops
    if np.isfinite(value):
        images[1] = np.where(np.arange(40)[:, np.newaxis] % 2 == 0, value, -value)[..., np.newaxis]
    answer = exported.serve("predict_images", images=tf.constant(images))
    assert answer["status"].tolist() == [OK, NOT_FINITE, OK]
    assert (
        not answer["probabilities"][1].any()
        and (answer["classes"][1] == -1).all()
        and (answer["labels"][1] == b"").all()
    )
    alone = exported.serve("predict_images", images=tf.constant(images[:1]))["probabilities"][0]
    np.testing.assert_allclose(answer["probabilities"][[0, 2]], [alone, alone], atol=GOLDEN, rtol=0)


def test_graph_holds_no_python_function(exported):
    saved = saved_model_pb2.SavedModel.FromString(
        (exported.version / "saved_model.pb").read_bytes()
    )
    graph = saved.meta_graphs[0].graph_def
    ops = {
        node.op
        for nodes in (graph.node, *(f.node_def for f in graph.library.function))
        for node in nodes
    }
    # The scan sees the preprocessing.
    assert {"DecodeImage", "ResizeBicubic", "IgnoreErrorsDataset"} <= ops
    assert not {op for op in ops if "PyFunc" in op}


def test_saved_model_cli_shows_the_signatures(small):
    program = Path(sys.executable).parent / "saved_model_cli"
    command = [
        str(program),
        "show",
        "--dir",
        str(small.version),
        "--tag_set",
        "serve",
        "--signature_def",
    ]
    done = subprocess.run(
        [*command, "serving_default"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "inputs['image_bytes'] tensor_info",
        "dtype: DT_STRING",
        "outputs['probabilities']",
        "shape: (-1, 7)",
        "outputs['status']",
    ):
        assert text in done.stdout
