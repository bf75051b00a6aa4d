"""Promotion and rollback: the check, and `models.config` before and after."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import write_json
from data import protos, records
from serving import promotion, settings
from serving.models import Models
from serving.promotion import Check

COLORS = ("dark", "bright")


class Threshold(tf.Module):
    """Model that answers class 1 where the mean of an image is above a bound."""

    def __init__(self, bound):
        super().__init__()
        self._bound = tf.Variable(float(bound))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(self, image_bytes):
        def one(image):
            return tf.reduce_mean(tf.cast(tf.io.decode_png(image, channels=3), tf.float32))

        means = tf.map_fn(one, image_bytes, fn_output_signature=tf.float32)
        return {"classes": tf.cast(means > self._bound, tf.int32)[:, tf.newaxis]}


def save(folder, version, bound):
    module = Threshold(bound)
    tf.saved_model.save(
        module, str(folder / str(version)), signatures={"serving_default": module.serving_default}
    )
    (folder / str(version) / "assets.extra").mkdir()
    (folder / str(version) / "assets.extra" / "labels.txt").write_text("dark\nbright\n")


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Version 1 is always right, version 2 is wrong from gray level 128 to 145."""
    folder = tmp_path_factory.mktemp("exports")
    for version, bound in ((1, 127.5), (2, 145)):
        save(folder / "classifier", version, bound)
    return folder


