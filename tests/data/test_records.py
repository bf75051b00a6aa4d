"""Training records: what is written is what is read, and a damaged file never passes for a whole one."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from data import records
from stages.errors import InputError

NAMES = ("ant", "bee", "cat")


def examples(count: int) -> list[bytes]:
    return [records.make_example(bytes([i]) * (20 + i), f"key/{i}", i % 3 + 1) for i in range(count)]


@pytest.fixture
def split(tmp_path):
    return records.write_split(
        tmp_path / "s", "s", examples(10), 3, 10, kind="labeled", label_names=NAMES, label_offset=1, extra={"source": "test"}
    )


def test_split_round_trip(split):
    assert records.read_manifest(split.directory, "labeled") == split
    assert split.files == ("s-00000-of-00003", "s-00001-of-00003", "s-00002-of-00003")
    assert split.records == (3, 3, 4)  # shard i gets [10 i / 3, 10 (i + 1) / 3)
    assert (split.num_records, split.num_classes) == (10, 3)
    assert [record for path in split.paths for record in records.read_shard(path)] == examples(10)
    records.verify_split(split)


def test_rewriting_leaves_no_old_shards(split):
    (split.directory / ".s-00000-of-00003.tmp-1").write_bytes(b"left by a killed run")
    again = records.write_split(split.directory, "s", examples(4), 1, 4, kind="unlabeled")
    assert sorted(path.name for path in again.directory.iterdir()) == ["manifest.json", "s-00000-of-00001"]


def test_an_interrupted_split_has_no_manifest(split):
    def interrupted():
        yield from examples(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_split(split.directory, "s", interrupted(), 3, 10, kind="labeled")
    assert [path.name for path in split.directory.iterdir()] == ["s-00000-of-00003"]  # the one that was whole, and no temporary file
    with pytest.raises(InputError, match=r"no manifest\.json"):
        records.read_manifest(split.directory)


@pytest.mark.parametrize("announced", [9, 11])
def test_wrong_number_of_examples(tmp_path, announced):
    with pytest.raises(ValueError, match=str(announced)):
        records.write_split(tmp_path, "s", examples(10), 2, announced, kind="labeled")


@pytest.mark.parametrize(("count", "shards"), [(0, 1), (1, 1), (2000, 1), (2001, 2), (1_281_167, 641), (300_000_000, 1024)])
def test_number_of_shards(count, shards):
    assert records.num_shards_for(count) == shards


def test_manifest_errors(split, tmp_path):
    with pytest.raises(InputError, match="holds labeled records; predictions"):
        records.read_manifest(split.directory, "predictions")
    with pytest.raises(InputError, match="does not exist"):
        records.read_manifest(tmp_path / "nowhere")
    (split.directory / split.files[2]).unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 3 shards \(first: s-00002-of-00003\)"):
        records.read_manifest(split.directory)
    path = split.directory / "manifest.json"
    value = json.loads(path.read_text())
    for broken in ("{", "[]", json.dumps({**value, "num_records": 11}), json.dumps({**value, "kind": "other"})):
        path.write_text(broken)
        with pytest.raises(InputError, match=r"manifest\.json (is damaged|cannot be read|contradicts itself)"):
            records.read_manifest(split.directory)


# Damage


def test_every_cut_in_the_last_record_is_noticed(split):
    path = split.directory / split.files[0]  # records 0, 1, 2
    whole = path.read_bytes()
    last = len(examples(3)[2]) + 16
    for size in range(len(whole) - last + 1, len(whole)):
        path.write_bytes(whole[:size])
        problems: list[str] = []
        assert list(records.read_shard(path, "skip", problems)) == examples(2)
        assert problems == [f"{path}: record 2 (counting from 0) is truncated"]
    with pytest.raises(InputError, match=re.escape(f"{path}: record 2 (counting from 0) is truncated")):
        list(records.read_shard(path))


def test_a_cut_between_records_is_noticed_by_the_count(split):
    path = split.directory / split.files[0]
    path.write_bytes(path.read_bytes()[: -len(examples(3)[2]) - 16])
    with pytest.raises(InputError, match=r"2 records, where its manifest.json says 3"):
        list(records.read_shard(path, num_records=3))
    with pytest.raises(InputError, match="2 records"):
        records.verify_split(split)


@pytest.mark.parametrize("place", [0, 9, 12, 30, -1])  # length, its CRC, data, data, the data's CRC
def test_a_flipped_bit_is_noticed(split, place):
    path = split.directory / split.files[1]
    damaged = bytearray(path.read_bytes())
    start = len(examples(4)[3]) + 16  # of the shard's record 1
    end = start + len(examples(5)[4]) + 16
    damaged[start + place if place >= 0 else end + place] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"s-00001-of-00003: record 1 \(counting from 0\) is (corrupt|truncated)"):
        list(records.read_shard(path))
    problems: list[str] = []
    assert list(records.read_shard(path, "skip", problems)) == examples(4)[3:]
    assert len(problems) == 1


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        list(records.read_shard(tmp_path / "nowhere"))


def test_verify_notices_an_exchanged_file(split):
    records.write_shard(split.paths[0], examples(9)[6:9])
    with pytest.raises(InputError, match="SHA-256"):
        records.verify_split(split)


def test_verify_notices_a_label_out_of_range(split):
    with pytest.raises(
        InputError, match=r"s-00000-of-00003: record 0 \(counting from 0\) has label 1; the labels of this split are 2\.\.4"
    ):
        records.verify_split(dataclasses.replace(split, label_offset=2))
    records.write_split(split.directory, "s", [records.make_example(b"", "k")], 1, 1, kind="labeled", label_names=NAMES)
    with pytest.raises(InputError, match="no label"):
        records.verify_split(records.read_manifest(split.directory))


# Examples


def test_labeled_example():
    parsed = records.parse_example(tf.constant(records.make_example(b"\x89PNG", "ä/1.png", 7)), label_offset=1)
    assert parsed["image/encoded"].numpy() == b"\x89PNG"
    assert parsed["image/key"].numpy().decode() == "ä/1.png"
    assert int(parsed["label"]) == 6
    assert parsed["probabilities"].shape == [0]


def test_unlabeled_example():
    serialized = records.make_example(b"x", "k")
    assert sorted(tf.train.Example.FromString(serialized).features.feature) == ["image/encoded", "image/key"]
    assert int(records.parse_example(tf.constant(serialized), label_offset=1)["label"]) == -1


def test_pseudo_labeled_example():
    probabilities = np.array([0.2, 0.7, 0.1])
    serialized = records.make_example(b"x", "k", probabilities=probabilities)
    features = tf.train.Example.FromString(serialized).features.feature
    assert features["label"].int64_list.value == [1]
    assert features["prob"].float_list.value == pytest.approx([0.7])
    parsed = records.parse_example(tf.constant(serialized), label_offset=1)  # the offset is of image/class/label only
    assert int(parsed["label"]) == 1
    np.testing.assert_array_equal(parsed["probabilities"], probabilities.astype(np.float32))


def test_records_of_others_are_read():
    """ImageNet's usual features (labels from 1), and a pseudo-labelled record without a key, as the release writes them."""

    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(float_list=tf.train.FloatList(value=value))

    def parse(label_offset, **values):
        values = {name.replace("__", "/"): feature(value) for name, value in values.items()}
        return records.parse_example(tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString(), label_offset)

    imagenet = parse(1, image__encoded=b"jpeg", image__class__label=1000, image__filename=b"n.JPEG", image__height=3)
    assert (int(imagenet["label"]), imagenet["image/key"].numpy()) == (999, b"")
    pseudo = parse(0, image__encoded=b"jpeg", prob=[0.75], label=2, probabilities=[0.25, 0.0, 0.75])
    assert int(pseudo["label"]) == 2
    np.testing.assert_array_equal(pseudo["probabilities"], [0.25, 0.0, 0.75])


