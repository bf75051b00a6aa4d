"""The pseudo-label stage with a tiny teacher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import read_json, write_json
from data.preprocessing import Preprocessing, eval_image, train_image
from data.protos import make_example, read_prediction
from data.records import read_manifest, read_shard, write_split
from nets.noise import Dropout
from training import model_dir
from training.model_dir import ModelSpec
from workflow import label_shards, pseudo_label

LABEL_NAMES = ("ant", "bee", "cat")
IMAGES, SHARDS, SIZE, BATCH = 23, 3, 8, 5  # shards of 7, 8 and 8: no multiple of the batch
PREPROCESSING = Preprocessing(image_size=SIZE, mean=(0.0,) * 3, std=(255.0,) * 3)


def _teacher(bias: float = 0.0) -> tf.keras.Model:
    """Returns a model from images in 0–255 to 3 logits.

    It has BatchNorm and Dropout, which must be in inference mode.
    """
    initializer = tf.keras.initializers.RandomNormal(stddev=0.3, seed=1)
    images = tf.keras.Input([SIZE, SIZE, 3])
    x = tf.keras.layers.Rescaling(1 / 255)(images)
    x = tf.keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=initializer)(x)
    x = Dropout(0.5, noise_id="dropout")(tf.keras.layers.BatchNormalization()(x))
    logits = tf.keras.layers.Dense(
        3, kernel_initializer=initializer, bias_initializer=tf.keras.initializers.Constant(bias)
    )
    return tf.keras.Model(images, logits(tf.keras.layers.Flatten()(x)))


def _images() -> dict[str, bytes]:
    pixels = np.random.Generator(np.random.PCG64([0])).integers(
        0, 256, [IMAGES, SIZE, SIZE, 3], dtype=np.uint8
    )
    return {f"ü/{i}.png": tf.io.encode_png(image).numpy() for i, image in enumerate(pixels)}


def _write_images(root: Path, images: dict[str, bytes]) -> None:
    examples = (make_example(encoded, key) for key, encoded in images.items())
    write_split(
        root / "data" / "unlabeled", "unlabeled", examples, SHARDS, len(images), kind="unlabeled"
    )


@pytest.fixture(name="root")
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns tmp_path with data and teacher."""
    _write_images(tmp_path, _images())
    for name in ("data", "teacher"):
        write_json(tmp_path / name / "summary.json", {})
    _use_teacher(monkeypatch, _teacher())
    return tmp_path


def _use_teacher(monkeypatch: pytest.MonkeyPatch, model: tf.keras.Model) -> None:
    spec = ModelSpec(architecture={}, preprocessing=PREPROCESSING, label_names=LABEL_NAMES)
    monkeypatch.setattr(pseudo_label.model_dir, "load", lambda directory: (model, spec))
    monkeypatch.setattr(pseudo_label.model_dir, "read_spec", lambda directory: spec)


def config(**settings: Any) -> ConfigDict:
    usual = {
        "batch_size": BATCH,
        "top_k": 0,
        "views": 0,
        "model_noise": False,
        "calibrate": False,
        "precision": "float32",
        "optimize": False,
    }
    return ConfigDict({"seed": 3, "pseudo_label": {**usual, **settings}})


def _run(root: Path, workdir: str = "predictions", **settings: Any) -> Path:
    pseudo_label.main(
        config(**settings), str(root / workdir), str(root / "data"), str(root / "teacher")
    )
    return root / workdir


def _predictions(directory: Path) -> dict[str, np.ndarray]:
    manifest = read_manifest(directory, "predictions")
    assert manifest.label_names == LABEL_NAMES
    shards = zip(manifest.paths, manifest.records)
    return dict(
        read_prediction(record, 3)
        for path, count in shards
        for record in read_shard(path, num_records=count)
    )


def _expected() -> dict[str, np.ndarray]:
    """Returns what `Model.predict` gives for each image."""
    images = _images()
    inputs = np.stack(
        [eval_image(tf.constant(encoded), PREPROCESSING) for encoded in images.values()]
    )
    return dict(zip(images, tf.nn.softmax(_teacher().predict(inputs, verbose=0)).numpy()))


