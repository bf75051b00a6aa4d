"""Index of a shard: where each record begins, so that a host can read its own records only.

    SHARD.index    SHA-256 of the shard (32 bytes), then offset and fingerprint of each record
                   (int64 each, little-endian), then the fingerprint of all that (int64)

A label that stands beside its image has that entry once for each copy (`data.beside`).
The writer of a shard writes the index beside it. A fingerprint is TensorFlow's FarmHash64. The
SHA-256 ties an index to the digest in `manifest.json`, and the fingerprints tie each record to its
place. So a record that is read alone is still known to be the one that the manifest describes.
Everything here that reads is a TensorFlow operation, so it also runs on a remote host.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.files import atomic_path
from data.manifest import INDEX_ENDING, Manifest

RECORD_BYTES = 16
"""Size of a record's entry in an index, in bytes."""
_DIGEST_BYTES = 32
"""Size of a SHA-256, in bytes."""


class Offsets:
    """Collects the index of a shard while its records are written."""

    AT_ONCE, BYTES = 256, 2**24
    """Largest number of records, and of their bytes, that are held before they are hashed
    together."""

    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._hashes: list[np.ndarray] = []
        self._held: list[bytes] = []
        self._entries: list[int] = []  # of each record that is held
        self._room = self.BYTES

    def add(self, offset: int, record: bytes, entries: int = 1) -> None:
        """Notes the next record, which begins at byte `offset` of the shard and has `entries`."""
        self._offsets += [offset] * entries
        self._entries.append(entries)
        self._held.append(record)
        self._room -= len(record)
        if len(self._held) == self.AT_ONCE or self._room <= 0:
            self._hash()

    def _hash(self) -> None:
        if self._held:
            with tf.device("CPU"):
                hashes = _fingerprints(tf.constant(self._held, tf.string)).numpy()
            self._hashes.append(np.repeat(hashes, self._entries))
        self._held, self._entries, self._room = [], [], self.BYTES

    def write(self, shard: str | Path, digest: str) -> None:
        """Writes the index of `shard` atomically; `digest` is the shard's SHA-256, hexadecimal."""
        self._hash()
        hashes = np.concatenate([*self._hashes, np.zeros(0, np.int64)])
        content = (
            bytes.fromhex(digest)
            + np.stack([self._offsets, hashes], axis=1).astype("<i8").tobytes()
        )
        with tf.device("CPU"):
            total = _fingerprints(tf.constant([content])).numpy()
        with atomic_path(f"{shard}{INDEX_ENDING}") as temporary:
            temporary.write_bytes(content + total.astype("<i8").tobytes())


def indexed(manifest: Manifest) -> bool:
    """Tells whether every shard that holds records has an index; its images' shards, too."""
    if manifest.beside and not indexed(manifest.beside.images):
        return False
    return all(
        Path(f"{path}{INDEX_ENDING}").is_file()
        for path, size in zip(manifest.paths, manifest.records)
        if size
    )


def verify_index(shard: str | Path, digest: str, count: int) -> None:
    """Reads the index beside a shard, if there is one.

    Args:
      shard: path of the shard.
      digest: SHA-256 of the shard as in its manifest, hexadecimal.
      count: records of the shard.

    Raises:
      InputError: the index is damaged or belongs to another file.
    """
    path = f"{shard}{INDEX_ENDING}"
    if not Path(path).is_file():
        return
    try:
        with tf.device("CPU"):
            read(
                tf.constant(str(shard)),
                tf.constant(bytes.fromhex(digest)),
                tf.constant(count, tf.int64),
            )
    except tf.errors.OpError as error:
        raise InputError(
            f"{path} is damaged, or is the index of another file. Delete it, so that each host "
            "reads the whole file, or make it again"
        ) from error


