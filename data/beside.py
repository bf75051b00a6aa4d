"""Labels beside images: pseudo-labels name records of image shards instead of copying the images.

A label shard has one record for each image that is used: its position in the image shard, its
copies and its distribution (`data.protos.make_label`). The records are in the images' order.
Joined, the two make the examples of a shard that holds the images themselves: as many, in the same
order, with the same features. Of an image shard, only the records that are used are read whole.

A label shard's index has an entry for each example: the entry of a label comes once for each copy.
So a host finds its own examples as it does in shards that hold the images themselves.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from data import index
from data.manifest import Beside
from data.records import HEADER_BYTES, RECORD_OVERHEAD
from data.verification import refusing, unconverted, verified_paths

_LABEL = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("position", "copies")}


def examples(beside: Beside, paths: tf.Tensor, shards: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads shards of labels with their images, in a graph.

    Args:
      beside: the images.
      paths: paths of the label shards, string (s,).
      shards: numbers of the label shards, int64 (s,); each has a label.

    Returns:
      The serialized examples, each once, string (m,); and which of them comes at each place, int64
      (n,): copies follow each other.
    """
    images = verified_paths(beside.images, shards)
    sizes, numbers = (
        tf.gather(tf.constant(counts, tf.int64), shards)
        for counts in (beside.images.records, beside.labels)
    )
    labels = _whole(paths, tf.reduce_sum(numbers))  # (m,)
    fewer = ["fewer records than the manifest says in one of", paths]
    found = tf.shape(labels, tf.int64)[0] == tf.reduce_sum(numbers)
    with tf.control_dependencies([tf.debugging.Assert(found, fewer, summarize=-1)]):
        parsed = tf.io.parse_example(labels, _LABEL)
    if beside.images.trusted:
        # A remote input pipeline cannot call Python.
        picked = _filtered(images, sizes, numbers, parsed["position"])
    else:
        # Stateless, or TensorFlow would not read ahead where operations must be deterministic.
        picked = tf.numpy_function(
            refusing(pick_all), [images, numbers, parsed["position"]], tf.string, stateful=False
        )
        picked = tf.ensure_shape(picked, [None])
    # Protocol Buffers merge messages that follow each other.
    joined = tf.strings.join([picked, labels])
    return joined, tf.repeat(tf.range(tf.size(labels, tf.int64)), parsed["copies"])


def own_examples(
    beside: Beside,
    shards: tf.Tensor,
    places: tf.Tensor,
    paths: tf.Tensor,
    entries: tf.Tensor,
    at_once: int,
) -> tf.data.Dataset:
    """Reads single examples of a window's shards, and nothing else but the shards' indexes.

    Args:
      beside: the images.
      shards: numbers of the window's shards, int64 (s,).
      places: place in `shards` of each example's shard, int64 (n,), ascending.
      paths: path of each example's label shard, string (n,).
      entries: entry of each example in the index of its label shard, int64 (n, 2), in the order of
        the file.
      at_once: number of records that are read at the same time.

    Returns:
      A data set of one element, the serialized examples, string (n,); none if there are no
      examples.

    Raises:
      tf.errors.OpError: while it is iterated over; an index or a record is damaged, or belongs to
        another shard.
    """
    other = tf.reduce_any(entries[1:] != entries[:-1], axis=1) | (places[1:] != places[:-1])
    is_first = tf.concat([tf.ones([1], tf.bool), other], 0)[: tf.shape(places)[0]]  # of its copies
    paths, entries, places = (
        tf.boolean_mask(values, is_first) for values in (paths, entries, places)
    )
    files = tuple(
        tf.gather(of, shards)
        for of in (
            tf.constant(beside.images.paths),
            index.digests(beside.images, range(len(beside.images.files))),
            tf.constant(beside.images.records, tf.int64),
        )
    )

    @unconverted
    def join(labels: tf.Tensor) -> tf.Tensor:
        position = tf.io.parse_example(labels, _LABEL)["position"]
        table = index.read_all(files, at_once)
        inside = position < tf.gather(files[2], places)
        beyond = ["a label is of an image that is not there in one of", files[0]]
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(inside), beyond, -1)]):
            rows = tf.gather(tf.cumsum(files[2], exclusive=True), places) + position
        images = index.read_records(
            tf.gather(files[0], places), tf.gather(table, rows), at_once
        ).batch(tf.size(rows, tf.int64))
        joined = tf.strings.join([images.get_single_element(), labels])
        return tf.gather(joined, tf.cumsum(tf.cast(is_first, tf.int64)) - 1)

    labels = index.read_records(paths, entries, at_once)
    return labels.batch(tf.maximum(tf.size(places, tf.int64), 1)).map(join)


def _whole(paths: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns all records of files, string (size,)."""
    return tf.data.TFRecordDataset(paths, buffer_size=1 << 20).batch(size).get_single_element()


def _filtered(
    paths: tf.Tensor, sizes: tf.Tensor, numbers: tf.Tensor, positions: tf.Tensor
) -> tf.Tensor:
    """Does what `pick_all` does without Python; `sizes` is each file's number of records."""
    inside = tf.reduce_all(positions < tf.repeat(sizes, numbers))
    beyond = ["a label is of an image that is not there in one of", paths]
    with tf.control_dependencies([tf.debugging.Assert(inside, beyond, summarize=-1)]):
        rows = tf.repeat(tf.cumsum(sizes, exclusive=True), numbers) + positions
    wanted = tf.tensor_scatter_nd_update(
        tf.zeros([tf.reduce_sum(sizes)], tf.bool), rows[:, tf.newaxis], tf.ones_like(rows, tf.bool)
    )
    images = tf.data.TFRecordDataset(paths, buffer_size=1 << 20)
    both = tf.data.Dataset.zip((tf.data.Dataset.from_tensor_slices(wanted), images))
    kept = both.filter(unconverted(lambda keep, _: keep)).map(unconverted(lambda _, image: image))
    return kept.batch(tf.size(rows, tf.int64)).get_single_element()


def pick_all(paths: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Reads some records of each of several verified files, see `pick`.

    Args:
      paths: paths of the files, bytes [s].
      numbers: how many records of each file, int64 [s].
      positions: their numbers in their file, int64 [m].
    """
    parts = np.split(positions, np.cumsum(numbers)[:-1])
    return np.concatenate([pick(path, part) for path, part in zip(paths, parts)])


def pick(path: bytes, positions: np.ndarray) -> np.ndarray:
    """Reads some records of a verified TFRecord file.

    Args:
      path: path of the file.
      positions: numbers of the records, ascending, int64 [m].

    Returns:
      The records' data, object [m] of bytes.

    Raises:
      InputError: the file has fewer records.
    """
    picked = np.empty(len(positions), object)
    number = place = 0  # number of a record, and the byte where it begins
    file = os.open(path, os.O_RDONLY)
    try:
        for row, position in enumerate(positions.tolist()):
            while True:
                header = os.pread(file, HEADER_BYTES, place)
                if len(header) < HEADER_BYTES:
                    raise InputError(
                        f"{os.fsdecode(path)} has no record {position} (counting from 0); run"
                        " run_balance.sh again"
                    )
                length = int.from_bytes(header[:8], "little")
                if number == position:
                    break
                number, place = number + 1, place + length + RECORD_OVERHEAD
            picked[row] = os.pread(file, length, place + HEADER_BYTES)
            number, place = number + 1, place + length + RECORD_OVERHEAD
    finally:
        os.close(file)
    return picked
