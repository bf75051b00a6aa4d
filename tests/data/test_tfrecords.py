"""TFRecords that others wrote, as collections, and the release's pseudo-labeled shards."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import prepare, protos, records, sources, tfrecords
from tests.data.recipes import config, encode, pixels


def example(**features) -> bytes:
    kinds = {
        bytes: ("bytes_list", tf.train.BytesList),
        int: ("int64_list", tf.train.Int64List),
        float: ("float_list", tf.train.FloatList),
    }
    made = {}
    for name, value in features.items():
        values = value if isinstance(value, list) else [value]
        field, kind = kinds[type(values[0])]
        made[name.replace("__", "/")] = tf.train.Feature(**{field: kind(value=values)})
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def imagenet_like(number: int, label: int) -> bytes:
    """Returns a record as in the usual ImageNet shards: labels from 1."""
    synset = f"n{label:08d}".encode()
    return example(
        image__encoded=encode(pixels(number), "jpg"),
        image__class__label=label,
        image__class__synset=synset,
        image__filename=b"%s_%d.JPEG" % (synset, number),
        image__height=12,
    )


def write(path, *examples: bytes) -> None:
    records.write_shard(path, examples)


def add_shard(folder, name: str, *examples: bytes) -> None:
    """Writes one more shard, and renames the others accordingly."""
    shards = sorted(folder.glob(f"{name}-*"))
    for i, path in enumerate(shards):
        path.rename(folder / records.shard_name(name, i, len(shards) + 1))
    write(folder / records.shard_name(name, len(shards), len(shards) + 1), *examples)


@pytest.fixture
def folder(tmp_path):
    """Writes two shards of training images of three classes, one of validation images, and a pool.

    The pool has nothing but images.
    """
    directory = tmp_path / "imagenet"
    write(directory / "train-00000-of-00002", *(imagenet_like(i, 1 + i % 3) for i in range(12)))
    write(directory / "train-00001-of-00002", *(imagenet_like(i, 1 + i % 3) for i in range(12, 21)))
    write(
        directory / "validation-00000-of-00001",
        *(imagenet_like(i, 1 + i % 3) for i in range(30, 36)),
    )
    for shard in range(2):
        write(
            tmp_path / "pool" / f"extra-{shard:05d}-of-00002",
            *(example(image__encoded=encode(pixels(40 + 5 * shard + i))) for i in range(5)),
        )
    return tmp_path


def opened(folder, source: str = "imagenet", **data):
    data = {
        "labeled": str(folder / "imagenet"),
        "test": str(folder / "imagenet"),
        "unlabeled": f"tfrecord:{folder / 'pool'}",
        **data,
    }
    return prepare.open_source(config(source, **data))


def test_imagenets_shards_are_read_as_they_are(folder):
    source = opened(folder)
    assert source.label_names == ("n00000001", "n00000002", "n00000003")
    splits = {name: list(split) for name, split in source.splits().items()}
    assert {name: len(split) for name, split in splits.items()} == {
        "labeled": 21,
        "unlabeled": 10,
        "test": 6,
    }
    for image in splits["labeled"] + splits["test"]:
        synset, number = image.key.removesuffix(".JPEG").split("_")
        assert source.label_names[image.label] == synset
        assert image.encoded == encode(pixels(int(number)), "jpg")
    for image in splits["unlabeled"]:
        name, number = image.key.split("/")  # nothing else distinguishes them
        assert image.encoded == encode(pixels(40 + 5 * int(name[6:11]) + int(number)))


def test_a_pattern_and_labels_that_begin_elsewhere(folder):
    source = opened(
        folder,
        "tfrecord",
        labeled=f"{folder}/imagenet/train-*",
        test=f"{folder}/imagenet/validation-*",
        label_offset=1,
    )
    assert source.label_names == ("n00000001", "n00000002", "n00000003")
    with pytest.raises(InputError, match=r"record 0 .* has label 1, the first class being 2"):
        opened(folder, "tfrecord", labeled=f"{folder}/imagenet/train-*", label_offset=2)


@pytest.mark.parametrize(
    "role, label, message",
    [
        ("train", -7, r"train-00002-of-00003: record 1 .* has label -7, the first class being 1"),
        (
            "train",
            2_000_000_000,
            r"no image of class 4, but one of class 2000000000 \(.*train-00002-of-00003: record 1 ",
        ),
        (
            "train",
            2**40,
            r"train-00002-of-00003: record 1 .* has label 1099511627776, the first class being 1",
        ),
        ("validation", 4, "has class n00000004, which --labeled lacks"),
        (
            "validation",
            5,
            r"no image of class 4, but one of class 5 \(.*validation-00001-of-00002: record 1 ",
        ),
    ],
)
def test_labels_that_cannot_be(folder, role, label, message):
    good, bad = (
        imagenet_like(90, 1),
        example(image__encoded=encode(pixels(91)), image__class__label=label, image__key=b"bad"),
    )
    if label == 4:
        bad = imagenet_like(91, 4)
    add_shard(folder / "imagenet", role, good, bad)
    with pytest.raises(InputError, match=message):
        opened(folder)


def test_a_test_without_a_class(folder, caplog):
    write(
        folder / "imagenet" / "validation-00000-of-00001",
        *(imagenet_like(i, 1 + i % 2) for i in range(30, 36)),
    )
    with caplog.at_level("WARNING"):
        assert opened(folder).label_names[2] == "n00000003"
    assert "has no image of 1 classes of --labeled (n00000003)" in caplog.text


def test_incomplete_shards_of_imagenet(folder):
    shards = folder / "imagenet"
    (shards / "train-00000-of-00002").rename(shards / "aside")
    with pytest.raises(
        InputError,
        match=(
            r"--labeled: .*imagenet lacks 1 of 2 train shards \(first: train-00000-of-00002\); get"
            r" them"
        ),
    ):
        opened(folder)
    (shards / "aside").rename(shards / "train-00000-of-00003")
    with pytest.raises(
        InputError, match="has train shards of several sets, of 2 and 3; keep those of one set"
    ):
        opened(folder)


def test_folders_with_brackets(folder):
    shards = (folder / "imagenet").rename(folder / "imagenet [1]")
    assert len(opened(folder, labeled=str(shards), test=str(shards)).splits()["labeled"]) == 21
    source = opened(
        folder,
        "tfrecord",
        labeled=f"{shards}/train-*",
        test=f"{shards}/validation-*",
        label_offset=1,
    )
    assert len(source.splits()["labeled"]) == 21


def test_labels_from_one(folder):
    with pytest.raises(
        InputError,
        match=(
            r"no image of class 0, but one of class 3 .* or pass --config.data.label_offset=1 if"
            r" they"
        ),
    ):
        opened(folder, "tfrecord", labeled=f"{folder}/imagenet/train-*")


def test_a_doubled_key_is_found_before_anything_is_written(folder):
    for number in range(2):
        write(
            folder / "labeled" / f"{number}",
            *(example(image__encoded=encode(pixels(i)), image__key=b"%d" % i) for i in (number, 2)),
        )
    recipe = config(
        "imagenet", labeled=str(folder / "imagenet"), unlabeled=f"tfrecord:{folder / 'labeled'}"
    )
    with pytest.raises(
        InputError, match=r"two images have the key 2 \(.*/0: record 1 .*/1: record 1"
    ):
        prepare.main(recipe, str(folder / "w"))
    assert not (folder / "w").exists()


def test_file_names_that_are_doubled_are_no_keys(folder):
    add_shard(folder / "imagenet", "train", imagenet_like(7, 2))  # as in the first file
    keys = {image.key for image in opened(folder).splits()["labeled"]}
    assert len(keys) == 22 and {"train-00000-of-00003/7", "train-00002-of-00003/0"} < keys


@pytest.mark.skipif(
    not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read, whoever tries"
)
def test_records_that_cannot_be_read(folder):
    os.symlink("/proc/self/mem", folder / "pool" / "extra-00002-of-00003")
    with pytest.raises(
        InputError, match=r"extra-00002-of-00003: record 0 .* cannot be read \(Input/output error\)"
    ):
        opened(folder)
    source = opened(folder, on_error="skip")
    assert len(source.splits()["unlabeled"]) == 10
    assert "cannot be read" in source.facts["skipped"][0]["why"]


def test_a_balanced_subset_is_listed_in_the_manifest(folder):
    recipe = config(
        "imagenet",
        labeled=str(folder / "imagenet"),
        labeled_per_class=2,
        validation_size=4,
        labeled_as_unlabeled="rest",
        label_offset=1,
    )
    prepare.main(recipe, str(folder / "w"))
    manifest = records.read_manifest(folder / "w" / "labeled")
    written = [
        tf.train.Example.FromString(r).features.feature
        for path in manifest.paths
        for r in records.read_shard(path)
    ]
    assert manifest.extra["keys"] == [
        features["image/key"].bytes_list.value[0].decode() for features in written
    ]
    assert sorted(features["image/class/label"].int64_list.value[0] for features in written) == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    splits = json.loads((folder / "w" / "summary.json").read_text())["splits"]
    assert {name: split["images"] for name, split in splits.items()} == {
        "labeled": 6,
        "unlabeled": 21 - 6 - 4,
        "test": 6,
        "validation": 4,
    }


def test_all_labeled_images_are_unlabeled_ones_too(folder):
    splits = opened(
        folder, unlabeled=None, labeled_per_class=2, validation_size=4, labeled_as_unlabeled="all"
    ).splits()
    keys = {name: {image.key for image in split} for name, split in splits.items()}
    assert keys["labeled"] < keys["unlabeled"]
    assert len(keys["unlabeled"]) == 17 and not keys["unlabeled"] & (
        keys["validation"] | keys["test"]
    )


def test_two_pools_have_keys_of_their_own(folder):
    keys = [
        image.key
        for image in opened(folder, labeled_per_class=2, labeled_as_unlabeled="rest").splits()[
            "unlabeled"
        ]
    ]
    assert sorted({key.split("/")[0] for key in keys}) == ["labeled", "unlabeled"]
    assert len(set(keys)) == len(keys) == 15 + 10


def damage(path, record: int) -> None:
    """Changes one byte in the middle of a record's data."""
    whole = list(records.read_shard(path))
    offset = (
        sum(len(r) + records.RECORD_OVERHEAD for r in whole[:record])
        + records.HEADER_BYTES
        + len(whole[record]) // 2
    )
    content = bytearray(path.read_bytes())
    content[offset] ^= 255
    path.write_bytes(content)


