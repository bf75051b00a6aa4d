"""Reads prediction records in batches: each image's most probable class and its probability.

`data.protos.read_prediction` says what a record means. This module reads thousands at once, by
TensorFlow's parser, for the pass that needs only the most probable class. Where a record is wrong,
the code that reads records singly finds and names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from data.pipeline import untuned
from data.protos import read_prediction
from data.records import Manifest
from data.verification import read_records, verify_shard

BATCH = 4096

_FEATURES = {
    "image/key": tf.io.FixedLenFeature([], tf.string),
    "probabilities_float16": tf.io.FixedLenFeature([], tf.string, ""),
    "top_k/classes": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64),
    "top_k/probabilities": tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64),
}


class Top(NamedTuple):
    """A batch of predictions.

    Attributes:
      keys: keys of the images, UTF-8.
      classes: int32 [b], the most probable class.
      confidence: float32 [b], its probability in the distribution that sums to 1.
      stored: float16 or float32 [b], the same probability as the record holds it, rounded to that
        type.
    """

    keys: list[bytes]
    classes: np.ndarray
    confidence: np.ndarray
    stored: np.ndarray

    def higher(self, threshold: float) -> np.ndarray:
        """Tells whether the teacher's confidence was surely higher than the threshold, bool [b].

        The threshold is rounded as the record was. So an image at the threshold never passes. If an
        image is higher by less than the rounding step, it may not pass either. In float16 the step
        is 0.00025 up to 0.5, and 0.0005 above.
        """
        return (self.confidence > np.float32(threshold)) & (
            self.stored > self.stored.dtype.type(threshold)
        )


def read_predictions(predictions: Manifest, shard: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, probabilities float32 [K]) of each record; errors name file and record."""
    path = predictions.directory / predictions.files[shard]
    for position, serialized in enumerate(read_records(predictions, shard)):
        try:
            yield read_prediction(serialized, predictions.num_classes)
        except InputError as error:
            raise InputError(f"{path}, record {position} (counting from 0): {error}") from error


def read_tops(predictions: Manifest, shard: int) -> Iterator[Top]:
    """Yields the shard's predictions in batches, in order. InputError names file and record."""
    path, count = verify_shard(predictions, shard), 0
    try:
        for parsed in parsed_batches(path).as_numpy_iterator():
            top = _top(parsed, predictions.num_classes)
            if top is None or count + len(top.keys) > predictions.records[shard]:
                break
            count += len(top.keys)
            yield top
    except (tf.errors.OpError, UnicodeDecodeError):
        # TensorFlow quotes the record in its message. This fails where the record is not UTF-8.
        pass
    if count != predictions.records[shard]:
        for _ in read_predictions(predictions, shard):
            pass
        raise AssertionError(
            f"{path}: {count} of {predictions.records[shard]} predictions read in batches, all of"
            " them singly"
        )


def parsed_batches(path: str) -> tf.data.Dataset:
    """Returns the records of a shard, read and parsed, in batches."""
    batches = tf.data.TFRecordDataset(path, buffer_size=1 << 20).batch(BATCH)
    return untuned(batches.map(_parse, num_parallel_calls=1).prefetch(2))


def _parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    parsed = tf.io.parse_example(serialized, _FEATURES)
    classes, probabilities = parsed["top_k/classes"], parsed["top_k/probabilities"]
    return {
        "key": parsed["image/key"],
        "float16": parsed["probabilities_float16"],
        "float16_bytes": tf.reduce_sum(tf.strings.length(parsed["probabilities_float16"])),
        "classes": classes.values,
        "classes_splits": classes.row_splits,
        "probabilities": probabilities.values,
        "probabilities_splits": probabilities.row_splits,
    }


def _top(parsed: dict[str, np.ndarray], num_classes: int) -> Top | None:
    """Returns what `read_prediction` and an argmax would find for each record.

    None where a record is not as it should be.
    """
    keys = parsed["key"].tolist()
    top_k = len(parsed["classes"]) // len(keys)
    if top_k == 0:
        return _top_of_float16(keys, parsed["float16"], num_classes)
    even = np.arange(len(keys) + 1) * top_k
    if top_k >= num_classes or not all(
        np.array_equal(parsed[f"{name}_splits"], even) for name in ("classes", "probabilities")
    ):
        return None
    classes = parsed["classes"].reshape(-1, top_k)
    probabilities = parsed["probabilities"].reshape(-1, top_k)  # (b, k)
    total = probabilities.sum(axis=1, dtype=np.float64)  # (b,)
    others = (np.maximum(0.0, 1.0 - total) / (num_classes - top_k)).astype(np.float32)
    total += others.astype(np.float64) * (num_classes - top_k)
    valid = (
        (classes >= 0).all()
        and (classes < num_classes).all()
        and np.isfinite(total).all()
        and (total > 0).all()
    )
    if not valid or parsed["float16_bytes"] > 0:
        return None
    best = np.arange(len(keys)), np.argmax(probabilities, axis=1)
    top = probabilities[best]
    return Top(keys, classes[best].astype(np.int32), top / total.astype(np.float32), top)


def _top_of_float16(keys: list[bytes], stored: np.ndarray, num_classes: int) -> Top | None:
    if any(len(row) != 2 * num_classes for row in stored):
        return None
    rounded = np.frombuffer(b"".join(stored), "<f2").reshape(-1, num_classes)  # (b, K)
    values = rounded.astype(np.float32)
    total = values.sum(axis=1, dtype=np.float64)
    if not (np.isfinite(total).all() and (total > 0).all()):
        return None
    classes = np.argmax(values, axis=1)
    best = np.arange(len(keys)), classes
    return Top(
        keys, classes.astype(np.int32), values[best] / total.astype(np.float32), rounded[best]
    )
