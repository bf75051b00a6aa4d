"""Compares shards with the digests in their manifest, at their first full read.

A record's CRC tells a damaged record. Only the manifest's SHA-256 also finds a shard of another
run, or with records in another order. Each process compares a shard once, just
before it reads the shard, so nothing is read before it is needed. The operating system then has the
file in memory, and the second read costs little.

`TRUST_SHARDS=1` in the environment turns the comparison off, for every command
(`records.read_manifest`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from cli import buckets
from cli.errors import InputError
from cli.shelf import Reader
from data.records import (
    HEADER_BYTES,
    MANIFEST,
    RECORD_OVERHEAD,
    Manifest,
    file_digest,
    impossible_record,
    read_shard,
)

unconverted = tf.autograph.experimental.do_not_convert
"""Decorates functions that tf.data traces. They have no Python control flow over tensors, and
rewriting them would cost each training seconds at its start."""

_verified: set[tuple[str, str, int, int]] = set()
"""Path, digest, size and modification time of the shards that this process found right."""

_refusals: list[InputError] = []
"""Errors that `refusing` met in a graph: TensorFlow hands on only the text of an exception."""


def verify_shard(manifest: Manifest, shard: int) -> str:
    """Compares one shard with its digest, once in each process; a trusted shard passes.

    Args:
      manifest: manifest of the split directory.
      shard: number of the shard, from 0.

    Returns:
      The shard's path.

    Raises:
      InputError: the shard cannot be read or differs. If one record is to blame, the message names
        it.
    """
    path, digest = str(manifest.directory / manifest.files[shard]), manifest.digests[shard]
    buckets.fetch([path])
    if manifest.trusted:
        return path
    try:
        status = os.stat(path)
        seen = (path, digest, status.st_size, status.st_mtime_ns)
        if seen in _verified:
            return path
        found = file_digest(path)
    except OSError:
        found = "unknown"  # the reader below says why
    else:
        if found == digest:
            _verified.add(seen)
            return path
    held = manifest.beside.labels if manifest.beside else manifest.records
    for _ in read_shard(path, num_records=held[shard]):
        pass
    raise InputError(
        f"{path} is not the file that {MANIFEST} describes (its SHA-256 is {found[:12]}..., not"
        f" {digest[:12]}...); put the right file back, or make the directory again"
    )


def read_records(manifest: Manifest, shard: int) -> Iterator[bytes]:
    """Yields the records of one shard, after `verify_shard`.

    Labels beside images are joined with the images. A verified file needs no other check, so this
    is faster than `records.read_shard`.

    Raises:
      InputError: as `verify_shard`; or the manifest gives another number of records.
    """
    if manifest.beside is None:
        yield from _read(manifest, shard, manifest.records[shard])
        return
    images = enumerate(read_records(manifest.beside.images, shard))
    for label in _read(manifest, shard, manifest.beside.labels[shard]):
        features = tf.train.Example.FromString(label).features.feature
        position, copies = (features[name].int64_list.value[0] for name in ("position", "copies"))
        # Both are in the images' order.
        image = next((record for number, record in images if number == position), None)
        if image is None:
            path = manifest.beside.images.paths[shard]
            raise InputError(
                f"{path} has no record {position} (counting from 0); run run_balance.sh again"
            )
        for _ in range(copies):
            yield image + label


def _read(manifest: Manifest, shard: int, wanted: int) -> Iterator[bytes]:
    """Yields the `wanted` records of a shard's own file, verified."""
    path = verify_shard(manifest, shard)
    if manifest.trusted:
        yield from read_shard(path, num_records=wanted)
        return
    count, left = 0, os.path.getsize(path)
    with open(path, "rb", buffering=1 << 20) as file:
        while count < wanted and (header := file.read(HEADER_BYTES)):
            length = int.from_bytes(header[:8], "little")
            left -= length + RECORD_OVERHEAD
            if left < 0:
                break
            yield file.read(length)
            file.seek(RECORD_OVERHEAD - HEADER_BYTES, os.SEEK_CUR)
            count += 1
    if count != wanted or left:  # the digest is right, so the manifest contradicts itself
        for _ in read_shard(path, num_records=wanted):
            pass
        raise AssertionError(f"{path}: {count} of {wanted} records read")