def test_the_same_example_has_the_same_bytes():
    """Features stand in the order of their names, not in that of a hash table, which may change with the process."""
    serialized = records.make_example(b"x", "k", 1, np.full([5], 0.2))
    names = [b"image/class/label", b"image/encoded", b"image/key", b"label", b"probabilities", b"prob"]  # a prefix goes last
    places = [serialized.index(b"\x0a" + bytes([len(name)]) + name + b"\x12") for name in names]  # field 1: the name; field 2: the value
    assert places == sorted(places)


# Predictions


def distribution(seed: int, num_classes: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed])).dirichlet(np.full([num_classes], 0.05)).astype(np.float32)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q), nats."""
    return float(np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30)), 0)))


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("top_k", [0, 1, 5, 10])
def test_prediction_round_trip(num_classes, top_k):
    p = distribution(num_classes, num_classes)
    key, q = records.read_prediction(records.make_prediction("ä/1", p, top_k), num_classes)
    assert (key, q.dtype, q.shape) == ("ä/1", np.float32, (num_classes,))
    assert q.sum() == pytest.approx(1, abs=1e-6)
    if top_k == 0 or top_k >= num_classes:
        np.testing.assert_allclose(q, p, rtol=2**-9, atol=1e-7)  # float16 has 11 bits
        assert divergence(p, q) < 1e-4
    else:
        top = np.argsort(-p, kind="stable")[:top_k]
        np.testing.assert_allclose(q[top], p[top], rtol=1e-5)
        rest = np.delete(q, top)
        np.testing.assert_allclose(rest, (1 - p[top].sum(dtype=np.float64)) / len(rest), rtol=1e-3, atol=1e-7)


def test_bytes_of_a_record():
    """What docs/scaling.md reckons with: 1,000 classes, keys of 12 characters, the file's overhead included."""
    p = np.zeros(1000, np.float32)
    p[500:505] = 0.2  # classes past 127 take two bytes each
    sizes = [len(records.make_prediction("k" * 12, p, top_k)) + records.RECORD_OVERHEAD for top_k in (0, 5)]
    pseudo_labeled = len(records.make_example(b"", "k" * 12, probabilities=p)) + records.RECORD_OVERHEAD
    assert [*sizes, pseudo_labeled] == [2085, 131, 4135]