def read(path: tf.Tensor, digest: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Reads the index of one shard.

    Args:
      path: path of the shard, a string scalar.
      digest: SHA-256 of the shard as in its manifest, a string scalar of 32 bytes.
      count: number of records of the shard, int64.

    Returns:
      Offsets and fingerprints, int64 (count, 2).

    Raises:
      tf.errors.InvalidArgumentError: when it runs; the index is damaged or belongs to another file.
    """
    whole = tf.io.read_file(path + INDEX_ENDING)
    size = _DIGEST_BYTES + RECORD_BYTES * count + 8
    content = tf.strings.substr(whole, 0, tf.cast(size - 8, tf.int32))
    right = tf.strings.substr(whole, 0, _DIGEST_BYTES) == digest
    right &= tf.strings.length(whole) == tf.cast(size, tf.int32)
    with tf.control_dependencies(
        [_require(right, path, "the index belongs to another shard than the manifest describes")]
    ):
        numbers = tf.io.decode_raw(
            tf.strings.substr(whole, _DIGEST_BYTES, tf.cast(size, tf.int32) - _DIGEST_BYTES),
            tf.int64,
        )
    right = tf.reduce_all(_fingerprints(content[tf.newaxis]) == numbers[-1])
    with tf.control_dependencies([_require(right, path, "the index is damaged")]):
        return tf.reshape(numbers[:-1], [-1, 2])


def read_all(files: tuple[tf.Tensor, tf.Tensor, tf.Tensor], at_once: int) -> tf.Tensor:
    """Reads the indexes of several shards, see `read`.

    Args:
      files: path, SHA-256 and number of records of each shard, each (s,).
      at_once: number of indexes that are read at the same time.

    Returns:
      Offsets and fingerprints of all records, int64 (n, 2).
    """
    shards = tf.data.Dataset.from_tensor_slices(files)
    tables = shards.map(tf.autograph.experimental.do_not_convert(read), num_parallel_calls=at_once)
    return tables.unbatch().batch(tf.reduce_sum(files[2])).get_single_element()


def read_records(paths: tf.Tensor, entries: tf.Tensor, at_once: int) -> tf.data.Dataset:
    """Reads single records, and nothing else of their shards.

    Args:
      paths: path of each record's shard, string (n,).
      entries: offset and fingerprint of each record, from the index, int64 (n, 2).
      at_once: number of records that are read at the same time.

    Returns:
      A data set of the records in that order, string scalars.

    Raises:
      tf.errors.DataLossError: while it is iterated over; no whole record begins there.
      tf.errors.InvalidArgumentError: while it is iterated over; another record begins there.
    """

    @tf.autograph.experimental.do_not_convert
    def read_one(path: tf.Tensor, entry: tf.Tensor) -> tf.Tensor:
        unbuffered = tf.zeros([], tf.int64)
        reader = tf.raw_ops.TFRecordDatasetV2(
            filenames=path, compression_type="", buffer_size=unbuffered, byte_offsets=entry[0]
        )
        record = (
            tf.data.experimental.from_variant(reader, tf.TensorSpec([], tf.string))
            .take(1)
            .get_single_element()
        )
        same = tf.reduce_all(_fingerprints(record[tf.newaxis]) == entry[1])
        with tf.control_dependencies(
            [_require(same, path, "a record differs from the one that the index describes")]
        ):
            return tf.identity(record)

    return tf.data.Dataset.from_tensor_slices((paths, entries)).map(
        read_one, num_parallel_calls=at_once, deterministic=True
    )


def digests(manifest: Manifest, shards: Sequence[int]) -> tf.Tensor:
    """Returns the SHA-256 of some shards, 32 bytes each, string (n,)."""
    return tf.constant([bytes.fromhex(manifest.digests[shard]) for shard in shards], tf.string)


def _fingerprints(data: tf.Tensor) -> tf.Tensor:
    """Hashes strings (n,) to int64 (n,)."""
    return tf.bitcast(tf.fingerprint(data), tf.int64)


def _require(right: tf.Tensor, path: tf.Tensor, what: str) -> tf.Operation:
    return tf.debugging.Assert(right, [path, what], summarize=-1)
