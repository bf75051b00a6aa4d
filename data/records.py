"""Training records: `tf.train.Example`s in TFRecord shards.

A *split directory* holds the shards `NAME-%05d-of-%05d` and `manifest.json`, which is written last:
where there is a manifest, the split is whole. `data.protos` says what a record holds.

Beside each shard of a split stands its index (`data.index`). Every record carries two CRC-32C sums,
which `read_shard` checks. The manifest has each shard's number of records and SHA-256, which
`data.verification` checks when a stage reads the shard.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from cli import buckets
from cli.errors import InputError
from cli.files import atomic_path, file_digest, remove_temporaries
from data.index import Offsets, verify_index
from data.manifest import INDEX_ENDING, MANIFEST, Manifest, write_manifest
from data.manifest import KINDS as KINDS
from data.manifest import read_manifest as read_manifest

HEADER_BYTES = 12
"""Size in bytes of a record's header in a file: the data's length, and the CRC of the length."""
RECORD_OVERHEAD = HEADER_BYTES + 4
"""Bytes of a record in a file besides its data: the header, and the CRC of the data."""
HARMLESS_LENGTH = 2**28
"""Number of bytes that TensorFlow may try to allocate for a record that is not there."""
RECORDS_PER_SHARD = 2000
MAX_SHARDS = 16_384


def num_shards_for(num_records: int) -> int:
    """Returns the default number of shards of a split.

    That is one for every 2,000 records, from 1 to 16,384. A training holds two windows of shuffled
    records in memory, each at least a shard. So shards grow with the split only above 32.8 million
    records.
    """
    return max(1, min(MAX_SHARDS, -(-num_records // RECORDS_PER_SHARD)))


def shard_name(name: str, index: int, num_shards: int) -> str:
    """Returns the file name of one shard of split `name`."""
    return f"{name}-{index:05d}-of-{num_shards:05d}"


def write_shard(
    path: str | Path,
    records: Iterable[bytes],
    index: bool = False,
    entries: Callable[[bytes], int] | None = None,
) -> tuple[int, str]:
    """Writes one TFRecord file, atomically: under a temporary name, fsynced, renamed.

    Args:
      path: path of the file.
      records: the records to write.
      index: whether to write its index beside it, after it; see `data.index`. Training on several
        hosts reads by it.
      entries: gives a record's number of entries in the index; None: one.

    Returns:
      The number of records and the file's SHA-256 (hexadecimal).
    """
    count, position, offsets = 0, 0, Offsets() if index else None
    with atomic_path(path) as temporary:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in records:
                writer.write(record)
                count += 1
                if offsets:
                    offsets.add(position, record, entries(record) if entries else 1)
                position += len(record) + RECORD_OVERHEAD
        digest = file_digest(temporary)
    if offsets:
        offsets.write(path, digest)
    return count, digest


def impossible_record(path: str | Path) -> int | None:
    """Finds the first record of a file that TensorFlow must not read.

    TensorFlow asks for as much memory as the record's length says, and crashes if there is not so
    much. TensorFlow itself refuses a length beyond the file for which there is memory, and a file
    that cannot be read.

    Returns:
      The record's number, from 0; None without one.
    """
    count = 0
    with contextlib.suppress(OSError), open(path, "rb") as file:
        left = os.path.getsize(path)
        while len(header := file.read(HEADER_BYTES)) == HEADER_BYTES:
            length = int.from_bytes(header[:8], "little")
            left -= length + RECORD_OVERHEAD
            if left < 0:
                return count if length > HARMLESS_LENGTH else None
            file.seek(length + RECORD_OVERHEAD - HEADER_BYTES, os.SEEK_CUR)
            count += 1
    return None


def read_shard(
    path: str | Path,
    on_error: str = "fail",
    problems: list[str] | None = None,
    num_records: int | None = None,
) -> Iterator[bytes]:
    """Yields a TFRecord file's records, with their CRCs checked.

    Args:
      path: the file.
      on_error: "fail" raises at the first bad record; "skip" leaves out the rest of the file, since
        past a bad record nothing tells where the next one begins.
      problems: list to which "skip" adds what it left out.
      num_records: number of records in the manifest. Only with it is a file noticed that was cut
        between two records.

    Raises:
      InputError: no such file; or, with "fail", a truncated, corrupt or unreadable record, or not
        `num_records` of them.
    """
    if on_error not in ("fail", "skip"):
        raise InputError(f"on_error is {on_error!r}; it can be fail or skip")
    buckets.fetch([path])
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; make the directory again")
    count = position = 0
    problem = None
    impossible = impossible_record(path)
    readable = -1 if impossible is None else impossible
    records = iter(tf.data.TFRecordDataset(str(path)).take(readable).as_numpy_iterator())
    while problem is None:
        try:
            record = next(records)
        except StopIteration:
            # TensorFlow's reader takes a tail shorter than a record's 12-byte header for the end of
            # the file.
            if count == impossible:
                problem = f"{path}: record {count} (counting from 0) is corrupt"
            elif position != Path(path).stat().st_size:
                problem = f"{path}: record {count} (counting from 0) is truncated"
            break
        except tf.errors.DataLossError as error:
            what = "truncated" if "truncated" in str(error) else "corrupt"
            problem = f"{path}: record {count} (counting from 0) is {what}"
        except tf.errors.OpError as error:
            why = (
                error.message.rpartition("; ")[2].split(" [")[0].strip()
            )  # what the file system says, between path and operation
            problem = f"{path}: record {count} (counting from 0) cannot be read ({why})"
        else:
            yield record
            count += 1
            position += len(record) + RECORD_OVERHEAD
    if problem is None and num_records is not None and count != num_records:
        problem = f"{path} has {count} records, but its {MANIFEST} says {num_records}"
    if problem is None:
        return
    if on_error == "fail":
        raise InputError(f"{problem}; make the file again")
    if problems is not None:
        problems.append(problem)


def write_split(
    directory: str | Path,
    name: str,
    examples: Iterable[bytes],
    num_shards: int,
    num_records: int,
    *,
    kind: str,
    label_names: Iterable[str] = (),
    label_offset: int = 0,
    extra: dict[str, Any] | None = None,
) -> Manifest:
    """Writes a split directory, the manifest last.

    Shard i of S gets the records [i·N/S, (i+1)·N/S), in order. Shards of an unfinished earlier run
    are written again, not trusted: nothing in them proves that they hold these very examples.

    Args:
      directory: made if missing; files of an earlier attempt at the same split are removed.
      name: name of the split.
      examples: serialized examples, read once, one at a time.
      num_shards: S.
      num_records: N, how many `examples` there are.
      kind: one of `KINDS`; goes to the manifest, as do the next three.
      label_names: names of the classes, in order; empty if unknown.
      label_offset: stored label minus class.
      extra: further facts.

    Raises:
      ValueError: `examples` are more or fewer than `num_records`.
    """
    directory = Path(directory)
    files = tuple(shard_name(name, i, num_shards) for i in range(num_shards))
    _clear(directory, name)
    iterator = iter(examples)
    written = []
    for i, file in enumerate(files):
        size = (i + 1) * num_records // num_shards - i * num_records // num_shards
        count, digest = write_shard(directory / file, itertools.islice(iterator, size), index=True)
        if count != size:
            raise ValueError(
                f"{directory}: {size - count} examples are missing at the end of {file}; "
                f"{num_records} were announced"
            )
        written.append((count, digest))
    if next(iterator, None) is not None:
        raise ValueError(f"{directory}: there are more examples than the {num_records} announced")
    manifest = Manifest(
        directory=directory,
        name=name,
        files=files,
        records=tuple(count for count, _ in written),
        label_names=tuple(label_names),
        label_offset=label_offset,
        kind=kind,
        extra=dict(extra or {}),
        digests=tuple(digest for _, digest in written),
    )
    write_manifest(manifest)
    return manifest


def _clear(directory: Path, name: str) -> None:
    """Removes split `name`'s manifest, shards and temporary files.

    The manifest goes first, so that the split counts as unfinished at once.
    """
    if not directory.is_dir():
        return
    buckets.remove(directory / MANIFEST, missing_ok=True)
    ours = re.compile(re.escape(name) + r"-\d{5,}-of-\d{5,}" + f"({re.escape(INDEX_ENDING)})?")
    for path in sorted(directory.iterdir()):
        if ours.fullmatch(path.name):
            buckets.remove(path)
    remove_temporaries(directory)


def require_same_classes(
    predicted: Sequence[str], of_predicted: str, labeled: Sequence[str], of_labeled: str
) -> None:
    """Checks that predictions or a model can be compared with labels.

    Args:
      predicted: name of each class.
      of_predicted: what has these classes, for the message.
      labeled: name of each class of the labels.
      of_labeled: what has these classes.

    Raises:
      InputError: other classes, or another order.
    """
    if len(predicted) != len(labeled):
        raise InputError(
            f"{of_labeled} has {len(labeled)} classes, {of_predicted} has {len(predicted)}; use"
            " those of one data directory"
        )
    for i, (name, other) in enumerate(zip(labeled, predicted)):
        if name != other:
            raise InputError(
                f"class {i} is {name!r} for {of_labeled}, but {other!r} for {of_predicted}; use"
                " those of one data directory"
            )


def verify_split(manifest: Manifest) -> None:
    """Reads every record of a split and checks what the manifest says.

    Checked are CRCs, counts, digests, and that labels are in range.

    Raises:
      InputError: names the file, and the record if one record is at fault.
    """
    if manifest.beside:
        verify_split(manifest.beside.images)
    held = manifest.beside.labels if manifest.beside else manifest.records
    for path, count, digest, examples in zip(
        manifest.paths, held, manifest.digests, manifest.records
    ):
        for number, record in enumerate(read_shard(path, num_records=count)):
            if manifest.kind in ("labeled", "pseudo_labeled"):
                _check_label(path, number, record, manifest)
        if file_digest(path) != digest:
            raise InputError(
                f"{path} is not the file that {MANIFEST} describes (SHA-256 differs); make the"
                " directory again"
            )
        verify_index(path, digest, examples)


def _check_label(path: str, number: int, record: bytes, manifest: Manifest) -> None:
    features = tf.train.Example.FromString(record).features.feature
    name, offset = (
        ("label", 0)
        if manifest.kind == "pseudo_labeled"
        else ("image/class/label", manifest.label_offset)
    )
    stored = list(features[name].int64_list.value) if name in features else []
    if len(stored) != 1 or not 0 <= stored[0] - offset < manifest.num_classes:
        found = f"label {stored[0]}" if stored else "no label"
        label_range = f"{offset}..{offset + manifest.num_classes - 1}"
        raise InputError(
            f"{path}: record {number} (counting from 0) has {found}; the labels of this split are"
            f" {label_range}"
        )