def test_predictions_are_the_models(root: Path) -> None:
    predictions, expected = _predictions(_run(root)), _expected()
    assert list(predictions) == list(expected)
    for key, probabilities in predictions.items():
        np.testing.assert_allclose(probabilities, expected[key], atol=5e-4, err_msg=key)  # float16
    images, labels = read_manifest(root / "data" / "unlabeled"), read_manifest(root / "predictions")
    assert labels.records == images.records == (7, 8, 8)


def test_top_k(root: Path) -> None:
    expected = _expected()
    for key, probabilities in _predictions(_run(root, top_k=1)).items():
        top = int(np.argmax(expected[key]))
        rest = (1 - expected[key][top]) / 2
        np.testing.assert_allclose(
            probabilities, [expected[key][top] if k == top else rest for k in range(3)], atol=1e-5
        )


def test_views_are_averaged_whatever_the_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares with the mean over the noised copies, each made by itself."""
    preprocessing = Preprocessing(
        **{
            **PREPROCESSING.to_dict(),
            "style": "small",
            "pad": 2,
            "flip": True,
            "randaugment_layers": 0,
        }
    )
    model, spec = (
        _teacher(),
        ModelSpec(architecture={}, preprocessing=preprocessing, label_names=LABEL_NAMES),
    )
    monkeypatch.setattr(pseudo_label.model_dir, "load", lambda directory: (model, spec))
    # Two images of two copies fill a batch of five but one.
    found = _predictions(_run(root, views=2))
    for key, encoded in _images().items():
        name = tf.strings.to_hash_bucket_fast(key, 2**31 - 1)
        copies = [
            train_image(
                tf.constant(encoded),
                tf.stack([name, tf.constant(3000 + v, tf.int64)]),
                preprocessing,
            )
            for v in range(2)
        ]
        assert not np.array_equal(copies[0], copies[1])
        np.testing.assert_allclose(
            found[key], tf.reduce_mean(tf.nn.softmax(model(tf.stack(copies))), 0), atol=1e-3
        )
    again = _predictions(_run(root, "other", views=2, batch_size=64))
    for key, probabilities in found.items():
        np.testing.assert_allclose(again[key], probabilities, atol=1e-3)


def test_a_noised_teacher_drops_features_the_same_way_each_time(root: Path) -> None:
    clean, noised, again = (
        _predictions(_run(root, name, model_noise=name != "clean"))
        for name in ("clean", "noised", "again")
    )
    deviations = [np.abs(noised[key] - clean[key]).max() for key in clean]
    assert np.mean([deviation > 0.01 for deviation in deviations]) > 0.9
    for key, probabilities in noised.items():
        np.testing.assert_array_equal(again[key], probabilities)


def test_calibrated_on_the_validation_split(root: Path) -> None:
    """Tests that the model labels the validation split at temperature 3, in proportion.

    The stage must find and use that temperature.
    """
    with pytest.raises(InputError, match=r"calibrate needs a validation split, which .*data lacks"):
        _run(root, calibrate=True)
    expected, images = _expected(), _images()
    powers = {key: q ** (1 / 3) / (q ** (1 / 3)).sum() for key, q in expected.items()}
    counts = [
        (key, label, round(400 * share))
        for key, q in powers.items()
        for label, share in enumerate(q)
    ]
    copies = [(key, label, n) for key, label, count in counts for n in range(count)]
    examples = (
        make_example(images[key], f"{key} {label} {n}", label=label + 1) for key, label, n in copies
    )
    validation = root / "data" / "validation"
    write_split(
        validation,
        "validation",
        examples,
        2,
        len(copies),
        kind="labeled",
        label_names=LABEL_NAMES,
        label_offset=1,
    )
    summary = read_json(_run(root, calibrate=True, batch_size=512) / "summary.json")
    assert summary["temperature"] == pytest.approx(3, rel=0.02)
    for key, probabilities in _predictions(root / "predictions").items():
        np.testing.assert_allclose(probabilities, powers[key], atol=5e-3, err_msg=key)


def test_calibration_closes_its_copies_of_the_teacher(root: Path) -> None:
    opened: list[Any] = []

    class Job(label_shards.LabelShards):
        closed = False

        def setup(self) -> None:
            opened.append(self)

        def probabilities(self, shard: int, wanted: Any = None) -> Any:
            yield np.array([b"0.png"]), np.eye(3, dtype=np.float32)[:1]

        def close(self) -> None:
            self.closed = True

    write_split(
        root / "validation", "validation", [make_example(b"", "0.png", 0)], 1, 1, kind="labeled"
    )
    validation = read_manifest(root / "validation", "labeled")
    label_shards.calibrated(Job(validation, "teacher", root, BATCH, 0), validation)
    assert [job.closed for job in opened] == [True]


@pytest.mark.parametrize(
    "names, words",
    [
        (("ant", "bee"), "has 2 classes, teacher .* has 3"),
        (("ant", "cat", "bee"), "class 1 is 'cat'"),
    ],
)
def test_calibration_on_other_classes_is_refused(
    root: Path, names: tuple[str, ...], words: str
) -> None:
    examples = [make_example(b"", "0.png", label=0)]
    write_split(
        root / "data" / "validation",
        "validation",
        examples,
        1,
        1,
        kind="labeled",
        label_names=names,
    )
    with pytest.raises(InputError, match=words):
        _run(root, calibrate=True)
    assert not (root / "predictions").exists()


def test_faster_graphs_are_the_same_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that folded it is the same function; in bfloat16, of 8 bits, nearly."""
    monkeypatch.undo()
    spec = ModelSpec({"name": "wrn_10_1"}, Preprocessing(image_size=8), LABEL_NAMES)
    model, rng = spec.build(), np.random.Generator(np.random.PCG64([5]))
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.set_weights(
                [rng.uniform(0.8, 1.2, weight.shape) for weight in layer.get_weights()]
            )
    model_dir.save(root / "teacher" / "model", model, spec)
    plain, folded, bfloat16 = (
        np.stack(list(_predictions(_run(root, name, **settings)).values()))
        for name, settings in {
            "a": {},
            "b": {"optimize": True},
            "c": {"optimize": True, "precision": "mixed_bfloat16"},
        }.items()
    )
    assert np.ptp(plain) > 0.05  # far from an even answer, which every network would give
    np.testing.assert_allclose(folded, plain, atol=6e-4)  # float16
    np.testing.assert_allclose(bfloat16, plain, atol=0.01)
    assert not np.array_equal(bfloat16, folded)
    assert tf.keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"precision": "half"}, "is 'half'; it can be"),
        ({"optimize": True, "model_noise": True}, "turn off"),
    ],
)
def test_impossible_graphs_are_refused(root: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _run(root, **settings)


def test_more_views_than_a_batch_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="views is 6"):
        _run(root, views=6)


