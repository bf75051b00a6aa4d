"""The exported SavedModel: its signatures, its answers against the evaluation path, its folder, and `serving.predict` on it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from data.preprocessing import Preprocessing, decode, eval_image
from serving import export
from serving.versions import resolve
from stages.errors import InputError
from stages.files import write_json
from training import model_dir
from training.model_dir import ModelSpec

ROOT = Path(__file__).parents[2]
NAMES = ("zero", "one", "two", "three", "four", "five", "naïve 雪")
GOLDEN = 1e-6


def network(spec, seed=0):
    """An untrained network whose answers differ from image to image."""
    model = spec.build(seed)
    classifier = model.get_layer("predictions")
    classifier.kernel.assign(classifier.kernel * 400)
    return model


def linear(spec, seed=0):
    """Stands in for the network where its answers don't matter."""
    kernel = tf.keras.initializers.RandomNormal(stddev=0.01, seed=seed)
    return tf.keras.Sequential(
        [tf.keras.Input((16, 16, 3)), tf.keras.layers.Flatten(), tf.keras.layers.Dense(len(spec.label_names), kernel_initializer=kernel)]
    )


def write_model(directory, style="small", names=NAMES, seed=0, make=network):
    """A finished training directory."""
    architecture = {"name": "b0", "width": 0.1, "depth": 0.1, "stem_stride": 1, "strides": [1, 1, 1, 2, 1, 1, 1]}
    spec = ModelSpec(architecture, Preprocessing(image_size=16, style=style), tuple(names))
    model_dir.save(directory / "model", make(spec, seed), spec)
    write_json(directory / "summary.json", {"seed": seed})
    return directory


def encoded_images(format, size=(37, 29), mode="RGB", n=3):
    """`n` encoded pictures of smooth random colours, none of which looks like another."""
    result = []
    for i in range(n):
        rng = np.random.Generator(np.random.PCG64([i, len(format)]))
        small = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize(size, PIL.Image.Resampling.BICUBIC).convert(mode).save(file, format)
        result.append(file.getvalue())
    return result


class Exported(NamedTuple):
    """A model of one style of preprocessing, before and after its export."""

    directory: Path
    path: Path
    model: tf.keras.Model
    preprocessing: Preprocessing
    saved: object

    def serve(self, **inputs):
        """The SavedModel's answer as numpy arrays."""
        signature = "serving_default" if "image_bytes" in inputs else "predict_images"
        return {name: value.numpy() for name, value in self.saved.signatures[signature](**inputs).items()}

    def evaluate(self, encoded):
        """The probabilities on evaluation's own path, float32 [N, K]."""
        images = tf.stack([eval_image(image, self.preprocessing) for image in encoded])
        return tf.nn.softmax(self.model(images, training=False)).numpy()


