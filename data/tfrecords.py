"""Collection format: TFRecords of `tf.train.Example`s with `image/encoded`, whoever wrote them.

    tfrecord:DIR, tfrecord:FILE, 'tfrecord:DIR/train-*'

ImageNet's usual shards, the Noisy Student release's `extra-*` and `train-*`, and a pool that has
nothing but `image/encoded` are read as they are. `image/class/label` (minus the label offset) is
the class, `image/class/synset` or `image/class/text` its name, `image/key` or `image/filename` the
key. Without a key, or if two of these file names are the same, the key is FILE/NUMBER, with the
record's number in its file. Records are located once, by a pass that checks their CRCs; 20 bytes
each are held in memory.
"""

from __future__ import annotations

import array
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.progress import progress
from data.protos import make_example
from data.records import HEADER_BYTES, RECORD_OVERHEAD, read_manifest, read_shard
from data.sources import (
    TFRECORD_FILES,
    Request,
    check_numbers,
    find_files,
    ordered_map,
    printable,
    read_at,
    repeated,
)


class RecordImages:
    """A `Collection` of TFRecords."""

    scattered = True
    ignored: Mapping[str, int] = MappingProxyType({})

    def __init__(self, request: Request, paths: Sequence[str]) -> None:
        self._paths = paths
        self._file, self._number, self._offset, self._size = (array.array(kind) for kind in "iiqi")
        self._keys: list[str] | None = None
        self._filenames = 0  # keys that are file names, which may repeat
        self._problems: list[dict[str, str]] = []
        self.problems: Sequence[Mapping[str, str]] = self._problems
        labels = array.array("i")
        names: dict[int, str] = {}
        for file, path in enumerate(progress(paths, len(paths), f"read {request.role}")):
            self._list(file, path, request, labels, names)
        if not self._file:
            raise request.error("has no record with an image")
        if (
            self._keys is not None
            and self._filenames == len(self._keys)
            and repeated(self._keys, len(self._keys))
        ):
            self._keys = None
        self.labels = np.asarray(labels, np.int32)
        self.label_names: tuple[str, ...] = ()
        if request.role in ("labeled", "test"):
            check_numbers(self.labels, self.describe, request)
            self.label_names = _label_names(self.labels, names)

    def _list(
        self,
        file: int,
        path: str,
        request: Request,
        labels: array.array[int],
        names: dict[int, str],
    ) -> None:
        offset = HEADER_BYTES
        lost: list[str] = []
        for number, record in enumerate(read_shard(path, request.on_error, lost)):
            try:
                label, name, key, is_filename = _features(record, request)
            except InputError as error:
                if request.on_error == "fail":
                    raise InputError(
                        f"{printable(path)}: record {number} (counting from 0) {error}"
                    ) from error
                self._skip(f"{printable(path)}: record {number}", str(error))
            else:
                self._append(file, number, offset, len(record), key)
                self._filenames += is_filename
                labels.append(label)
                if name:
                    names[label] = name
            offset += len(record) + RECORD_OVERHEAD
        for problem in lost:
            self._skip(printable(path), f"{problem}; the rest of the file is left out")

    def _append(self, file: int, number: int, offset: int, size: int, key: str) -> None:
        if bool(key) != (self._keys is not None) and self._file:
            raise InputError(
                f"{printable(self._paths[file])}: record {number} (counting from 0): some records "
                "have a key, but others have none"
            )
        if key:
            self._keys = [] if self._keys is None else self._keys
            self._keys.append(key)
        for column, value in (
            (self._file, file),
            (self._number, number),
            (self._offset, offset),
            (self._size, size),
        ):
            column.append(value)

    def _skip(self, where: str, why: str) -> None:
        self._problems.append({"file": where, "why": why})

    def key(self, index: int) -> str:
        """Returns the record's own key, or FILE/NUMBER."""
        if self._keys is not None:
            return self._keys[index]
        return f"{os.path.basename(self._paths[self._file[index]])}/{self._number[index]}"

    def balanced(self) -> str:
        """Returns the run_balance.sh directory that the files are in; "" for other files."""
        for directory in dict.fromkeys(map(os.path.dirname, self._paths)):
            try:
                read_manifest(directory, "pseudo_labeled")
            except InputError:
                continue
            return directory
        return ""

    def describe(self, index: int) -> str:
        """Returns file and record."""
        return (
            f"{printable(self._paths[self._file[index]])}: record {self._number[index]} (counting"
            " from 0)"
        )

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """Yields the bytes of the images."""
        return ordered_map(self._read, indices)

    def record(self, index: int) -> bytes:
        """Returns the whole record. Raises OSError."""
        return read_at(self._paths[self._file[index]], self._offset[index], self._size[index])

    def _read(self, index: int) -> bytes | str:
        try:
            return (
                tf.train.Example.FromString(self.record(index))
                .features.feature["image/encoded"]
                .bytes_list.value[0]
            )
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        except Exception:  # protobuf's DecodeError has no public home; or the feature is gone
            return "the file has changed"


