"""TFDS data sets, by the package's own stand-in for prepared data."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cli.errors import InputError
from data import prepare
from tests.data.recipes import config, save
from tests.data.test_records import header


def opened(**data):
    data = {"near_duplicates": False, **data}
    return prepare.open_source(config("tfds", **data))


@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped"])
def test_a_prepared_data_set(name):
    with tfds.testing.mock_data(num_examples=100):
        source = opened(
            labeled=f"{name}/train",
            test=f"{name}/test",
            unlabeled="imagenet2012/train",
            labeled_as_unlabeled="all",
        )
        assert len(source.label_names) == 10
        stored = {name: [image.key for image in split] for name, split in source.splits().items()}
        assert all(keys == sorted(keys) for keys in stored.values())  # in TFDS's order
        # The stand-in's training and test images are the same files, so no training image is an
        # unlabeled one.
        assert {name: len(keys) for name, keys in stored.items()} == {
            "labeled": 100,
            "unlabeled": 100,
            "test": 100,
        }


def test_slices_and_other_pools():
    with tfds.testing.mock_data(num_examples=200):
        source = opened(
            labeled="cifar10/train[:50%]",
            test="cifar10/test",
            unlabeled="imagenet2012/train",
            validation_size=20,
        )
        counts = {name: len(list(split)) for name, split in source.splits().items()}
        assert (
            counts["labeled"] == 200 - 20
            and counts["unlabeled"] == 200
            and counts["validation"] == 20
        )
        again = opened(
            labeled="cifar10/train[:50%]",
            test="cifar10/test",
            unlabeled="imagenet2012/train",
            validation_size=20,
        )
        assert list(source.splits()["labeled"]) == list(again.splits()["labeled"])


@pytest.mark.skipif(
    importlib.util.find_spec("importlib_resources") is None,
    reason="TFDS needs importlib_resources to write data",
)
def test_real_files(tmp_path, monkeypatch):
    """Uses a small data set that TFDS itself writes and reads."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    builder = tfds.testing.DummyMnist
    images = (
        np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1)).astype(np.uint8)
    )  # its own are all white
    examples = {str(i): {"image": image, "label": i % 10} for i, image in enumerate(images)}
    monkeypatch.setattr(
        builder, "_generate_examples", lambda self: examples.items()
    )  # the same of both splits
    builder(data_dir=str(tmp_path)).download_and_prepare()
    monkeypatch.setattr(tfds, "builder", lambda name: builder(data_dir=str(tmp_path)))
    save(tmp_path / "pool" / "0.png")
    source = opened(
        labeled="dummy_mnist/train",
        test="dummy_mnist/test",
        unlabeled=f"image_folder:{tmp_path / 'pool'}",
    )
    splits = {name: list(split) for name, split in source.splits().items()}
    assert [len(splits[name]) for name in ("labeled", "test")] == [20, 20]
    assert all(
        image.encoded.startswith(b"\x89PNG") and 0 <= image.label < 10
        for image in splits["labeled"]
    )
    with pytest.raises(
        InputError,
        match=(
            r"the pool has no usable image; 20 were left out .* for dummy_mnist/.*; name other"
            r" images"
        ),
    ):
        opened(labeled="dummy_mnist/train", test="dummy_mnist/test", labeled_as_unlabeled="all")
    with pytest.raises(InputError, match="has no split dev; it has train, test"):
        opened(labeled="dummy_mnist/dev", labeled_as_unlabeled="all")

    (shard,) = tmp_path.rglob("*train.tfrecord*")
    whole = shard.read_bytes()
    longer = b"".join(first_records(shard, 1)) + header(2**40)
    for harmed in (
        whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        b"".join(first_records(shard, 12)),
        longer,
    ):
        shard.write_bytes(harmed)
        for roles in (
            {"labeled": "dummy_mnist/train"},
            {"labeled": "dummy_mnist/test", "unlabeled": "tfds:dummy_mnist/train"},
        ):
            with pytest.raises(
                InputError,
                match=r"dummy_mnist/train is damaged, or cannot be read .*; prepare it again",
            ):
                list(
                    opened(
                        **{"labeled_as_unlabeled": "all", "near_duplicates": False, **roles}
                    ).splits()
                )


def first_records(path, count):
    """Returns the bytes of a file's first records."""
    data, place = path.read_bytes(), 0
    for _ in range(count):
        size = 16 + int.from_bytes(data[place : place + 8], "little")
        yield data[place : place + size]
        place += size


@pytest.mark.parametrize(
    "location, message",
    [
        ("cifar10", "names no split; write tfds:NAME/SPLIT"),
        ("no_such_set/train", "is not a dataset of tensorflow-datasets"),
        ("coco/train", "has no feature `label`"),
        ("imdb_reviews/train", "has no feature `image`"),
    ],
)
def test_unusable_data_sets(location, message):
    with tfds.testing.mock_data(num_examples=5), pytest.raises(InputError, match=message):
        opened(labeled=location, labeled_as_unlabeled="all")


def test_a_data_set_that_is_not_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        InputError,
        match=(
            r"is not prepared; run `.* -c .*builder\('cifar10'\)\.download_and_prepare\(\).` first"
        ),
    ):
        opened(labeled="cifar10/train", labeled_as_unlabeled="all")