@pytest.fixture
def serving_dir(exports, tmp_path):
    """Makes a SERVING_DIR with version 1 stable and version 2 the newest."""
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "1").symlink_to(exports / "classifier" / "1")
    settings.write(tmp_path, "classifier")
    (tmp_path / "classifier" / "2").symlink_to(exports / "classifier" / "2")
    settings.write(tmp_path, "classifier")
    return tmp_path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Makes 40 images of one gray level each."""
    folder, examples = tmp_path_factory.mktemp("data"), []
    for i, level in enumerate(np.linspace(3, 250, 40).astype(np.uint8)):
        image = tf.io.encode_png(np.full([4, 4, 3], level)).numpy()
        examples.append(protos.make_example(image, f"image{i}", int(level > 127.5)))
    records.write_split(
        folder / "test", "test", examples, 2, len(examples), label_names=COLORS, kind="labeled"
    )
    write_json(folder / "summary.json", {})
    return folder


def served(folder):
    config = settings.read_models(folder).model_config_list.config
    return {entry.name: list(entry.model_version_policy.specific.versions) for entry in config}


def promote(serving_dir, data, **options):
    # A busy machine may stretch single requests; `test_limits` holds the limit on time.
    promotion.promote(str(serving_dir), str(data), **{"slower": 1000.0, **options})


def test_a_new_version_serves_the_canarys_name_alone(serving_dir):
    assert served(serving_dir) == {"classifier": [1], "classifier-canary": [2]}
    models = Models(serving_dir, batching=False)
    # A request without a version gets this one.
    assert models.signature("classifier", None, None).version == 1
    assert models.signature("classifier-canary", None, None).version == 2


def test_promotion_and_rollback(serving_dir, data, capsys):
    promote(serving_dir, data, drop=12.0)
    # 3 of 40 levels are between the bounds.
    assert "40 images; both give the same class to 92.50 % of them" in capsys.readouterr().out
    assert served(serving_dir) == {"classifier": [2], "classifier-canary": [2]}
    promote(serving_dir, data)
    assert "stable already" in capsys.readouterr().out
    promotion.rollback(str(serving_dir))
    assert served(serving_dir) == {"classifier": [1], "classifier-canary": [2]}
    with pytest.raises(
        InputError, match=r"no promotion of classifier to its version 1; name the version"
    ):
        promotion.rollback(str(serving_dir))
    promotion.rollback(str(serving_dir), version=2)
    assert served(serving_dir)["classifier"] == [2]
    log = [json.loads(line) for line in (serving_dir / "promotions.jsonl").read_text().splitlines()]
    assert [(line["what"], line["from"], line["to"]) for line in log] == [
        ("promote", 1, 2),
        ("rollback", 2, 1),
        ("rollback", 1, 2),
    ]
    assert log[0]["check"]["top1"] == [1.0, 0.925]


def test_a_failed_check_changes_nothing(serving_dir, data):
    before = sorted(
        (path.name, path.read_bytes()) for path in serving_dir.iterdir() if path.is_file()
    )
    with pytest.raises(
        InputError,
        match=(
            r"not promoted: top-1 falls from 100\.00 to 92\.50 %, and --drop=1 points .* Version 1"
            r" stays"
        ),
    ):
        promote(serving_dir, data)
    assert (
        sorted((path.name, path.read_bytes()) for path in serving_dir.iterdir() if path.is_file())
        == before
    )


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (Check(100, (0.80, 0.79), 0.70, (2.0, 3.0)), []),
        (Check(100, (0.80, 0.78), 0.70, (2.0, 3.0)), ["top-1 falls from 80.00 to 78.00 %"]),
        (
            Check(100, (0.80, 0.90), 0.69, (2.0, 3.0)),
            ["it agrees with the stable version on 69.00 %"],
        ),
        (Check(100, (0.80, 0.90), 0.75, (2.0, 3.1)), ["a request takes 3.1 ms instead of 2.0 ms"]),
        (Check(100, (0.80, 0.10), 0.10, (2.0, 9.0)), ["top-1", "it agrees", "a request"]),
    ],
)
def test_limits(measured, expected):
    found = promotion.faults(measured, drop=1.0, agreement=70.0, slower=1.5)
    assert len(found) == len(expected)
    assert all(fault.startswith(words) for fault, words in zip(found, expected))


def test_killed_between_the_log_and_the_change(serving_dir, data, monkeypatch):
    """`models.config` counts: the promotion has not happened, and the same command repeats it."""
    replace = os.replace

    def killed(source, target):
        if str(target).endswith("models.config"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        promote(serving_dir, data, drop=12.0)
    monkeypatch.setattr(os, "replace", replace)
    assert served(serving_dir)["classifier"] == [1]
    with pytest.raises(InputError, match="no promotion"):
        promotion.rollback(str(serving_dir))
    promote(serving_dir, data, drop=12.0)
    promotion.rollback(str(serving_dir))
    assert served(serving_dir)["classifier"] == [1]


def test_refused(serving_dir, data, tmp_path):
    for options, match in [
        ({"version": 7}, r"holds no version 7; there are 1, 2"),
        ({"name": "other"}, r"has no model 'other'"),
        ({"data": tmp_path / "none"}, "none"),
    ]:
        with pytest.raises(InputError, match=match):
            promote(serving_dir, **{"data": data, **options})
    (serving_dir / "classifier" / "3").mkdir()
    (serving_dir / "classifier" / "3" / "saved_model.pb").touch()
    with pytest.raises(InputError, match=r"3/assets.extra/labels.txt cannot be read"):
        promote(serving_dir, data)
    assert served(serving_dir) == {"classifier": [1], "classifier-canary": [2]}


def test_a_config_of_earlier_exports(serving_dir, capsys):
    """Both versions have one name, with labels.

    The stable one stays stable, and stops sharing its name.
    """
    (serving_dir / "models.config").write_text(
        'model_config_list { config { name: "classifier" base_path: "/models/classifier"'
        ' model_platform: "tensorflow" model_version_policy { specific { versions: 1 versions: 2 }'
        ' } version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
        ' version_labels { key: "mine" value: 1 } } }'
    )
    assert settings.stable(serving_dir, "classifier") == 1
    settings.write(serving_dir, "classifier")
    assert served(serving_dir) == {"classifier": [1], "classifier-canary": [2]}
    first, second = settings.read_models(serving_dir).model_config_list.config
    assert (dict(first.version_labels), dict(second.version_labels)) == ({"mine": 1}, {})
    assert first.base_path == second.base_path == "/models/classifier"
    assert "no longer has the label 'stable' of classifier" in capsys.readouterr().err