def test_a_corrupt_shard_in_the_middle(folder):
    for shard in range(2, 4):
        write(
            folder / "pool" / f"extra-{shard:05d}-of-00004",
            *(example(image__encoded=encode(pixels(80 + 5 * shard + i))) for i in range(5)),
        )
    path = folder / "pool" / "extra-00001-of-00002"
    damage(path, 3)
    with pytest.raises(
        InputError, match=r"extra-00001-of-00002: record 3 .counting from 0. is corrupt"
    ):
        opened(folder)
    source = opened(folder, on_error="skip")
    assert len(source.splits()["unlabeled"]) == 18
    assert [entry["file"] for entry in source.facts["skipped"]] == [str(path)]
    assert (
        "record 3 (counting from 0) is corrupt; the rest of the file is left out"
        in source.facts["skipped"][0]["why"]
    )


def test_a_record_without_an_image_and_one_that_is_none(folder):
    path = folder / "pool" / "extra-00002-of-00003"
    write(
        path,
        example(image__encoded=encode(pixels(60))),
        example(other=b"x"),
        b"\xff\xff",
        example(image__encoded=b"no image"),
    )
    with pytest.raises(
        InputError, match=r"extra-00002-of-00003: record 1 .counting from 0. has no image/encoded"
    ):
        opened(folder)
    source = opened(folder, on_error="skip")
    assert len(source.splits()["unlabeled"]) == 11
    skipped = {entry["file"].rsplit(": ")[1][:8]: entry["why"] for entry in source.facts["skipped"]}
    assert (
        skipped["record 1"] == "has no image/encoded"
        and skipped["record 2"] == "is not a tf.train.Example"
    )
    assert skipped["record 3"].startswith("it is not a JPEG")