def test_batch_size_changes_nothing(root: Path) -> None:
    """Tests that the padding of the last batch reaches no image."""
    first, second = _predictions(_run(root)), _predictions(_run(root, "other", batch_size=64))
    for key, probabilities in first.items():
        np.testing.assert_allclose(probabilities, second[key], atol=1e-3)


def test_summary(root: Path) -> None:
    summary, expected = read_json(_run(root) / "summary.json"), np.stack(list(_expected().values()))
    assert summary["images"] == IMAGES
    assert summary["predicted_per_class"] == np.bincount(expected.argmax(1), minlength=3).tolist()
    np.testing.assert_allclose(summary["mean_confidence"], expected.max(1).mean(), rtol=1e-5)
    histogram = summary["confidence_histogram"]
    assert histogram["images"] == np.histogram(expected.max(1), histogram["edges"])[0].tolist()
    assert summary["images_per_second"] > 0
    assert not (root / "predictions" / "progress").exists()


def test_finished_shards_are_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts a run in shard 1, and starts it again.

    Shard 0 is not labeled again. All files end as in an uninterrupted run.
    """
    reference = _run(root, "reference")
    original, count = label_shards.make_prediction, 0

    def interrupted(*arguments: Any) -> bytes:
        nonlocal count
        count += 1
        if count > 10:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(label_shards, "make_prediction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _run(root)
    shards = sorted((root / "predictions").glob("predictions-*"))
    assert [path.name for path in shards] == ["predictions-00000-of-00003"]
    written = shards[0].stat().st_mtime_ns
    _run(root)
    assert shards[0].stat().st_mtime_ns == written
    for path in [*reference.glob("predictions-*"), reference / "manifest.json"]:
        assert (root / "predictions" / path.name).read_bytes() == path.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (root / "predictions").iterdir()}
    _run(root)
    assert {path: path.stat().st_mtime_ns for path in (root / "predictions").iterdir()} == before


def test_interrupt_while_the_teacher_is_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that Ctrl-C stays what it is, though Beam's worker makes a RuntimeError of it."""

    def load(directory: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pseudo_label.model_dir, "load", load)
    with pytest.raises(KeyboardInterrupt):
        _run(root)


