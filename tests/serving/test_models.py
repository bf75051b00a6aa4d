"""Batched models in one process: each answer is that of the model, version and signature asked."""

from __future__ import annotations

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from cli.errors import InputError
from serving.models import Models, Refused

VERSIONS = {("first", 1): 1.0, ("first", 2): 2.0, ("second.model-2", 1): 3.0}
CONFIG = """model_config_list {
  config {
    name: "first" base_path: "/models/first" \
model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }
  }
  config { name: "second.model-2" base_path: "/models/second.model-2" }
}"""
BATCHING = """num_batch_threads { value: 4 } max_batch_size { value: 8 }
batch_timeout_micros { value: 5000 } max_enqueued_batches { value: 100 }"""
THREADS = 8


class Numbered(tf.Module):
    """Model with answers that say which model it is.

    `together` is the number of rows that were computed with each row.
    """

    def __init__(self, number):
        super().__init__()
        self._number = tf.Variable(number)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serving_default(self, text):
        return {
            "product": self._number * tf.cast(tf.strings.length(text), tf.float32),
            "together": tf.fill(tf.shape(text), tf.size(text)),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def embed(self, text):
        return {
            "embedding": -self._number * tf.cast(tf.strings.length(text), tf.float32)[:, tf.newaxis]
        }

    @tf.function(input_signature=[tf.TensorSpec([None, None, None], tf.float32, name="images")])
    def pixels(self, images):
        return {
            "sum": (
                self._number
                * tf.reduce_sum(tf.debugging.check_numerics(images, "pixels"), axis=[1, 2])
            )
        }


@pytest.fixture(scope="module")
def serving_dir(tmp_path_factory):
    """Exports two models, one of them with two versions and two labels."""
    folder = tmp_path_factory.mktemp("serving")
    for (name, version), number in VERSIONS.items():
        module = Numbered(number)
        signatures = {
            "serving_default": module.serving_default,
            "embed": module.embed,
            "pixels": module.pixels,
        }
        tf.saved_model.save(module, str(folder / name / str(version)), signatures=signatures)
    (folder / "models.config").write_text(CONFIG)
    (folder / "batching_parameters.txt").write_text(BATCHING)
    return folder


@pytest.fixture(scope="module")
def models(serving_dir):
    return Models(serving_dir, batching=True)


def concurrently(work, count):
    """Returns what `work` gives for 0 … count − 1, called from several threads at a time."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(count)))


def text(size):
    return {"text": np.array([b"x" * size], object)}


TARGETS = {  # (model, version, label, signature) -> its factor
    "versions": {("first", 1, None, ""): 1.0, ("first", 2, None, ""): 2.0},
    "labels": {("first", None, "stable", ""): 1.0, ("first", None, "canary", ""): 2.0},
    "models": {("first", 2, None, "embed"): -2.0, ("second.model-2", None, None, "embed"): -3.0},
    "signatures": {("first", 1, None, ""): 1.0, ("first", 1, None, "embed"): -1.0},
}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_concurrent_requests_are_answered_by_the_model_asked(models, targets):
    def ask(i):
        target, factor = list(targets.items())[i % 2]
        answer = models.run(models.signature(*target), text(1 + i % 50))
        return answer["embedding" if "embed" in target else "product"].item() == factor * (
            1 + i % 50
        )

    assert concurrently(ask, 200) == [True] * 200


def test_two_instances_in_one_process_share_no_queue(serving_dir, models, tmp_path):
    """Tests that the same name and version in another directory is another model."""
    shutil.copytree(serving_dir / "second.model-2" / "1", tmp_path / "first" / "1")
    (tmp_path / "models.config").write_text(
        'model_config_list { config { name: "first" base_path: "/models/first" } }'
    )
    shutil.copy(serving_dir / "batching_parameters.txt", tmp_path)
    other = Models(tmp_path, batching=True)
    both = [
        (models, models.signature("first", 1, None)),
        (other, other.signature("first", 1, None)),
    ]
    answers = concurrently(lambda i: both[i % 2][0].run(both[i % 2][1], text(4)), 200)
    assert [answer["product"].item() for answer in answers] == [4.0, 12.0] * 100
    # There were batches, which could have been mixed.
    assert max(answer["together"].item() for answer in answers) > 1


@pytest.mark.parametrize(
    "odd", [np.ones([1, 3, 5]), np.full([1, 2, 2], np.nan)], ids=["size", "value"]
)
def test_a_request_that_fails_fails_alone(models, odd):
    """A batch fails as one, so the requests joined with a faulty one are computed again alone."""
    signature = models.signature("first", 1, None, "pixels")
    images = [np.full([1, 2, 2], i, np.float32) for i in range(THREADS)]
    images[0] = odd.astype(np.float32)

    def ask(i):
        image = images[i % THREADS]
        try:
            return models.run(signature, {"images": image})["sum"].item() == image.sum()
        except Refused as error:  # TensorFlow's own words, without a stack
            words = (
                str(error).startswith("pixels") and error.code == grpc.StatusCode.INVALID_ARGUMENT
            )
            return words and not np.isfinite(image).all()

    assert concurrently(ask, 160) == [True] * 160


def test_too_many_rows_are_one_line(models):
    with pytest.raises(
        Refused, match=r"^the request has 9 rows; at most 8 are accepted in one request$"
    ) as caught:
        models.run(models.signature("first", 1, None), {"text": np.array([b"x"] * 9, object)})
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


def write(folder, numbers, labels=None, base="first"):
    """Writes `models.config`: the versions `numbers` (none: the newest) of `first`, in `base`."""
    policy = (
        f"model_version_policy {{ specific {{ {' '.join(f'versions: {n}' for n in numbers)} }} }}"
        if numbers
        else ""
    )
    entries = " ".join(
        f'version_labels {{ key: "{key}" value: {value} }}' for key, value in (labels or {}).items()
    )
    entry = f'config {{ name: "first" base_path: "/models/{base}" {policy} {entries} }}'
    (folder / "models.config").write_text(f"model_config_list {{ {entry} }}")


@pytest.fixture
def changing(serving_dir, tmp_path):
    """Makes a SERVING_DIR with version 1 of the model `first`, which is stable and canary."""
    shutil.copytree(serving_dir / "first" / "1", tmp_path / "first" / "1")
    shutil.copy(serving_dir / "batching_parameters.txt", tmp_path)
    write(tmp_path, [1], {"stable": 1, "canary": 1})
    return tmp_path


def product(models, version=None, label=None):
    return models.run(models.signature("first", version, label), text(4))["product"].item()


def states(models):
    return {
        one.version: (one.state, one.status.error_code)
        for one in models.status("first", None, None).model_version_status
    }


AVAILABLE, END, DATA_LOSS = 30, 50, 15


def test_new_versions_and_labels_are_followed(changing, serving_dir, capfd):
    models = Models(changing, batching=True)
    models.refresh()
    shutil.copytree(serving_dir / "first" / "2", changing / "first" / "2")
    models.refresh()
    assert states(models) == {1: (AVAILABLE, 0)}  # models.config names version 1 alone
    write(changing, [1, 2], {"stable": 1, "canary": 2})
    models.refresh()
    assert (product(models), product(models, label="canary"), product(models, label="stable")) == (
        8.0,
        8.0,
        4.0,
    )
    old = models.signature("first", 1, None)
    write(changing, [2], {"stable": 2})
    models.refresh()
    assert states(models) == {2: (AVAILABLE, 0)} and product(models, label="stable") == 8.0
    for version, label, match in ((1, None, "not found"), (None, "canary", "no version label")):
        with pytest.raises(Refused, match=match):
            models.signature("first", version, label)
    gc.collect()
    assert models.run(old, text(4))["product"].item() == 4.0  # a request that was under way
    write(changing, [])  # the newest
    models.refresh()
    shutil.copytree(serving_dir / "second.model-2" / "1", changing / "first" / "3")
    models.refresh()
    assert states(models) == {3: (AVAILABLE, 0)} and product(models) == 12.0
    assert "first now serves its versions [3]" in capfd.readouterr().err


def test_a_damaged_version_leaves_the_others_serving(changing, serving_dir, capfd):
    models = Models(changing, batching=True)
    shutil.copytree(serving_dir / "first" / "2", changing / "first" / "2")
    whole = (changing / "first" / "2" / "saved_model.pb").read_bytes()
    (changing / "first" / "2" / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    write(changing, [2], {"stable": 1, "canary": 2})
    for _ in range(3):
        models.refresh()
    assert states(models) == {2: (END, DATA_LOSS), 1: (AVAILABLE, 0)}
    assert (product(models), product(models, label="canary"), product(models, label="stable")) == (
        4.0,
        4.0,
        4.0,
    )
    (message,) = models.status("first", 2, None).model_version_status
    assert (
        "cannot be loaded" in message.status.error_message
        and str(changing) not in message.status.error_message
    )
    lines = capfd.readouterr().err.splitlines()
    # Once, not at each look.
    assert len([line for line in lines if "keeps its versions [1]" in line]) == 1
    (changing / "first" / "2" / "saved_model.pb").write_bytes(whole)
    models.refresh()
    assert states(models) == {2: (AVAILABLE, 0)} and product(models, label="canary") == 8.0


def test_a_number_in_another_folder_is_another_version(changing, serving_dir, capfd):
    models = Models(changing, batching=True)
    assert product(models) == 4.0
    for folder in ("moved", "damaged"):
        shutil.copytree(serving_dir / "second.model-2" / "1", changing / folder / "1")
    (changing / "damaged" / "1" / "saved_model.pb").write_bytes(b"no graph")
    write(changing, [1], base="moved")
    models.refresh()
    assert product(models) == product(models, version=1) == 12.0
    assert states(models) == {1: (AVAILABLE, 0)}
    write(changing, [1], base="damaged")
    for _ in range(2):
        models.refresh()
    assert product(models) == 12.0 and states(models) == {1: (AVAILABLE, 0)}
    lines = capfd.readouterr().err.splitlines()
    assert ["now serves its versions [1]" in line for line in lines] == [True, False]


def test_settings_that_break_change_nothing(changing, capfd):
    models = Models(changing, batching=True)
    (changing / "models.config").write_text("model_config_list {")
    for _ in range(3):
        models.refresh()
    assert product(models) == 4.0
    assert len(capfd.readouterr().err.splitlines()) == 1
    (changing / "models.config").write_text("")  # no model any more
    models.refresh()
    with pytest.raises(Refused, match="Servable not found"):
        models.find("first", None, None)


def test_warm_up_requests_are_played_and_a_wrong_one_is_an_error(changing):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"four"]))
    file = changing / "first" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()

    def record(signature):
        log.predict_log.request.model_spec.signature_name = signature
        with tf.io.TFRecordWriter(str(file)) as writer:
            writer.write(log.SerializeToString())

    for signature in ("", "embed"):
        record(signature)
        assert (
            'model_warmup_latency_count{model_path="first/1",status="OK"} 1'
            in Models(changing, batching=True).metrics.text()
        )
    record("pixels")
    with pytest.raises(InputError, match="cannot answer its warm-up requests"):
        Models(changing, batching=True)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="cannot answer its warm-up requests"):
        Models(changing, batching=True)
