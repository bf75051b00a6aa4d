"""The ONNX file of an export: its answers, its metadata, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from onnx import helper, numpy_helper

from cli.errors import InputError
from data.preprocessing import Preprocessing, decode
from serving import export, onnx_file, preprocess, versions
from training import model_dir

from .conftest import NAMES, linear


@pytest.fixture(scope="module")
def with_onnx(imagenet, tmp_path_factory):
    """Makes a version to which the same command with `--onnx` has added the file."""
    workdir = tmp_path_factory.mktemp("onnx")
    export.main(str(workdir), str(imagenet.directory), license="CC BY 4.0")
    before = (workdir / "classifier" / "1" / "saved_model.pb").stat().st_mtime_ns
    export.main(str(workdir), str(imagenet.directory), onnx=True)
    version = workdir / "classifier" / "1"
    assert (version / "saved_model.pb").stat().st_mtime_ns == before
    return version


def run(path, images):
    return onnxruntime.InferenceSession(str(path)).run(None, {"images": images})


def test_from_files_to_the_evaluations_answers(with_onnx, imagenet, encoded_images):
    """Uses NumPy, ONNX Runtime and the export's files alone, from pixels of several sizes."""
    extra = with_onnx / "assets.extra"
    description = json.loads((extra / "preprocessing.json").read_text())
    program: dict = {}
    # As a user without this project does.
    exec((extra / "preprocess.py").read_text(encoding="utf-8"), program)
    encoded = [
        *encoded_images("PNG"),
        *encoded_images("PNG", (9, 50)),
        *encoded_images("PNG", (16, 16)),
    ]
    images = np.stack([program["prepare"](decode(image).numpy(), description) for image in encoded])
    expected = imagenet.evaluate(encoded)
    assert np.ptp(expected, axis=0).max() > 0.1
    for count in (1, len(encoded)):
        logits, probabilities = run(extra / "model.onnx", images[:count])
        np.testing.assert_allclose(probabilities, expected[:count], atol=1e-5, rtol=0)
        np.testing.assert_allclose(tf.nn.softmax(logits), probabilities, atol=1e-6, rtol=0)


def test_what_the_file_says(with_onnx):
    proto = onnx.load_model(str(with_onnx / "assets.extra" / "model.onnx"))
    found = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(found["labels"]) == list(NAMES)
    assert json.loads(found["preprocessing"]) == json.loads(
        (with_onnx / "assets.extra" / "preprocessing.json").read_text()
    )
    assert found["license"] == "CC BY 4.0"
    assert [(entry.domain, entry.version) for entry in proto.opset_import if not entry.domain] == [
        ("", 17)
    ]
    (taken,), given = proto.graph.input, proto.graph.output
    shapes = [
        [d.dim_param or d.dim_value for d in tensor.type.tensor_type.shape.dim]
        for tensor in (taken, *given)
    ]
    assert [taken.name, *(tensor.name for tensor in given)] == ["images", "logits", "probabilities"]
    assert shapes == [["batch", 16, 16, 3], ["batch", 7], ["batch", 7]]
    stored = json.loads((with_onnx / "assets.extra" / "export.json").read_text())
    assert stored["onnx"]["opset"] == 17 and 0 < stored["onnx"]["deviation"] <= 1e-5
    assert "(ONNX, opset 17)" in (with_onnx / "MODEL_CARD.md").read_text(encoding="utf-8")
    versions.verify(with_onnx)


def test_another_license_reaches_the_file(with_onnx, imagenet):
    answers = run(with_onnx / "assets.extra" / "model.onnx", np.ones([1, 16, 16, 3], np.float32))
    export.main(str(with_onnx.parent.parent), str(imagenet.directory), license="CC0")
    proto = onnx.load_model(str(with_onnx / "assets.extra" / "model.onnx"))
    assert {entry.key: entry.value for entry in proto.metadata_props}["license"] == "CC0"
    again = run(with_onnx / "assets.extra" / "model.onnx", np.ones([1, 16, 16, 3], np.float32))
    np.testing.assert_array_equal(again[0], answers[0])
    versions.verify(with_onnx)


def test_float16_halves_the_file_and_stays_close():
    spec = model_dir.ModelSpec({"name": "stands in"}, Preprocessing(image_size=16), NAMES)
    model = linear(spec)
    single, half = (onnx_file.convert(model, spec, {}, weights) for weights in onnx_file.LIMITS)
    assert abs(len(single) - len(half) - 2 * 16 * 16 * 3 * len(NAMES)) < 200  # two bytes a weight
    images = np.random.Generator(np.random.PCG64([0])).uniform(0, 10, (4, 16, 16, 3))
    images = images.astype(np.float32)  # dark enough for probabilities other than 0 and 1
    exact, rounded = (onnx_file.deviation(content, model, images) for content in (single, half))
    assert exact <= 1e-6 and 10 * exact < rounded <= 2e-3


def test_a_file_that_answers_differently_fails_the_export(tmp_path, write_model, monkeypatch):
    load = lambda path: (linear(model_dir.read_spec(path)), model_dir.read_spec(path))  # noqa: E731
    monkeypatch.setattr(model_dir, "load", load)
    directory = write_model(tmp_path / "teacher", make=linear)
    convert = onnx_file.convert

    def changed(model, spec, metadata, weights):
        proto = onnx.load_from_string(convert(model, spec, metadata, weights))
        kernel = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        kernel.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(kernel), kernel.name))
        return proto.SerializeToString()

    monkeypatch.setattr(onnx_file, "convert", changed)
    with pytest.raises(
        InputError, match=r"differ by .* from the trained model's; 0.002 is accepted for float16"
    ):
        export.main(str(tmp_path / "w"), str(directory), weights="float16", onnx=True)
    # Nothing is half-written.
    assert [path.name for path in (tmp_path / "w").rglob("*")] == ["classifier"]

    export.main(str(tmp_path / "w"), str(directory), weights="float16")
    before = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="differ by"):
        export.main(str(tmp_path / "w"), str(directory), weights="float16", onnx=True)
    assert {
        path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()
    } == before


def test_bfloat16_is_refused(imagenet, tmp_path):
    with pytest.raises(InputError, match="--onnx: weights are float32 or float16, not bfloat16"):
        export.main(str(tmp_path / "w"), str(imagenet.directory), weights="bfloat16", onnx=True)
    assert not (tmp_path / "w").exists()


def test_weights_outside_float16_are_refused():
    graph = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(np.full(300, 1e6, np.float32), "w")]
    )
    with pytest.raises(InputError, match=r"a weight of 1e\+06 is outside float16's range"):
        onnx_file._store_half(graph)


def test_the_module_is_the_file_that_is_shipped(with_onnx):
    with open(preprocess.__file__, "rb") as file:
        assert (with_onnx / "assets.extra" / "preprocess.py").read_bytes() == file.read()
