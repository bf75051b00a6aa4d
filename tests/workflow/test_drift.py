"""Drift of served images: what moved, and what to label next. The model is two sums."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import corrections
from serving import metrics
from serving.loading import Signature
from serving.request_log import RequestLog
from workflow import drift

NAMES = ("red", "blue")


class Colors(tf.Module):
    """Tells red from blue by the mean pixel, which is its embedding, too."""

    def _mean(self, image_bytes):
        def one(encoded):
            return tf.reduce_mean(tf.cast(tf.io.decode_png(encoded, 3), tf.float32), [0, 1]) / 255

        return tf.map_fn(one, image_bytes, fn_output_signature=tf.TensorSpec([3], tf.float32))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(self, image_bytes):
        mean = self._mean(image_bytes)
        probabilities = tf.nn.softmax(8 * tf.gather(mean, [0, 2], axis=1))
        return {"probabilities": probabilities, "status": tf.zeros_like(image_bytes, tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def embed(self, image_bytes):
        return {
            "embedding": self._mean(image_bytes),
            "status": tf.zeros_like(image_bytes, tf.int32),
        }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("export") / "1", Colors()
    signatures = {"serving_default": module.serving_default, "embed": module.embed}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "labels.txt").write_text("red\nblue\n")
    return folder


def pictures(count, green, seed):
    """Makes images of one color each: as much red as blue on average, and so much green."""
    rng = np.random.Generator(np.random.PCG64(seed))
    result = []
    for _ in range(count):
        file, share = io.BytesIO(), rng.uniform()
        color = [round(255 * share), green + int(rng.integers(5)), round(255 * (1 - share))]
        PIL.Image.fromarray(np.full((4, 4, 3), color, np.uint8)).save(file, "PNG")
        result.append(file.getvalue())
    return result


def log(folder, *requests):
    writer = RequestLog(folder, metrics.Metrics())
    for images in requests:
        signature = Signature("m", 1, "serving_default", {}, ("status",), None)
        inputs = {"image_bytes": np.array(images, object)}
        writer.add(signature, inputs, {"status": np.zeros(len(images), np.int32)})
    writer.close()


@pytest.fixture
def reference(tmp_path):
    (tmp_path / "known").mkdir()
    for i, content in enumerate(pictures(40, 0, 1)):
        (tmp_path / "known" / f"{i}.png").write_bytes(content)
    return str(tmp_path / "known")


@pytest.mark.parametrize(("green", "verdict"), [(0, "do not differ"), (200, "images differ")])
def test_the_verdict(model, reference, tmp_path, capsys, green, verdict):
    sent = pictures(40, green, 2)
    log(tmp_path / "requests", sent[:30], sent[30:], [sent[0]] * 5)
    drift.main(str(tmp_path / "requests"), reference, str(model), str(tmp_path / "out"), ask=3)
    out, found = capsys.readouterr().out, json.loads((tmp_path / "out" / "drift.json").read_text())
    assert verdict in out and verdict in (tmp_path / "out" / "drift.md").read_text()
    assert (found["embedding"]["p"] < drift.LEVEL) == (green == 200)
    assert found["requests"] == {"images": 40, "undecodable": 0, "answers": 45}
    assert sum(found["classes"]["requests"]) == 45 and sum(found["classes"]["reference"]) == 40
    assert found["classes"]["psi"] < 0.25  # as many red ones as before
    images = {path.read_bytes() for path in (tmp_path / "out" / "images").iterdir()}
    assert images == set(sent)


def test_what_to_label_next(model, reference, tmp_path):
    log(tmp_path / "requests", pictures(30, 0, 3))
    drift.main(str(tmp_path / "requests"), reference, str(model), str(tmp_path / "out"), ask=2)
    with open(tmp_path / "out" / "labels_next.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["ask"] for row in rows] == ["label_next"] * 2 + ["out_of_domain"] * 2
    assert {row["label"] for row in rows[:2]} == set(NAMES)
    confidence = [float(row["confidence"]) for row in rows]
    assert 0.5 <= max(confidence[2:]) <= min(confidence[:2])
    assert not any(row["checked"] for row in rows)
    assert all((tmp_path / "out" / "images" / row["file"]).is_file() for row in rows)


def test_answers_of_the_model_do_not_count_as_labels(model, reference, tmp_path):
    log(tmp_path / "requests", pictures(30, 0, 3))
    drift.main(str(tmp_path / "requests"), reference, str(model), str(tmp_path / "out"), ask=2)
    path = tmp_path / "out" / "labels_next.csv"
    with pytest.raises(InputError, match="no corrected row among 4"):
        corrections._counting(str(path))
    head, first, second, *rest = path.read_text(encoding="utf-8").splitlines()
    old = first.split(",")[1]
    changed = first.replace(f",{old},", f",{next(n for n in NAMES if n != old)},", 1)
    path.write_text("\n".join([head, changed, f"{second}yes", *rest]), encoding="utf-8")
    assert len(corrections._counting(str(path))) == 2


def test_what_cannot_be_compared(model, reference, tmp_path):
    log(tmp_path / "requests", pictures(19, 0, 4))
    with pytest.raises(InputError, match="--requests has 19 images that can be decoded"):
        drift.main(str(tmp_path / "requests"), reference, str(model), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "drift.json").exists()
    with pytest.raises(InputError, match="does not exist"):
        drift.main(str(tmp_path / "requests"), "nowhere", str(model), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