@contextlib.contextmanager
def verified_beside(manifest: Manifest, shard: int) -> Iterator[str]:
    """Verifies a shard in a thread while the block reads it, for readers that wait for a GPU.

    The block gets the path. It must publish nothing of what it reads before its end.

    Raises:
      InputError: as `verify_shard`, at the end of the block or instead of an error in it.
    """
    path = str(manifest.directory / manifest.files[shard])
    buckets.fetch([path])
    buckets.prefetch(manifest.paths[shard + 1 : shard + 2])  # most likely the next one
    if manifest.trusted:
        yield path
        return
    if impossible_record(path) is not None:  # TensorFlow must not read it
        verify_shard(manifest, shard)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        verification = pool.submit(verify_shard, manifest, shard)
        try:
            yield path
        finally:
            verification.result()


def refusing(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Returns a function for a graph that keeps its InputError for `raise_refusal`."""

    def keeping(*arguments: Any) -> np.ndarray:
        try:
            return function(*arguments)
        except InputError as error:
            _refusals.append(error)
            raise

    return keeping


def verified_paths(manifest: Manifest, shards: tf.Tensor) -> tf.Tensor:
    """Returns paths of shards, string (n,), in a graph that verifies each shard before it is read.

    Args:
      manifest: manifest of the split directory.
      shards: numbers of the shards, int64 (n,).

    Raises:
      tf.errors.OpError: a shard is refused when the graph runs; `raise_refusal` then tells why.
    """
    if manifest.trusted and not buckets.holds(manifest.directory):
        return tf.gather(tf.constant(manifest.paths, tf.string), shards)
    reader = Reader()

    def verify(numbers: np.ndarray) -> np.ndarray:
        buckets.fetch([manifest.paths[number] for number in numbers], reader)
        return np.array([verify_shard(manifest, int(number)) for number in numbers], object)

    # Stateless: otherwise TensorFlow would not read ahead where operations must be deterministic.
    paths = tf.numpy_function(refusing(verify), [shards], tf.string, stateful=False)
    return tf.ensure_shape(paths, shards.shape)


def fetched(manifest: Manifest, shards: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of shards, int64 (n,), in a graph that first fetches them from a bucket.

    Images that stand beside labels are fetched with them.

    Args:
      manifest: of a split directory in a bucket.
      shards: numbers of the shards, int64 (n,).
    """
    reader, of = Reader(), [manifest, *([manifest.beside.images] if manifest.beside else [])]

    def fetch(numbers: np.ndarray) -> np.ndarray:
        buckets.fetch([each.paths[number] for each in of for number in numbers], reader)
        return numbers

    found = tf.numpy_function(refusing(fetch), [shards], tf.int64, stateful=False)
    return tf.ensure_shape(found, shards.shape)


def record_dataset(manifest: Manifest) -> tf.data.Dataset:
    """Returns the serialized records of a split, string scalars in stored order.

    A shard is verified while the one before it is read.

    Raises:
      tf.errors.OpError: while it is iterated over, see `verified_paths`.
    """
    numbers = tf.data.Dataset.range(len(manifest.files)).batch(1)
    # Else TensorFlow may verify many shards ahead, and fetch them from a bucket: see cli.shelf.
    calls = 1 if buckets.holds(manifest.directory) else None
    verify = unconverted(lambda shards: verified_paths(manifest, shards))
    paths = numbers.map(verify, num_parallel_calls=calls).prefetch(1)
    return paths.flat_map(tf.data.TFRecordDataset)


def raise_refusal(error: Exception) -> None:
    """Raises the InputError behind TensorFlow's `error`, if a shard was refused."""
    for refusal in _refusals:
        if str(refusal) in str(error):
            raise refusal from error