def open_records(request: Request) -> RecordImages:
    """Lists TFRecords.

    Raises:
      InputError: there are none; a record is corrupt, has no image, or lacks a label or
        pseudo-label in range that it needs.
    """
    return RecordImages(request, find_files(request, TFRECORD_FILES, "TFRecord files"))


def _text(feature: tf.train.Feature) -> str:
    return (
        feature.bytes_list.value[0].decode("utf-8", "replace") if feature.bytes_list.value else ""
    )


def _features(record: bytes, request: Request) -> tuple[int, str, str, bool]:
    """Returns label, class name, key, and whether the key is a file name.

    The label is −1 for records without a true one.

    Raises:
      InputError: what the record lacks.
    """
    try:
        features = dict(tf.train.Example.FromString(record).features.feature)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise InputError("is not a tf.train.Example") from error
    if "image/encoded" not in features or not features["image/encoded"].bytes_list.value:
        raise InputError("has no image/encoded")
    texts = {
        name: _text(features[name])
        for name in ("image/key", "image/filename", "image/class/synset", "image/class/text")
        if name in features
    }
    key = texts.get("image/key") or texts.get("image/filename", "")
    is_filename = bool(key) and not texts.get("image/key")
    if request.role == "pseudo_labeled":
        _check_pseudo_label(features, request.num_classes)
    if request.role in ("unlabeled", "pseudo_labeled"):
        return -1, "", key, is_filename
    stored = (
        list(features["image/class/label"].int64_list.value)
        if "image/class/label" in features
        else []
    )
    if len(stored) != 1:
        raise InputError("has no image/class/label")
    label = stored[0] - request.label_offset
    if not 0 <= label < 2**31:
        raise InputError(
            f"has label {stored[0]}, the first class being"
            f" {request.label_offset} (config.data.label_offset)"
        )
    return (
        label,
        texts.get("image/class/synset") or texts.get("image/class/text", ""),
        key,
        is_filename,
    )


def _label_names(labels: np.ndarray, names: dict[int, str]) -> tuple[str, ...]:
    """Returns the records' names of the classes.

    Returns their numbers if a class has no name or two classes share one.
    """
    found = tuple(names.get(label, "") for label in range(int(labels.max()) + 1))
    numbers = tuple(str(label) for label in range(len(found)))
    return found if all(found) and len(set(found)) == len(found) else numbers


def _check_pseudo_label(features: dict[str, tf.train.Feature], num_classes: int) -> None:
    """Checks that a record has a distribution over `num_classes` classes.

    Raises:
      InputError: it has none, or a `label` that contradicts it.
    """
    probabilities, label = (
        _floats(features),
        list(features["label"].int64_list.value) if "label" in features else [],
    )
    if len(probabilities) != num_classes:
        raise InputError(
            f"has {len(probabilities)} probabilities; the data has {num_classes} classes"
        )
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        wrong = probabilities[~(probabilities >= 0) | np.isinf(probabilities)][0]
        raise InputError(f"has a probability of {wrong}; make the pseudo-labels again")
    if not np.isclose(probabilities.sum(), 1.0, atol=1e-2):
        raise InputError(
            f"has no pseudo-label (its probabilities sum to {probabilities.sum():.3f}); take it as"
            " --unlabeled"
        )
    if label and label[0] not in np.flatnonzero(probabilities == probabilities.max()):
        raise InputError(
            f"has label {label[0]}, which is not its most probable class; its labels may have an"
            " offset"
        )


def _floats(features: Mapping[str, tf.train.Feature]) -> np.ndarray:
    """Returns the pseudo-label's distribution, float32 [K]."""
    return np.asarray(
        features["probabilities"].float_list.value if "probabilities" in features else [],
        np.float32,
    )


def pseudo_labeled(images: RecordImages, usable: Iterable[int]) -> Iterator[bytes]:
    """Yields pseudo-labeled records of the release as ours: image, key, distribution.

    Args:
      images: opened in the role "pseudo_labeled".
      usable: indices of the records to yield.

    Raises:
      InputError: a record could be read before and now cannot.
    """
    for index in usable:
        try:
            features = tf.train.Example.FromString(images.record(index)).features.feature
            example = make_example(
                features["image/encoded"].bytes_list.value[0],
                images.key(index),
                probabilities=_floats(features),
            )
        except (
            Exception
        ) as error:  # protobuf's DecodeError has no public home; or the file is gone, or another
            raise InputError(
                f"{images.describe(index)} was readable before and is not now; run the command"
                " again"
            ) from error
        yield example