def test_enough_classes_lose_little():
    """All but 1 % of the mass is stored. Spreading that 1 % over 990 classes, when it was on one, costs 0.01 · ln 990 = 0.07 nats."""
    p = distribution(0, 1000)
    p = np.where(p >= np.sort(p)[-10], p, 0)
    p = (0.99 * p / p.sum()).astype(np.float32)
    p[np.argmin(p)] += 0.01
    _, q = records.read_prediction(records.make_prediction("k", p, 10), 1000)
    assert divergence(p, q) == pytest.approx(0.01 * np.log(990), rel=1e-2)


def test_bad_predictions():
    with pytest.raises(InputError, match="over 10 classes, not 11"):
        records.read_prediction(records.make_prediction("k", np.full([10], 0.1), 0), 11)
    with pytest.raises(InputError, match="does not fit 5 classes"):
        records.read_prediction(records.make_prediction("k", np.eye(10)[7], 3), 5)
    with pytest.raises(InputError, match="no prediction"):
        records.read_prediction(records.make_example(b"x", "k"), 10)
    for broken in (np.array([0.5, np.nan]), np.array([0.5, 0.2]), np.array([1.5, -0.5])):
        with pytest.raises(ValueError, match="no distribution"):
            records.make_prediction("k", broken, 0)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    records.write_shard(small_disk / "first", [b"x" * 30_000])
    with pytest.raises(InputError, match=r"no space left on the disk of .*/second; make room"):
        records.write_shard(small_disk / "second", [b"x" * 10_000 for _ in range(20)])
    assert [path.name for path in small_disk.iterdir()] == ["first"]
