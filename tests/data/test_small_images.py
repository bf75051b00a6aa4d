"""CIFAR-10 and SVHN from small files in their original formats."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import scipy.io

from cli.errors import InputError
from data import prepare, small_images, sources
from tests.data.recipes import config

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PIXELS = np.random.Generator(np.random.PCG64(5)).integers(0, 256, [120, 32, 32, 3], dtype=np.uint8)
LABELS = [
    int(label) for label in np.random.Generator(np.random.PCG64(6)).permutation(np.arange(120) % 10)
]


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes like Python 2, which made the original files."""

    def save_string(self, value) -> None:
        content = value if isinstance(value, bytes) else value.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def python2_pickle(value) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def write_cifar(path, without: str = "", **replaced: bytes) -> None:
    """Writes five training batches of 20 images and a test batch of 20."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = {
        "batches.meta": python2_pickle(
            {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}
        )
    }
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(20 * i, 20 * (i + 1))
        data = PIXELS[part].transpose(0, 3, 1, 2).reshape(20, 3072)
        batch = {
            b"batch_label": b"x",
            b"labels": LABELS[part],
            b"data": data,
            b"filenames": [b"x.png"] * 20,
        }
        members[name] = python2_pickle(batch)
    with tarfile.open(path, "w:gz") as archive:
        members.pop(without, None)
        for name, content in {**members, **replaced}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def opened(source: str, folder, **data):
    data = {"labeled": str(folder), "test": str(folder), "near_duplicates": False, **data}
    return prepare.open_source(config(source, **data))


def decoded(image) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(image.encoded)))


def test_cifar10_4k_in_small(tmp_path):
    write_cifar(tmp_path / "cifar-10-python.tar.gz")
    source = opened(
        "cifar10", tmp_path, labeled_per_class=4, validation_size=10, labeled_as_unlabeled="rest"
    )
    assert source.label_names == tuple(NAMES)
    splits = {name: list(split) for name, split in source.splits().items()}
    assert {name: len(split) for name, split in splits.items()} == {
        "labeled": 40,
        "unlabeled": 50,
        "test": 20,
        "validation": 10,
    }
    assert Counter(image.label for image in splits["labeled"]) == dict.fromkeys(range(10), 4)
    assert {image.key for image in splits["test"]} == {f"cifar10_test/{i:06d}" for i in range(20)}
    training = [
        image.key for name in ("labeled", "unlabeled", "validation") for image in splits[name]
    ]
    assert sorted(training) == [f"cifar10_train/{i:06d}" for i in range(100)]
    for image in splits["labeled"] + splits["test"] + splits["unlabeled"]:
        index = int(image.key.split("/")[1]) + (100 if "test" in image.key else 0)
        np.testing.assert_array_equal(decoded(image), PIXELS[index])
        assert image.label in (None, LABELS[index])


def test_the_subset_is_the_seeds(tmp_path):
    write_cifar(tmp_path / "cifar-10-python.tar.gz")

    def keys(seed, name, **data):
        recipe = config(
            "cifar10",
            seed,
            labeled=str(tmp_path),
            test=str(tmp_path),
            labeled_as_unlabeled="rest",
            labeled_per_class=3,
            **data,
        )
        return {image.key for image in prepare.open_source(recipe).splits()[name]}

    assert keys(0, "labeled") == keys(0, "labeled") != keys(1, "labeled")
    assert keys(0, "test") == keys(1, "test")


class Attack:
    def __reduce__(self):
        return os.system, ("touch /tmp/a-pickle-was-here",)


@pytest.mark.parametrize(
    "batch, message",
    [
        (pickle.dumps(Attack(), protocol=2), r"it wants to load \w+.system"),
        (pickle.dumps({b"labels": [1]}), "not the original one"),
        (b"junk", "not the original one"),
    ],
)
def test_a_pickle_is_not_obeyed(tmp_path, batch, message):
    write_cifar(tmp_path / "cifar-10-python.tar.gz", data_batch_3=batch)
    with pytest.raises(InputError, match=message):
        opened("cifar10", tmp_path, labeled_as_unlabeled="all")
    assert not os.path.exists("/tmp/a-pickle-was-here")


def write_svhn(path, start: int, stop: int) -> None:
    y = np.array(
        [[10 if label == 0 else label] for label in LABELS[start:stop]], np.uint8
    )  # the digit 0 is class 10
    scipy.io.savemat(
        path, {"X": PIXELS[start:stop].transpose(1, 2, 3, 0), "y": y}, do_compression=True
    )


def test_svhn_1k_in_small(tmp_path):
    for name, start, stop in (("train", 0, 60), ("extra", 60, 100), ("test", 100, 120)):
        write_svhn(tmp_path / f"{name}_32x32.mat", start, stop)
    source = opened(
        "svhn", tmp_path, unlabeled=str(tmp_path), labeled_per_class=2, labeled_as_unlabeled="rest"
    )
    assert source.label_names == tuple("0123456789")
    splits = {name: list(split) for name, split in source.splits().items()}
    assert {name: len(split) for name, split in splits.items()} == {
        "labeled": 20,
        "unlabeled": 40 + 40,
        "test": 20,
    }
    assert Counter(image.key.split("/")[1] for image in splits["unlabeled"]) == {
        "svhn_train": 40,
        "svhn_extra": 40,
    }
    first = {"train": 0, "extra": 60, "test": 100}
    for image in [image for split in splits.values() for image in split]:
        *_, part, number = image.key.split("/")
        index = first[part.removeprefix("svhn_")] + int(number)
        np.testing.assert_array_equal(decoded(image), PIXELS[index])
        assert image.label in (None, LABELS[index])


@pytest.mark.parametrize(
    "role, missing", [("labeled", "data_batch_4"), ("test", "test_batch"), ("test", "batches.meta")]
)
def test_a_missing_batch_is_named(tmp_path, role, missing):
    write_cifar(tmp_path / "cifar-10-python.tar.gz", without=missing)
    with pytest.raises(
        InputError,
        match=f"cifar-10-python.tar.gz that is not the original one .*it lacks {missing}",
    ):
        small_images.open_cifar10(sources.Request(str(tmp_path), role))


@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "train_32x32.mat"])
@pytest.mark.parametrize("how", ["cut", "flip", "zeros"])
def test_damaged_originals(tmp_path, name, how):
    write_cifar(tmp_path / "cifar-10-python.tar.gz")
    write_svhn(tmp_path / "train_32x32.mat", 0, 60)
    content = (tmp_path / name).read_bytes()
    half = len(content) // 2
    damaged = {
        "cut": content[:half],
        "flip": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        "zeros": content[:half] + bytes(100) + content[half + 100 :],
    }[how]
    opener = small_images.open_cifar10 if name.endswith("gz") else small_images.open_svhn
    opener(sources.Request(str(tmp_path), "labeled"))
    (tmp_path / name).write_bytes(damaged)
    with pytest.raises(
        InputError, match=f"has a {name} that is not the original one .*; get it again"
    ) as caught:
        opener(sources.Request(str(tmp_path), "labeled"))
    assert "\n" not in str(caught.value)


def test_labels_that_no_original_has(tmp_path):
    batch = python2_pickle({b"labels": [3, 10], b"data": np.zeros([2, 3072], np.uint8)})
    write_cifar(tmp_path / "cifar-10-python.tar.gz", data_batch_1=batch)
    with pytest.raises(
        InputError, match=r"--labeled: cifar10_train/000001 has class 10; the 10 classes are 0..9"
    ):
        opened("cifar10", tmp_path, labeled_as_unlabeled="all")
    scipy.io.savemat(
        tmp_path / "train_32x32.mat",
        {"X": PIXELS[:2].transpose(1, 2, 3, 0), "y": np.array([[10], [11]], np.uint8)},
    )
    with pytest.raises(InputError, match="a label is not from 1 to 10"):
        small_images.open_svhn(sources.Request(str(tmp_path), "labeled"))


def test_missing_and_wrong_files(tmp_path):
    with pytest.raises(
        InputError,
        match=r"--labeled: .* has no cifar-10-python.tar.gz; put the original file there",
    ):
        opened("cifar10", tmp_path, labeled_as_unlabeled="all")
    (tmp_path / "train_32x32.mat").write_bytes(b"x" * 200)
    with pytest.raises(InputError, match=r"train_32x32.mat that is not the original one"):
        opened("svhn", tmp_path, labeled_as_unlabeled="all")
