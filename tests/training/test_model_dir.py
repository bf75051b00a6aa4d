"""The directory that a training leaves and every later stage reads."""

import hashlib
import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from cli import work_dirs
from cli.errors import InputError
from data.preprocessing import Preprocessing
from training import model_dir, models

SPEC = model_dir.ModelSpec(
    architecture={
        "name": "b0",
        "width": 0.25,
        "depth": 0.2,
        "dropout": None,
        "strides": [1, 1, 1, 1, 1, 1, 1],
    },
    preprocessing=Preprocessing(image_size=8, mean=(10.0, 20.0, 30.0)),
    label_names=("cat", "dög"),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = SPEC.build(seed=4)
    for variable in model.variables:  # moving statistics too must survive
        variable.assign_add(0.1 * tf.random.stateless_uniform(variable.shape, [1, 2]))
    directory = tmp_path_factory.mktemp("run") / "model"
    model_dir.save(directory, model, SPEC)
    return model, directory


def test_round_trip_is_exact(saved):
    model, directory = saved
    loaded, spec = model_dir.load(directory)
    assert spec == SPEC
    assert spec.num_classes == 2
    for a, b in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(a, b)
    images = tf.random.stateless_uniform([3, 8, 8, 3], [0, 0], maxval=255.0)
    np.testing.assert_array_equal(model(images), loaded(images))
    assert sorted(path.name for path in directory.iterdir()) == ["model.json", "model.weights.h5"]


def test_an_unfinished_run_is_refused(saved):
    _, directory = saved
    with pytest.raises(InputError, match=r"no summary.json.*run_teacher.sh"):
        model_dir.load(directory.parent)
    (directory.parent / "summary.json").write_text("{}")
    model_dir.load(directory.parent)


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        model_dir.load(tmp_path / "nothing")


def test_damaged_weights_are_refused(saved, tmp_path):
    _, directory = saved
    for name in ("model.json", "model.weights.h5"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    (tmp_path / "model.weights.h5").write_bytes(
        (directory / "model.weights.h5").read_bytes()[:5000]
    )
    with pytest.raises(InputError, match="does not hold the weights"):
        model_dir.load(tmp_path)
    (tmp_path / "model.weights.h5").unlink()
    os.mkfifo(tmp_path / "model.weights.h5")
    with pytest.raises(InputError, match=r"model\.weights\.h5 is missing or is not a regular file"):
        model_dir.load(tmp_path)


def copied(directory, to):
    """Returns a copy of a `model/` directory as the finished run `to`."""
    shutil.copytree(directory, to / "model")
    (to / "summary.json").write_text("{}")
    return to / "model" / "model.weights.h5", to / "model" / "model.json"


def test_every_changed_bit_is_refused(saved, tmp_path):
    weights, _ = copied(saved[1], tmp_path)
    whole = bytearray(weights.read_bytes())
    for position in np.random.default_rng(0).integers(0, 8 * len(whole), 30):
        flipped = whole.copy()
        flipped[position // 8] ^= 1 << position % 8
        weights.write_bytes(flipped)
        with pytest.raises(
            InputError,
            match=r"model.weights.h5 does not hold the weights of model.json .*make it again",
        ):
            model_dir.load(tmp_path)
    weights.write_bytes(whole)
    model_dir.load(tmp_path)


def test_weights_of_an_earlier_version_are_read_with_one_line(saved, tmp_path, capsys):
    _, description = copied(saved[1], tmp_path)
    model_dir.load(tmp_path)
    assert not capsys.readouterr().err
    before = work_dirs.fingerprint(tmp_path)
    described = json.loads(description.read_text())
    assert len(described.pop("weights_sha256")) == 64
    description.write_text(json.dumps(described))
    model_dir.load(tmp_path)
    assert re.fullmatch(
        r"note: .*model.weights.h5 cannot be verified: .*\n", capsys.readouterr().err
    )
    # Earlier versions made the fingerprint in this way.
    assert work_dirs.fingerprint(tmp_path) == hashlib.sha256(b"{}").hexdigest()[:16] != before


def test_a_model_that_cannot_be_written_leaves_nothing(saved, tmp_path, monkeypatch):
    def fail(path):
        path.write_bytes(b"half")
        # This is h5py's message.
        raise OSError(
            "Unable to extend file properly, errno = 27, error message = 'file too large'"
        )

    monkeypatch.setattr(saved[0], "save_weights", fail)
    with pytest.raises(
        InputError, match=r"^file size limit reached on the disk of .*\(ulimit -f\)"
    ):
        model_dir.save(tmp_path / "model", saved[0], SPEC)
    assert not list((tmp_path / "model").iterdir())


def test_replaced_weights_are_another_teacher(saved, tmp_path):
    weights, _ = copied(saved[1], tmp_path)
    before, whole = work_dirs.fingerprint(tmp_path), weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="does not hold the weights"):
        work_dirs.fingerprint(tmp_path)
    weights.write_bytes(whole)
    assert work_dirs.fingerprint(tmp_path) == before
    other = SPEC.build(seed=5)
    model_dir.save(tmp_path / "model", other, SPEC)  # the summary stays
    assert work_dirs.fingerprint(tmp_path) != before
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.weights\.h5 is missing"):
        work_dirs.fingerprint(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"architecture": {"name": "b0"}}', "[]"])
def test_a_damaged_description_is_refused(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(
        InputError, match=r"model.json (is damaged|does not describe a model).*create it"
    ):
        model_dir.load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "vgg"}, "b0, b1"),
        ({"name": "resnet50", "depth": 2.0}, "model.depth: resnet50 has no such setting"),
        ({"name": "b0", "num_classes": 3}, "model.num_classes: b0 has no such setting"),
        (
            {"name": "b0", "batch_norm_momentum": 1.5},
            r"batch_norm_momentum is 1\.5; it must be at least 0 and below 1",
        ),
    ],
)
def test_networks_that_cannot_be_built(architecture, message):
    with pytest.raises(InputError, match=message):
        models.build(architecture, 2, mean=(0.0,) * 3, std=(1.0,) * 3, seed=0)
