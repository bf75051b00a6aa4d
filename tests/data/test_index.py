"""A host reads its own records of each batch, and recognizes them by the manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import index, pipeline, protos, records
from data.manifest import INDEX_ENDING, Manifest
from data.pipeline import Share
from data.preprocessing import Preprocessing
from data.sources import TFRECORD_FILES, Request, find_files
from tests.data.test_pipeline import PLAIN, levels
from tests.data.test_pipeline import split as split

COUNT, SHARDS, BATCH = 90, 4, 12


def write(directory: Path, seed: int = 0, least: int = 2_000) -> Manifest:
    """Writes a split of records of several sizes."""
    rng = np.random.Generator(np.random.PCG64([seed]))
    examples = [
        protos.make_example(rng.bytes(int(rng.integers(least, 2 * least))), f"key/{i}", label=i % 3)
        for i in range(COUNT)
    ]
    return records.write_split(
        directory, "labeled", examples, SHARDS, COUNT, kind="labeled", label_names=("a", "b", "c")
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write(tmp_path_factory.mktemp("index"))


def taken(stream: tf.data.Dataset, count: int) -> list[tuple[int, bytes]]:
    return [(int(position), record) for position, record in stream.take(count).as_numpy_iterator()]


@pytest.mark.parametrize(
    ("hosts", "window", "start"),
    [(2, 25, 0), (4, 50, BATCH), (2, 1000, 8 * BATCH), (3, 25, 40 * BATCH)],
)
def test_the_hosts_together_have_the_stream_of_one(
    manifest: Manifest, hosts: int, window: int, start: int
) -> None:
    """Over several epochs, from any step on, each in the stream's order."""
    count = 20 * BATCH
    whole = taken(pipeline.example_stream(manifest, 5, start, window=window), count)
    for host in range(hosts):
        own = taken(
            pipeline.own_stream(manifest, 5, Share(BATCH, hosts, host), start, window=window),
            count // hosts,
        )
        part = BATCH // hosts
        assert own == [(p, r) for p, r in whole if p % BATCH // part == host]


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes as Linux tells them")
@pytest.mark.parametrize("hosts", [2, 4])
def test_a_host_reads_little_more_than_its_part(tmp_path: Path, hosts: int) -> None:
    manifest = write(tmp_path / "large", least=20_000)
    total = sum(os.path.getsize(path) for path in manifest.paths)

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    for host in range(hosts):
        before = read()
        taken(
            pipeline.own_stream(manifest, 1, Share(2 * hosts, hosts, host), window=1),
            COUNT * 2 // hosts,
        )
        # Two epochs, and up to two windows, each a quarter of an epoch, read ahead.
        assert 1.9 * total / hosts < read() - before < 1.1 * 2.5 * total / hosts


def damaged(manifest: Manifest, tmp_path: Path, how: str) -> Manifest:
    """Copies the split and damages shard 1."""
    directory = tmp_path / "copy"
    shutil.copytree(manifest.directory, directory)
    shard = directory / manifest.files[1]
    beside = Path(f"{shard}{INDEX_ENDING}")
    if how == "another run's shard and index":
        other = write(tmp_path / "other", seed=1)
        shutil.copy(other.paths[1], shard)
        shutil.copy(other.paths[1] + INDEX_ENDING, beside)
    elif how == "another run's shard":
        shutil.copy(write(tmp_path / "other", seed=1).paths[1], shard)
    elif how == "records in another order":
        records.write_shard(shard, list(records.read_shard(shard))[::-1])
    else:
        file, place = (
            (shard, 5_000) if how == "a byte of a record" else (beside, int(how.rpartition(" ")[2]))
        )
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)
    return records.read_manifest(directory)


@pytest.mark.parametrize(
    "how",
    [
        "another run's shard and index",
        "another run's shard",
        "records in another order",
        "a byte of a record",
        "byte of the index 0",
        "byte of the index 45",
        "byte of the index -1",
    ],
)
def test_damage_is_an_error(manifest: Manifest, tmp_path: Path, how: str) -> None:
    broken = damaged(manifest, tmp_path, how)
    hosts = [
        pipeline.own_stream(broken, 5, Share(BATCH, 2, host), window=1000) for host in range(2)
    ]
    with pytest.raises(
        (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)
    ):
        _ = [taken(stream, COUNT) for stream in hosts]


