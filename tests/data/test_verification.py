"""Shards are compared with their manifest when they are read, whoever reads them, and only then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tensorflow as tf

from cli.errors import InputError
from data import pipeline, protos, records, verification
from data.records import Manifest
from tests.data.test_records import header

READERS = {
    "singly": lambda manifest: [
        r for shard in range(3) for r in verification.read_records(manifest, shard)
    ],
    "as a data set": lambda manifest: list(
        verification.record_dataset(manifest).as_numpy_iterator()
    ),
    "in the order of training": lambda manifest: [
        r.numpy() for _, r in pipeline.example_stream(manifest, 1, window=1).take(9)
    ],
    "beside": lambda manifest: [r for shard in range(3) for r in beside(manifest, shard)],
}


def beside(manifest: Manifest, shard: int) -> list[bytes]:
    with verification.verified_beside(manifest, shard) as path:
        return list(records.read_shard(path))


def write(directory: Path, content: str = "image") -> Manifest:
    """Writes nine records in three shards."""
    examples = [protos.make_example(f"{content} {i}".encode(), f"key/{i}") for i in range(9)]
    return records.write_split(directory, "s", examples, 3, 9, kind="unlabeled")


def read(manifest: Manifest, reader: str) -> list[bytes]:
    try:
        return READERS[reader](manifest)
    except tf.errors.OpError as error:
        verification.raise_refusal(error)
        raise


def reordered(path: Path) -> None:
    records.write_shard(path, list(records.read_shard(path))[::-1])


def with_a_flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def of_another_run(path: Path) -> None:
    os.replace(write(path.parent / "other", "IMAGE").paths[1], path)


def with_an_impossible_length(path: Path) -> None:
    path.write_bytes(header(2**40) + b"1234")


CHANGES = {
    reordered: (
        "is not the file that manifest.json describes .its SHA-256 is .*; put the right file back,"
        " or make"
    ),
    with_a_flipped_bit: "record 0 .counting from 0. is corrupt; make the file again",
    of_another_run: "is not the file that manifest.json describes",
    with_an_impossible_length: "record 0 .counting from 0. is corrupt",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", CHANGES)
def test_another_shard_is_refused(tmp_path, reader, change):
    manifest = write(tmp_path / "s")
    change(Path(manifest.paths[1]))
    with pytest.raises(InputError, match=rf"^[^\n]*s-00001-of-00003[^\n]*{CHANGES[change]}[^\n]*$"):
        read(manifest, reader)


@pytest.mark.parametrize("reader", READERS)
def test_whole_shards_are_compared_once(tmp_path, monkeypatch, reader):
    manifest = write(tmp_path / "s")
    expected = sorted(record for path in manifest.paths for record in records.read_shard(path))
    hashed = []
    original = records.file_digest
    monkeypatch.setattr(
        verification, "file_digest", lambda path: hashed.append(path) or original(path)
    )
    assert sorted(read(manifest, reader)) == expected
    assert sorted(read(manifest, reader)) == expected
    assert sorted(hashed) == list(manifest.paths)
    os.utime(manifest.paths[0], ns=(1, 1))  # it may be another file now
    read(manifest, reader)
    assert hashed[3:] == [manifest.paths[0]]


def test_nothing_is_read_before_it_is_needed(tmp_path, monkeypatch):
    """Tests that training begins once its first window is compared: a split may have terabytes."""
    manifest = write(tmp_path / "s")
    hashed = []
    original = records.file_digest
    monkeypatch.setattr(
        verification, "file_digest", lambda path: hashed.append(path) or original(path)
    )
    next(verification.read_records(manifest, 2))
    assert hashed == [manifest.paths[2]]
    assert len(list(pipeline.example_stream(manifest, 1, window=1).take(1))) == 1
    assert len(hashed) <= 3


@pytest.mark.parametrize("reader", READERS)
def test_trusted_shards_are_not_compared(tmp_path, monkeypatch, reader):
    reordered(Path(write(tmp_path / "s").paths[1]))
    monkeypatch.setenv("TRUST_SHARDS", "1")
    assert len(read(records.read_manifest(tmp_path / "s"), reader)) == 9
    monkeypatch.setenv("TRUST_SHARDS", "0")
    with pytest.raises(InputError, match="SHA-256"):
        read(records.read_manifest(tmp_path / "s"), reader)
