"""TFLite files: answers beside the trained model's, and the table's arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import write_json
from data import protos, records
from serving import lite

from .conftest import NAMES


def test_files_and_table(imagenet, data, tmp_path, capfd):
    lite.main(str(tmp_path / "w"), str(imagenet.directory), str(data), calibration=10)
    out, err = capfd.readouterr()
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert err == "" or "XNNPACK" in err  # the interpreter's one line
    assert summary["examples"] == 21 and summary["calibration_images"] == 10
    trained, half, eighth = summary["rows"]
    assert [row["kind"] for row in (trained, half, eighth)] == ["trained model", "float16", "int8"]
    assert (trained["agreement"], trained["deviation"]) == (1.0, 0.0)
    assert 0 < half["deviation"] < 0.02 and half["agreement"] >= 0.95
    assert eighth["deviation"] < 0.6 and eighth["agreement"] >= 0.6
    assert [row["bytes"] for row in (half, eighth)] == [
        (tmp_path / "w" / f"{kind}.tflite").stat().st_size for kind in lite.KINDS
    ]
    table = (tmp_path / "w" / "table.md").read_text()
    assert table.count("\n|") == 4 and table.strip() in out

    images = [
        image
        for image, _ in lite._examples(
            records.read_manifest(data / "test", "labeled"), imagenet.preprocessing
        )
    ]
    expected = tf.nn.softmax(imagenet.model(np.stack(images), training=False)).numpy()
    answers, _ = lite.run(tmp_path / "w" / "float16.tflite", images)
    np.testing.assert_allclose(np.abs(answers - expected).max(), half["deviation"], atol=1e-5)
    labels = np.arange(21) % len(NAMES)
    assert trained["top1"] == pytest.approx(np.mean(expected.argmax(axis=1) == labels))
    assert half["top1"] == pytest.approx(np.mean(answers.argmax(axis=1) == labels))

    lite.main(str(tmp_path / "w"), str(imagenet.directory), str(data), calibration=10)
    assert "is done" in capfd.readouterr().out


def test_a_bad_record_is_named(small, data, tmp_path, encoded_images):
    good = encoded_images("PNG", n=1)[0]
    for i, (record, match) in enumerate(
        [
            (protos.make_example(b"no image", "b", 0), "record 1 cannot be used"),
            (protos.make_example(good, "b", len(NAMES)), "record 1 has no label or the label 7"),
            (protos.make_example(good, "b"), "record 1 has no label or the label -1"),
            (b"no example", "record 1 cannot be used"),
        ]
    ):
        folder = tmp_path / str(i)
        examples = [protos.make_example(good, "a", 0), record]
        manifest = records.write_split(
            folder, "test", examples, 1, 2, label_names=NAMES, kind="labeled"
        )
        with pytest.raises(InputError, match=match) as caught:
            list(lite._examples(manifest, small.preprocessing))
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
        # Examples that are not needed are not decoded.
        assert len(list(lite._examples(manifest, small.preprocessing, every=2))) == 1


def test_refused(small, data, tmp_path):
    other = tmp_path / "data"
    for name in ("labeled", "test"):
        examples = [protos.make_example(b"", "a", 0)]
        records.write_split(other / name, name, examples, 1, 1, label_names=["x"], kind="labeled")
    write_json(other / "summary.json", {})
    for options, match in [
        ({"data": str(other)}, "use those of one data directory"),
        ({"data": str(tmp_path)}, "not finished"),
    ]:
        with pytest.raises(InputError, match=match):
            lite.main(
                **{
                    "workdir": str(tmp_path / "w"),
                    "model": str(small.directory),
                    "data": str(data),
                    **options,
                }
            )
    assert not (tmp_path / "w").exists()
