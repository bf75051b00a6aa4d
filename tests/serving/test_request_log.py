"""Logged requests: what the files hold, and the images that come out of them."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from cli.errors import InputError
from serving import metrics, request_log
from serving.loading import Input, Signature
from serving.request_log import RequestLog, images_main

SIGNATURE = Signature(
    "m", 3, "serving_default", {"image_bytes": Input(np.dtype(object), (None,))}, ("status",), None
)


def strings(*values):
    return {"image_bytes": np.array(values, object)}


def logs(folder):
    files = sorted(folder.glob("*.tfrecord"))
    return files, [
        prediction_log_pb2.PredictionLog.FromString(r.numpy())
        for f in files
        for r in tf.data.TFRecordDataset(str(f))
    ]


def test_requests_become_images(tmp_path, encoded_images, monkeypatch, capsys):
    png, jpeg = encoded_images("PNG", n=2), encoded_images("JPEG", n=1)
    measured = metrics.Metrics()
    log = RequestLog(tmp_path / "logs", measured)
    monkeypatch.setattr(request_log, "FILE_BYTES", 3000)  # several files
    batches = [png, jpeg, [png[0], b"no image"]]
    for i, images in enumerate(batches):
        log.add(SIGNATURE, strings(*images), {"status": np.full(len(images), i, np.int32)})
    log.close()
    files, found = logs(tmp_path / "logs")
    assert len(files) > 1 and sorted(files) == sorted((tmp_path / "logs").iterdir())
    assert [
        tf.make_ndarray(one.predict_log.request.inputs["image_bytes"]).tolist() for one in found
    ] == batches
    assert [tf.make_ndarray(one.predict_log.response.outputs["status"])[0] for one in found] == [
        0,
        1,
        2,
    ]
    assert all(one.log_metadata.model_spec.version.value == 3 for one in found)
    assert f'{metrics.LOGGED}{{model_name="m",status_code="OK"}} 3' in measured.text()
    for counts in ("3 new images", "0 new images"):
        images_main(str(tmp_path / "logs"), str(tmp_path / "images"))
        assert counts in capsys.readouterr().out
    written = sorted((tmp_path / "images").iterdir())
    assert sorted(path.read_bytes() for path in written) == sorted([*png, *jpeg])
    assert sorted(path.suffix for path in written) == [".jpg", ".png", ".png"]


@pytest.mark.parametrize(("limit", "most"), [("WAITING", 2), ("WAITING_BYTES", 2 * 1008 + 9)])
def test_a_full_log_drops_and_counts_and_never_waits(tmp_path, monkeypatch, limit, most):
    monkeypatch.setattr(request_log, limit, most)
    entered, release = threading.Event(), threading.Event()

    def slow(*_):
        entered.set()
        assert release.wait(20)
        return b""

    monkeypatch.setattr(request_log, "_record", slow)
    measured = metrics.Metrics()
    log = RequestLog(tmp_path, measured)
    log.add(SIGNATURE, strings(bytes(1000)), {})  # and a pointer of 8 bytes
    assert entered.wait(20)
    for _ in range(5):  # two wait, three are dropped
        log.add(SIGNATURE, strings(bytes(1000)), {})
    release.set()
    log.close()
    assert [
        f'status_code="{code}"}} 3' in measured.text() for code in ("OK", "RESOURCE_EXHAUSTED")
    ] == [True, True]


def test_what_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--log_requests: .* cannot be written to"):
        RequestLog(tmp_path / "file", metrics.Metrics())
    with pytest.raises(InputError, match=r"holds no \*\.tfrecord"):
        images_main(str(tmp_path), str(tmp_path / "images"))
    (tmp_path / "requests.tfrecord").write_bytes(b"no records, but bytes")
    with pytest.raises(InputError, match=r"--output: .* cannot be made"):
        images_main(str(tmp_path), str(tmp_path / "file"))
    with pytest.raises(InputError, match="is damaged"):
        images_main(str(tmp_path), str(tmp_path / "images"))