@pytest.mark.parametrize(
    "data, message",
    [
        ({"unlabeled": "tfrecord:/nowhere"}, "--unlabeled: /nowhere has no TFRecord files"),
        ({"labeled": "/nowhere"}, "--labeled: /nowhere is not a folder"),
    ],
)
def test_missing_files(folder, data, message):
    with pytest.raises(InputError, match=message):
        opened(folder, **data)


# The release's pseudo-labeled shards


def pseudo(number: int, probabilities: list[float], **features) -> bytes:
    label = int(np.argmax(probabilities))
    return example(
        **{
            "image__encoded": encode(pixels(number)),
            "probabilities": probabilities,
            "label": label,
            "prob": probabilities[label],
            **features,
        }
    )


def run(folder, *shards: list[bytes], **data):
    for i, shard in enumerate(shards):
        write(folder / "pseudo" / f"train-svhn-{i:05d}-of-{len(shards):05d}", *shard)
    recipe = config(
        "imagenet",
        labeled=str(folder / "imagenet"),
        unlabeled=f"tfrecord:{folder / 'pool'}",
        **data,
    )
    prepare.main(recipe, str(folder / "w"), pseudo_labeled=str(folder / "pseudo"))
    return records.read_manifest(folder / "w" / "pseudo_labeled", "pseudo_labeled")