def test_records_of_one_size_in_another_order(tmp_path: Path) -> None:
    """Tests offsets that are right with fingerprints that are not."""
    examples = [protos.make_example(bytes([i]) * 50, f"key/{i}", label=0) for i in range(10, 20)]
    manifest = records.write_split(
        tmp_path, "labeled", examples, 1, 10, kind="labeled", label_names=("a",)
    )
    records.write_shard(manifest.paths[0], examples[::-1])
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="a record differs from the one that the index describes",
    ):
        taken(pipeline.own_stream(manifest, 0, Share(2, 2, 0)), 5)


@pytest.mark.parametrize(
    "how", ["byte of the index 0", "byte of the index 45", "byte of the index -1"]
)
def test_a_wrong_index_is_named(manifest: Manifest, tmp_path: Path, how: str) -> None:
    """Names the index when a training ends by it, though its shards are as they should be."""
    records.verify_split(manifest)
    with pytest.raises(
        InputError,
        match=r"labeled-00001-of-00004\.index is damaged, or is the index of another file\. "
        "Delete it",
    ):
        records.verify_split(damaged(manifest, tmp_path, how))


def test_a_pattern_for_shards_leaves_their_indexes_out(manifest: Manifest) -> None:
    request = Request(f"{manifest.directory}/labeled-*", "labeled")
    assert find_files(request, TFRECORD_FILES, "TFRecord files") == sorted(manifest.paths)


def test_batches_without_an_index_are_the_same(split: Manifest, tmp_path: Path) -> None:
    """Tests that each host then reads all and keeps its own."""
    directory = tmp_path / "bare"
    shutil.copytree(split.directory, directory, ignore=shutil.ignore_patterns(f"*{INDEX_ENDING}"))
    bare = records.read_manifest(directory)
    assert index.indexed(split) and not index.indexed(bare)
    for host in (0, 1):
        options = {"batch_size": 8, "seed": 3, "pipelines": (2, host), "replicas": 2}
        assert levels(pipeline.train_batches(bare, PLAIN, **options), 3) == levels(
            pipeline.train_batches(split, PLAIN, **options), 3
        )


def test_augmentation_goes_by_the_place_in_the_whole_batch(split: Manifest) -> None:
    noisy = Preprocessing(image_size=6, pad=2)
    whole = [
        images.numpy()
        for images, _ in pipeline.train_batches(split, noisy, batch_size=8, seed=3).take(4)
    ]
    for host in (0, 1):
        own = pipeline.train_batches(
            split, noisy, batch_size=8, seed=3, pipelines=(2, host), replicas=2
        ).take(4)
        for images, (mine, _) in zip(whole, own):
            np.testing.assert_array_equal(images[4 * host : 4 * host + 4], mine)


def test_large_records_are_not_held_until_they_are_many(tmp_path: Path) -> None:
    """Photographs of a camera have some 10 MB each."""
    offsets, large = index.Offsets(), [bytes([i]) * (index.Offsets.BYTES // 2) for i in range(5)]
    held = []
    for number, record in enumerate(large):
        offsets.add(number, record)
        held.append(len(offsets._held))
    assert held == [1, 0, 1, 0, 1]
    digest = "0" * 64
    offsets.write(tmp_path / "shard", digest)
    found = index.read(
        tf.constant(str(tmp_path / "shard")),
        tf.constant(bytes.fromhex(digest)),
        tf.constant(5, tf.int64),
    ).numpy()
    expected = tf.bitcast(tf.fingerprint(tf.constant(large)), tf.int64).numpy()
    np.testing.assert_array_equal(found, np.stack([np.arange(5), expected], axis=1))


def test_an_empty_shard_has_an_index(tmp_path: Path) -> None:
    count, digest = records.write_shard(tmp_path / "empty", [], index=True)
    assert index.read(
        tf.constant(str(tmp_path / "empty")),
        tf.constant(bytes.fromhex(digest)),
        tf.constant(count, tf.int64),
    ).shape == (
        0,
        2,
    )
