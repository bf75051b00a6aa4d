"""An export in TensorFlow's C API, without Python's TensorFlow: the same probabilities."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from tests.serving import c_api

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
from pathlib import Path
from tests.serving import c_api
path, *files = map(Path, sys.argv[1:])
model = c_api.Model(path, c_api.tensor_names(path))
images = [file.read_bytes() for file in files]
answers = {signature: model.run(images, signature) for signature in ("serving_default", "embed")}
assert model.run([])["status"] == []
model.close()
assert not {"tensorflow", "numpy"} & set(sys.modules)
print(json.dumps(answers, default=lambda value: value.decode()))
"""


def test_same_probabilities_as_python(exported, encoded_images, tmp_path):
    encoded = [
        *encoded_images("PNG"),
        b"no image",
        *encoded_images("JPEG"),
        b"",
        *encoded_images("GIF", n=1),
        *encoded_images("BMP", n=1),
    ]
    files = []
    for i, content in enumerate(encoded):
        files.append(tmp_path / str(i))
        files[-1].write_bytes(content)
    command = [sys.executable, "-c", PROGRAM, str(exported.version), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for signature, answer in answers.items():
        expected = exported.serve(signature, image_bytes=tf.constant(encoded))
        assert set(answer) == set(expected)
        for name, values in expected.items():
            if values.dtype == np.float32:
                np.testing.assert_allclose(answer[name], values, atol=1e-5, rtol=0)
            else:
                assert (
                    answer[name] == [[x.decode() for x in row] for row in values]
                    if name == "labels"
                    else values.tolist()
                )
    assert answers["serving_default"]["status"] == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_damaged_models_are_named(small, tmp_path):
    """In this process nothing of TensorFlow's C API runs: its library is in use already."""
    folder = tmp_path / "m"
    folder.mkdir()
    whole = (small.version / "saved_model.pb").read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"not a model"):
        (folder / "saved_model.pb").write_bytes(content)
        with pytest.raises(InputError, match=rf"{folder}.* is damaged") as caught:
            c_api.tensor_names(folder)
        assert "\n" not in str(caught.value)
    (folder / "saved_model.pb").write_bytes(b"")
    (tmp_path / "picture.png").touch()
    with pytest.raises(InputError, match=f"{folder} has no image_bytes"):
        c_api.main(str(folder), "text", [str(tmp_path / "picture.png")])


def test_command(small, encoded_images, tmp_path):
    """Compares the columns with serving.predict's.

    A model without its variables is refused in one line.
    """
    files = [tmp_path / "short.png", tmp_path / "a long name.png"]
    for file, content in zip(files, encoded_images("PNG")):
        file.write_bytes(content)
    broken = shutil.copytree(small.version, tmp_path / "broken")
    shutil.rmtree(broken / "variables")
    command = [sys.executable, "-m", "tests.serving.c_api", "--format=table", *map(str, files)]
    done = [
        subprocess.run(
            [*command, f"--model={path}"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        for path in (small.version, broken)
    ]
    assert done[0].returncode == 0, done[0].stderr
    assert (
        len({line.index(" %") for line in done[0].stdout.splitlines()}) == 1
        and len(done[0].stdout.splitlines()) == 2
    )
    assert done[1].returncode == 2
    assert f"error: {broken} cannot be used" in done[1].stderr and "Traceback" not in done[1].stderr


def test_tensor_names_are_those_of_the_signatures(small):
    names = c_api.tensor_names(small.version)
    for signature, function in small.saved.signatures.items():
        inputs, outputs = names[signature]
        assert set(inputs) == set(function.structured_input_signature[1])
        assert set(outputs) == set(function.structured_outputs)
