"""The records' features: what is written is read back; other records are refused."""

from __future__ import annotations

import google.protobuf
import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import protos, records


def test_labeled_example():
    parsed = protos.parse_example(
        tf.constant(protos.make_example(b"\x89PNG", "ä/1.png", 7)), label_offset=1
    )
    assert parsed["image/encoded"].numpy() == b"\x89PNG"
    assert parsed["image/key"].numpy().decode() == "ä/1.png"
    assert int(parsed["label"]) == 6
    assert parsed["probabilities"].shape == [0]


def test_unlabeled_example():
    serialized = protos.make_example(b"x", "k")
    assert sorted(tf.train.Example.FromString(serialized).features.feature) == [
        "image/encoded",
        "image/key",
    ]
    assert int(protos.parse_example(tf.constant(serialized), label_offset=1)["label"]) == -1


def test_pseudo_labeled_example():
    probabilities = np.array([0.2, 0.7, 0.1])
    serialized = protos.make_example(b"x", "k", probabilities=probabilities)
    features = tf.train.Example.FromString(serialized).features.feature
    assert features["label"].int64_list.value == [1]
    assert features["prob"].float_list.value == pytest.approx([0.7])
    parsed = protos.parse_example(
        tf.constant(serialized), label_offset=1
    )  # the offset is of image/class/label only
    assert int(parsed["label"]) == 1
    np.testing.assert_array_equal(parsed["probabilities"], probabilities.astype(np.float32))


def test_records_of_others_are_read():
    """Reads ImageNet's usual features (labels from 1), and a pseudo-labeled record without a key.

    The release writes the second kind.
    """

    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))

    def parse(label_offset, **values):
        values = {name.replace("__", "/"): feature(value) for name, value in values.items()}
        return protos.parse_example(
            tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString(),
            label_offset,
        )

    imagenet = parse(
        1,
        image__encoded=b"jpeg",
        image__class__label=1000,
        image__filename=b"n.JPEG",
        image__height=3,
    )
    assert (int(imagenet["label"]), imagenet["image/key"].numpy()) == (999, b"")
    pseudo = parse(0, image__encoded=b"jpeg", prob=[0.75], label=2, probabilities=[0.25, 0.0, 0.75])
    assert int(pseudo["label"]) == 2
    np.testing.assert_array_equal(pseudo["probabilities"], [0.25, 0.0, 0.75])


def test_the_same_example_has_the_same_bytes():
    """Features are in the order of their names.

    The order of a hash table might change with the process.
    """
    serialized = protos.make_example(b"x", "k", 1, np.full([5], 0.2))
    names = [b"image/class/label", b"image/encoded", b"image/key", b"label"]
    # A name that begins another goes last, but first with protobuf 3, which Python 3.9 has.
    prefix = [b"probabilities", b"prob"]
    names += prefix[::-1] if google.protobuf.__version__.startswith("3.") else prefix
    places = [
        serialized.index(b"\x0a" + bytes([len(name)]) + name + b"\x12") for name in names
    ]  # field 1: the name; field 2: the value
    assert places == sorted(places)


def distribution(seed: int, num_classes: int) -> np.ndarray:
    return (
        np.random.Generator(np.random.PCG64([seed]))
        .dirichlet(np.full([num_classes], 0.05))
        .astype(np.float32)
    )


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Computes KL(p || q) in nats."""
    return float(
        np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30)), 0))
    )


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("top_k", [0, 1, 5, 10])
def test_prediction_round_trip(num_classes, top_k):
    p = distribution(num_classes, num_classes)
    key, q = protos.read_prediction(protos.make_prediction("ä/1", p, top_k), num_classes)
    assert (key, q.dtype, q.shape) == ("ä/1", np.float32, (num_classes,))
    assert q.sum() == pytest.approx(1, abs=1e-6)
    if top_k == 0 or top_k >= num_classes:
        np.testing.assert_allclose(q, p, rtol=2**-9, atol=1e-7)  # float16 has 11 bits
        assert divergence(p, q) < 1e-4
    else:
        top = np.argsort(-p, kind="stable")[:top_k]
        np.testing.assert_allclose(q[top], p[top], rtol=1e-5)
        rest = np.delete(q, top)
        np.testing.assert_allclose(
            rest, (1 - p[top].sum(dtype=np.float64)) / len(rest), rtol=1e-3, atol=1e-7
        )


def test_bytes_of_a_record():
    """Checks the sizes that docs/scaling.md uses.

    They are for 1,000 classes and keys of 12 characters, the file's overhead included.
    """
    p = np.zeros(1000, np.float32)
    p[500:505] = 0.2  # classes past 127 take two bytes each
    sizes = [
        len(protos.make_prediction("k" * 12, p, top_k)) + records.RECORD_OVERHEAD
        for top_k in (0, 5)
    ]
    pseudo_labeled = (
        len(protos.make_example(b"", "k" * 12, probabilities=p)) + records.RECORD_OVERHEAD
    )
    assert [*sizes, pseudo_labeled] == [2085, 131, 4135]
    # A label beside its image; the key is the image's. Position and class take two bytes each.
    assert (
        len(protos.make_label(9000, 1, np.eye(1000, dtype=np.float32)[500]))
        + records.RECORD_OVERHEAD
        == 4118
    )


def test_enough_classes_lose_little():
    """Stores all but 1 % of the mass.

    The reader spreads that 1 % over 990 classes, when it was on one class. That costs 0.01 · ln 990
    = 0.07 nats.
    """
    p = distribution(0, 1000)
    p = np.where(p >= np.sort(p)[-10], p, 0)
    p = (0.99 * p / p.sum()).astype(np.float32)
    p[np.argmin(p)] += 0.01
    _, q = protos.read_prediction(protos.make_prediction("k", p, 10), 1000)
    assert divergence(p, q) == pytest.approx(0.01 * np.log(990), rel=1e-2)


def test_bad_predictions():
    with pytest.raises(InputError, match="over 10 classes, not 11"):
        protos.read_prediction(protos.make_prediction("k", np.full([10], 0.1), 0), 11)
    with pytest.raises(InputError, match="does not fit 5 classes"):
        protos.read_prediction(protos.make_prediction("k", np.eye(10)[7], 3), 5)
    with pytest.raises(InputError, match="not a prediction"):
        protos.read_prediction(protos.make_example(b"x", "k"), 10)
    for broken in (np.array([0.5, np.nan]), np.array([0.5, 0.2]), np.array([1.5, -0.5])):
        with pytest.raises(ValueError, match="not a distribution"):
            protos.make_prediction("k", broken, 0)