@pytest.fixture(scope="module", params=["small", "imagenet"])
def exported(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    directory = write_model(root / "student", request.param)
    export.main(str(root / "export"), str(directory))
    model, spec = model_dir.load(directory)
    return Exported(directory, root / "export", model, spec.preprocessing, tf.saved_model.load(str(root / "export" / "1")))


def test_answers_equal_the_evaluation_path(exported):
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


@pytest.mark.parametrize("size", [(37, 29), (16, 16), (7, 90)])
def test_pixels_get_the_answer_of_their_file(exported, size):
    """PNG keeps pixels exactly."""
    encoded = encoded_images("PNG", size)
    answer = exported.serve(images=tf.stack([tf.cast(decode(image), tf.float32) for image in encoded]))
    np.testing.assert_allclose(answer["probabilities"], exported.evaluate(encoded), atol=GOLDEN, rtol=0)
    assert set(answer) == {"probabilities", "classes", "labels"}


def test_graph_holds_no_python_function(exported):
    saved = saved_model_pb2.SavedModel.FromString((exported.path / "1" / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    ops = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert "DecodeImage" in ops and "ResizeBicubic" in ops  # the scan sees the preprocessing
    assert not {op for op in ops if "PyFunc" in op}


def test_folder_and_summary(exported):
    path = exported.path
    summary = json.loads((path / "summary.json").read_text())
    assert summary["export"] == str(path / "1") and summary["label_names"] == list(NAMES)
    signatures = summary["signatures"]
    assert set(signatures) == {"serving_default", "predict_images"}
    assert signatures["serving_default"]["inputs"] == {"image_bytes": {"dtype": "string", "shape": [None]}}
    assert signatures["predict_images"]["inputs"] == {"images": {"dtype": "float32", "shape": [None, None, None, 3]}}
    for signature in signatures.values():
        assert signature["outputs"] == {
            "probabilities": {"dtype": "float32", "shape": [None, 7]},
            "classes": {"dtype": "int32", "shape": [None, 5]},
            "labels": {"dtype": "string", "shape": [None, 5]},
        }
    assert (path / "1" / "assets.extra" / "labels.txt").read_text(encoding="utf-8").splitlines() == list(NAMES)
    assert sorted(p.name for p in path.iterdir()) == ["1", "config.json", "summary.json"]


def test_again_says_done(exported, capsys):
    path = exported.path
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    export.main(str(path), str(exported.directory))
    assert "is done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_goes_on_after_a_kill(tmp_path, monkeypatch):
    """Killed while it writes, then between the rename and the summary: no half version is ever seen, and it ends with one."""
    directory = write_model(tmp_path / "teacher", names=("no", "yes"), make=linear)
    monkeypatch.setattr(model_dir, "load", lambda path: (linear(model_dir.read_spec(path)), model_dir.read_spec(path)))
    workdir = tmp_path / "export"
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "1":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.main(str(workdir), str(directory))
    assert not (workdir / "1").exists()
    with pytest.raises(InputError, match="no exported model"):
        resolve(workdir)

    monkeypatch.setattr(os, "replace", replace)
    export.main(str(workdir), f"{directory}/model")
    (workdir / "summary.json").unlink()
    written = (workdir / "1" / "saved_model.pb").stat().st_mtime_ns
    export.main(str(workdir), str(directory))
    assert (workdir / "1" / "saved_model.pb").stat().st_mtime_ns == written
    assert sorted(p.name for p in workdir.iterdir()) == ["1", "config.json", "summary.json"]
    # fewer than five classes: all of them
    assert json.loads((workdir / "summary.json").read_text())["signatures"]["serving_default"]["outputs"]["classes"]["shape"] == [None, 2]

    other = write_model(tmp_path / "other", names=("no", "yes"), seed=1, make=linear)
    with pytest.raises(InputError, match="another config"):
        export.main(str(workdir), str(other))
    for name in ("config.json", "summary.json"):
        (workdir / name).unlink()
    export.main(str(workdir), str(other))  # a folder that a server watches already: the next number
    assert json.loads((workdir / "summary.json").read_text())["version"] == 2
    assert resolve(workdir) == workdir / "2"


def test_refused_models(exported, tmp_path):
    unfinished = shutil.copytree(exported.directory, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    for directory, match in [(unfinished, "not finished"), (unfinished / "model", "not a finished"), (tmp_path / "none", "does not exist")]:
        with pytest.raises(InputError, match=match):
            export.main(str(tmp_path / "w"), str(directory))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("exported", ["imagenet"], indirect=True)  # the style was tested above; a process takes seconds
def test_predict_in_a_fresh_process(tmp_path, exported):
    files = [tmp_path / "picture.png", tmp_path / "ein Foto ü.jpeg"]
    encoded = [encoded_images("PNG", n=1)[0], encoded_images("JPEG", n=1)[0]]
    for file, content in zip(files, encoded):
        file.write_bytes(content)
    line = [sys.executable, "-m", "serving.predict", f"--model={exported.path}", "--format=json", *map(str, files)]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300, env={**os.environ, "PYTHONIOENCODING": "utf-8"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == [str(file) for file in files]
    for answer, row in zip(answers, exported.evaluate(encoded)):
        assert answer["label"] == NAMES[row.argmax()]
        np.testing.assert_allclose([p for _, p in answer["top"]], np.sort(row)[::-1][:5], atol=GOLDEN, rtol=0)
        assert answer["probability"] == answer["top"][0][1]