@pytest.mark.parametrize("cut", [5, None])
def test_truncated_shard(root: Path, cut: int | None) -> None:
    """In a record, or between two."""
    path = root / "data" / "unlabeled" / "unlabeled-00001-of-00003"
    last = list(read_shard(path))[-1]
    os.truncate(path, path.stat().st_size - (cut or len(last) + 16))
    message = r"unlabeled-00001-of-00003" + (
        r": record 7 \(counting from 0\) is truncated"
        if cut
        else " has 7 records, but its manifest"
    )
    with pytest.raises(InputError, match=message):
        _run(root)
    assert not (root / "predictions" / "predictions-00001-of-00003").exists()
    assert not (root / "predictions" / "manifest.json").exists()


@pytest.mark.skipif(
    not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read, whoever tries"
)
def test_shard_that_cannot_be_read(root: Path) -> None:
    path = root / "data" / "unlabeled" / "unlabeled-00001-of-00003"
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"unlabeled-00001-of-00003"):
        _run(root)


def test_image_that_cannot_be_decoded(root: Path) -> None:
    _write_images(root, {**_images(), "ü/9.png": b"no image"})
    with pytest.raises(
        InputError,
        match=(
            r"unlabeled-00001-of-00003: record 2 \(counting from 0\): image ü/9\.png cannot be"
            r" decoded"
        ),
    ):
        _run(root)


def test_record_without_key(root: Path) -> None:
    _write_images(
        root, {("" if key == "ü/9.png" else key): encoded for key, encoded in _images().items()}
    )
    with pytest.raises(
        InputError, match=r"unlabeled-00001-of-00003: record 2 \(counting from 0\) has no image/key"
    ):
        _run(root)


def test_mended_input_goes_on(root: Path) -> None:
    """Tests that an error of an earlier run is not remembered."""
    _write_images(root, {**_images(), "ü/9.png": b"no image"})
    with pytest.raises(InputError):
        _run(root)
    _write_images(root, _images())
    assert len(_predictions(_run(root))) == IMAGES


def test_non_finite_teacher(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use_teacher(monkeypatch, _teacher(bias=float("nan")))
    with pytest.raises(
        InputError,
        match=r"teacher .*teacher gives non-finite probabilities \(first for image ü/0\.png\)",
    ):
        _run(root)


def test_unfinished_teacher(root: Path) -> None:
    (root / "teacher" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"teacher .*teacher is not finished \(no summary.json\)"):
        _run(root)
    assert not (root / "predictions").exists()


def test_another_teacher_is_refused(root: Path) -> None:
    _run(root)
    write_json(root / "teacher" / "summary.json", {"top1": 0.5})
    with pytest.raises(InputError, match=r"another config \(inputs\.teacher"):
        _run(root)


def test_label_names_must_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _teacher()
    _use_teacher(monkeypatch, tf.keras.Model(model.input, model.output[:, :2]))
    with pytest.raises(InputError, match="2 outputs for 3 label names"):
        _run(root)
