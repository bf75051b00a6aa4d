"""Labels beside images give a training what copied records give it, to the bit."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import pipeline
from data.beside import pick
from data.manifest import Beside, Manifest, read_manifest, write_manifest
from data.preprocessing import Preprocessing
from data.protos import make_example, make_label
from data.records import shard_name, verify_split, write_shard, write_split
from data.verification import read_records

SHARDS, IMAGES, CLASSES = 4, 50, 3
NAMES = tuple("abc")


def drawn() -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Returns images, copies [N] from 0 to 3 (none in shard 2), and distributions [N, K]."""
    rng = np.random.Generator(np.random.PCG64(5))
    pixels = rng.integers(0, 256, [IMAGES, 8, 8, 3], dtype=np.uint8)
    copies = rng.integers(0, 4, IMAGES)
    copies[IMAGES // 2 : 3 * IMAGES // 4] = 0
    return (
        [tf.io.encode_png(image).numpy() for image in pixels],
        copies,
        rng.dirichlet(np.ones(CLASSES), IMAGES).astype(np.float32),
    )


@pytest.fixture(name="both", scope="module")
def _both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Manifest]:
    """Builds the same balanced set twice: whole records, and labels beside images."""
    root = tmp_path_factory.mktemp("beside")
    images, copies, q = drawn()
    split = write_split(
        root / "data" / "unlabeled",
        "unlabeled",
        (make_example(encoded, f"é{i}") for i, encoded in enumerate(images)),
        SHARDS,
        IMAGES,
        kind="unlabeled",
    )
    edges = [i * IMAGES // SHARDS for i in range(SHARDS + 1)]
    made = {}
    for name in ("copied", "beside"):
        (root / name).mkdir()
        files, written, counts = (
            tuple(shard_name("pseudo_labeled", i, SHARDS) for i in range(SHARDS)),
            [],
            [],
        )
        for first, end, file in zip(edges, edges[1:], files):
            kept = [i for i in range(first, end) if copies[i]]
            if name == "copied":
                records = [
                    make_example(images[i], f"é{i}", probabilities=q[i])
                    for i in kept
                    for _ in range(copies[i])
                ]
            else:
                records = [make_label(i - first, int(copies[i]), q[i]) for i in kept]
            written.append(write_shard(root / name / file, records))
            counts.append(int(copies[first:end].sum()))
        labels, digests = zip(*written)
        beside = Beside(split, labels) if name == "beside" else None
        manifest = Manifest(
            root / name,
            "pseudo_labeled",
            files,
            tuple(counts),
            NAMES,
            0,
            "pseudo_labeled",
            {},
            digests,
            beside=beside,
        )
        write_manifest(manifest)
        made[name] = read_manifest(root / name, "pseudo_labeled")
    assert made["beside"].beside == Beside(split, labels)
    return made["copied"], made["beside"]


def trust(split: Manifest) -> Manifest:
    """Returns the manifest as TRUST_SHARDS=1 makes it."""
    beside = split.beside and split.beside._replace(images=trust(split.beside.images))
    return dataclasses.replace(split, trusted=True, beside=beside)


def test_the_records_have_the_same_features(both):
    copied, beside = both
    for shard in range(SHARDS):
        found = list(zip(read_records(copied, shard), read_records(beside, shard)))
        assert len(found) == copied.records[shard] == beside.records[shard]
        for one, other in found:
            expected, got = (
                dict(tf.train.Example.FromString(record).features.feature)
                for record in (one, other)
            )
            assert set(got) == set(expected) | {"position", "copies"}
            assert all(got[name] == expected[name] for name in expected)
    assert copied.records[2] == 0


@pytest.mark.parametrize(("start", "trusted"), [(0, False), (7, True), (100, False)])
def test_batches_are_the_same_to_the_bit(both, start, trusted):
    """Covers more than an epoch, from any step on, also if an input pipeline cannot call Python."""
    both = [trust(split) if trusted else split for split in both]
    noise = Preprocessing(
        image_size=8,
        style="small",
        flip=True,
        pad=2,
        randaugment_layers=2,
        randaugment_magnitude=9.0,
    )
    options = {
        "batch_size": 6,
        "seed": 3,
        "start_step": start,
        "targets": "probabilities",
        "stream_id": 1,
    }
    steps = 2 * both[0].num_records // 6
    one, other = (
        list(pipeline.train_batches(split, noise, **options).take(steps).as_numpy_iterator())
        for split in both
    )
    assert len(one) == len(other) == steps
    for (x, q), (x_beside, q_beside) in zip(one, other):
        np.testing.assert_array_equal(x_beside, x)
        np.testing.assert_array_equal(q_beside, q)
    sample = [pipeline.samples(split, noise, count=5, seed=1, step=2).numpy() for split in both]
    np.testing.assert_array_equal(*sample)


@pytest.mark.parametrize("window", [5, 40])
def test_the_order_does_not_depend_on_the_form(both, window):
    def keys(split: Manifest) -> list[bytes]:
        stream = pipeline.example_stream(split, 1, 4, window).take(3 * split.num_records)
        return [
            tf.train.Example.FromString(record.numpy())
            .features.feature["image/key"]
            .bytes_list.value[0]
            for _, record in stream
        ]

    assert keys(both[0]) == keys(both[1])


def test_a_label_of_an_image_that_is_not_there_is_refused(both):
    images = both[1].beside.images
    records = list(read_records(images, 0))
    path, positions = images.paths[0].encode(), np.array([0, 3, len(records) - 1])
    assert pick(path, positions).tolist() == [records[i] for i in positions]
    assert len(pick(path, np.zeros(0, np.int64))) == 0
    with pytest.raises(
        InputError,
        match=rf"unlabeled-00000-of-00004 has no record {len(records)} \(counting from 0\)",
    ):
        pick(path, np.array([0, len(records)]))
    other = dataclasses.replace(
        both[1], trusted=True, files=(both[1].files[3], *both[1].files[1:]), beside=both[1].beside
    )
    with pytest.raises(InputError, match=r"unlabeled-00000-of-00004 has no record 12 "):
        list(
            read_records(
                dataclasses.replace(other, beside=Beside(images, both[1].beside.labels[3:])), 0
            )
        )


def test_labels_of_other_images_are_refused(both, tmp_path):
    _, beside = both
    verify_split(beside)
    (tmp_path / "w").mkdir()
    write_manifest(dataclasses.replace(beside, directory=tmp_path / "w"))
    for name in beside.files:
        os.link(beside.directory / name, tmp_path / "w" / name)
    assert (
        read_manifest(tmp_path / "w").beside == beside.beside
    )  # its path goes to where the images are
    images = beside.beside.images
    content = (tmp_path / "w" / "manifest.json").read_text()
    (tmp_path / "w" / "manifest.json").write_text(content.replace(images.digest, "0" * 64))
    with pytest.raises(
        InputError,
        match=(
            r"w holds labels of other images than .*unlabeled has now; run run_balance\.sh again"
        ),
    ):
        read_manifest(tmp_path / "w")


def test_a_damaged_label_shard_is_named(both, tmp_path):
    _, beside = both
    path = Path(beside.paths[1])
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-9])
        with pytest.raises(
            InputError,
            match=r"pseudo_labeled-00001-of-00004: record \d+ \(counting from 0\) is truncated",
        ):
            verify_split(beside)
    finally:
        path.write_bytes(content)