def test_pseudo_labeled_images_that_are_held_out(folder, capsys):
    held_out = pseudo(
        0, [0.7, 0.2, 0.1], image__encoded=encode(pixels(31), "jpg")
    )  # an image of the test
    manifest = run(folder, [pseudo(1, [0.7, 0.2, 0.1]), held_out])
    assert manifest.num_records == 1
    listed = json.loads((folder / "w" / "summary.json").read_text())[
        "held_out_images_left_out_of_pseudo_labeled"
    ]
    where = f"{folder}/pseudo/train-svhn-00000-of-00001: record 1 (counting from 0)"
    assert listed == [{"file": where, "of": "n00000002_31.JPEG", "bits": -1}]
    assert (
        "; left out because they are held out for testing: 1 (listed in summary.json)"
        in capsys.readouterr().out
    )


def test_only_pseudo_labeled_images_that_are_held_out(folder):
    with pytest.raises(
        InputError,
        match=(
            r"pseudo has no usable image; 1 were left out because held-out images repeat them .*; "
            "name other images"
        ),
    ):
        run(folder, [pseudo(0, [0.7, 0.2, 0.1], image__encoded=encode(pixels(31), "jpg"))])


def test_pseudo_labeled_locations_are_of_records_whatever_the_source(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for given in ("tfrecord:pseudo", "pseudo"):
        for source in ("tfds", "image_folder", "tfrecord"):
            assert prepare.with_locations(
                config(source), {"pseudo_labeled": given}
            ).data.pseudo_labeled == str(folder / "pseudo")


def test_pseudo_labeled_shards_of_the_release(folder):
    distributions = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.25, 0.5, 0.25]]
    manifest = run(
        folder,
        [pseudo(0, distributions[0]), pseudo(1, distributions[1])],
        [pseudo(2, distributions[2])],
    )
    assert manifest.label_names == ("n00000001", "n00000002", "n00000003")
    records.verify_split(manifest)
    parsed = [
        protos.parse_example(tf.constant(r))
        for path in manifest.paths
        for r in records.read_shard(path)
    ]
    np.testing.assert_allclose([p["probabilities"] for p in parsed], distributions, rtol=1e-6)
    assert [int(p["label"]) for p in parsed] == [0, 2, 1]
    assert parsed[2]["image/key"].numpy() == b"train-svhn-00001-of-00002/0"
    assert (
        json.loads((folder / "w" / "pseudo_labeled" / "summary.json").read_text())["num_records"]
        == 3
    )


