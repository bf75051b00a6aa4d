"""Shards in a bucket: the examples of a local directory, through a cache of a part of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli import buckets, stores
from cli.errors import InputError
from cli.objects import Place
from data import pipeline, verification
from data.manifest import Beside, write_manifest
from data.protos import make_example, make_label
from data.records import read_manifest, read_shard, shard_name, write_shard, write_split
from tests import bucket_server

pytestmark = pytest.mark.filterwarnings("ignore")  # what boto3, moto and Flask say of each other
SHARDS, RECORDS = 8, 40


@pytest.fixture(name="server")
def _server(tmp_path, monkeypatch):
    with bucket_server.running(monkeypatch, tmp_path / "cache") as server:
        yield server


def write(directory: Path):
    """Returns 40 images in 8 shards of about 500 bytes, and a set of labels beside them."""
    examples = [make_example(bytes([i]) * 40, f"{i}") for i in range(RECORDS)]
    images = write_split(
        directory / "images",
        "unlabeled",
        examples,
        SHARDS,
        RECORDS,
        kind="unlabeled",
    )
    (directory / "beside").mkdir(parents=True, exist_ok=True)
    names = tuple(shard_name("pseudo_labeled", i, SHARDS) for i in range(SHARDS))
    q = np.full(3, 1 / 3, np.float32)
    written = [
        write_shard(directory / "beside" / name, [make_label(i, i + 1, q) for i in range(3)])
        for name in names
    ]
    counts, digests = zip(*written)
    manifest = dataclasses.replace(
        images,
        directory=directory / "beside",
        name="pseudo_labeled",
        files=names,
        records=(6,) * SHARDS,
        kind="pseudo_labeled",
        label_names=("a", "b", "c"),
        digests=digests,
        beside=Beside(images, counts),
    )
    write_manifest(manifest)


def stream(directory: Path, start=0, count=100):
    manifest = read_manifest(directory)
    found = pipeline.example_stream(manifest, 3, start, window=5).take(count)
    return [(int(position), record.numpy()) for position, record in pipeline.untuned(found)]


@pytest.mark.parametrize("kind, trusted", [("images", "0"), ("beside", "0"), ("beside", "1")])
def test_the_examples_are_the_local_ones(server, tmp_path, monkeypatch, kind, trusted):
    monkeypatch.setenv("TRUST_SHARDS", trusted)
    monkeypatch.setenv("BUCKET_CACHE_GIB", str(1500 / 2**30))  # of 4 kB: each shard comes again
    there = Path(buckets.local_path("s3://bucket/data"))
    write(tmp_path / "local")
    write(there)
    local = stream(tmp_path / "local" / kind)
    bucket_server.another_machine(monkeypatch, tmp_path / "other")
    there = Path(buckets.local_path("s3://bucket/data"))
    buckets.refresh(str(there), own=False)
    assert not list(there.rglob("*-of-*"))
    server.requests.clear()
    assert stream(there / kind) == local
    assert stream(there / kind, 57, 43) == local[57:]
    fetched = [key for method, key in server.requests if method == "GET" and "-of-" in key]
    assert len(fetched) > 2 * SHARDS and not any(key.endswith(".index") for key in fetched)
    assert 0 < len(list(there.rglob("*-of-*"))) < (2 if kind == "beside" else 1) * SHARDS
    if kind == "images":
        whole = [
            record.numpy() for record in verification.record_dataset(read_manifest(there / kind))
        ]
        paths = read_manifest(tmp_path / "local" / kind).paths
        assert whole == [record for path in paths for record in read_shard(path)]


def test_a_local_directory_is_read_as_before(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(pipeline, "fetched", lambda *_: pytest.fail("it has nothing to fetch"))
    monkeypatch.setattr(stores, "_store", lambda scheme: pytest.fail("it asks no store"))
    assert len(stream(tmp_path / "images", 0, 10)) == 10


def test_a_damaged_and_a_missing_shard_are_refused_in_one_line(server, tmp_path, monkeypatch):
    there = Path(buckets.local_path("s3://bucket/data"))
    write(there)
    name = read_manifest(there / "images").files[2]
    server.put(
        f"data/images/{name}",
        (there / "images" / read_manifest(there / "images").files[3]).read_bytes(),
    )
    bucket_server.another_machine(monkeypatch, tmp_path / "other")
    there = Path(buckets.local_path("s3://bucket/data"))
    buckets.refresh(str(there), own=False)
    with pytest.raises(tf.errors.OpError) as raised:
        stream(there / "images")
    with pytest.raises(InputError, match=f"{name} is not the file that manifest.json describes"):
        verification.raise_refusal(raised.value)
    stores.delete(Place("s3", "bucket", f"data/images/{name}"))
    buckets.refresh(str(there), own=False)
    with pytest.raises(InputError, match=f"lacks 1 of 8 shards .first: {name}"):
        read_manifest(there / "images")