UNUSABLE = [
    (lambda: pseudo(0, [0.5, 0.5]), "has 2 probabilities; the data has 3 classes"),
    (
        lambda: pseudo(0, [0.0, 0.0, 0.0]),
        "has no pseudo-label .its probabilities sum to 0.000.; take it as --unlabeled",
    ),
    (
        lambda: pseudo(0, [0.1, 0.8, 0.1], label=2),
        "has label 2, which is not its most probable class",
    ),
    (
        lambda: pseudo(0, [0.1, 0.8, 0.1], label=-1),
        "has label -1, which is not its most probable class",
    ),
    (lambda: pseudo(0, [-0.5, 0.8, 0.7]), "has a probability of -0.5"),
    (lambda: pseudo(0, [float("nan"), 0.8, 0.2], label=1), "has a probability of nan"),
    (lambda: pseudo(0, [0.1, float("inf"), 0.2]), "has a probability of inf"),
    (
        lambda: pseudo(0, [0.1, 0.8, 0.1], image__encoded=b"no image"),
        "it is not a JPEG, PNG, GIF or BMP",
    ),
    (lambda: example(probabilities=[0.1, 0.8, 0.1]), "has no image/encoded"),
    (lambda: b"\xff\xff", "is not a tf.train.Example"),
]


@pytest.mark.parametrize("record, message", UNUSABLE)
def test_unusable_pseudo_labels(folder, record, message, monkeypatch):
    """Bad records are found before any of the splits is written."""
    monkeypatch.setattr(records, "write_split", None)
    with pytest.raises(
        InputError, match="train-svhn-00000-of-00001: record 1 .counting from 0..*" + message
    ):
        run(folder, [pseudo(0, [0.7, 0.2, 0.1]), record()])
    assert not (folder / "w").exists()


def test_a_pseudo_labeled_shard_that_changes_while_writing(folder):
    path = folder / "pseudo" / "train"
    write(path, pseudo(0, [0.7, 0.2, 0.1]), pseudo(1, [0.7, 0.2, 0.1]))
    images = tfrecords.open_records(sources.Request(str(path), "pseudo_labeled", num_classes=3))
    assert len(list(tfrecords.pseudo_labeled(images, [0, 1]))) == 2
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        InputError, match=r"train: record 1 .counting from 0. was readable before and is not now"
    ):
        list(tfrecords.pseudo_labeled(images, [0, 1]))


def test_unusable_pseudo_labels_are_skipped_and_listed(folder):
    manifest = run(
        folder,
        [
            pseudo(0, [0.7, 0.2, 0.1]),
            *(record() for record, _ in UNUSABLE),
            pseudo(1, [0.1, 0.1, 0.8]),
        ],
        on_error="skip",
    )
    keys = [
        protos.parse_example(tf.constant(r))["image/key"].numpy()
        for r in records.read_shard(manifest.paths[0])
    ]
    assert keys == [
        b"train-svhn-00000-of-00001/0",
        b"train-svhn-00000-of-00001/%d" % (len(UNUSABLE) + 1),
    ]
    skipped = json.loads((folder / "w" / "summary.json").read_text())["skipped"]
    found = {int(re.search(r": record (\d+)", entry["file"])[1]): entry["why"] for entry in skipped}
    assert sorted(found) == list(range(1, len(UNUSABLE) + 1))
    for number, (_, message) in enumerate(UNUSABLE, 1):
        assert re.match(message, found[number])
