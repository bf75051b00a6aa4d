"""Labels beside images: pseudo-labels name records of image shards instead of copying the images.

A label shard has one record for each image that is used: its position in the image shard, its
copies and its distribution (`data.protos.make_label`). The records are in the images' order.
Joined, the two make the examples of a shard that holds the images themselves: as many, in the same
order, with the same features. Of an image shard, only the records that are used are read whole.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from data.manifest import Beside
from data.records import HEADER_BYTES, RECORD_OVERHEAD
from data.verification import refusing, unconverted, verified_paths

_LABEL = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("position", "copies")}


def examples(beside: Beside, paths: tf.Tensor, shards: tf.Tensor) -> tf.data.Dataset:
    """Reads shards of labels with their images, in a graph.

    Args:
      beside: the images.
      paths: paths of the label shards, string (s,).
      shards: numbers of the label shards, int64 (s,); each has a label.

    Returns:
      Dataset of serialized examples, string scalars; copies follow each other.
    """
    images, trusted = verified_paths(beside.images, shards), beside.images.trusted
    sizes, numbers = (
        tf.gather(tf.constant(counts, tf.int64), shards)
        for counts in (beside.images.records, beside.labels)
    )

    @unconverted
    def join(
        image_path: tf.Tensor, num_images: tf.Tensor, label_path: tf.Tensor, num_labels: tf.Tensor
    ) -> tf.data.Dataset:
        labels = _whole(label_path, num_labels)  # (m,)
        parsed = tf.io.parse_example(labels, _LABEL)
        if trusted:
            # A remote input pipeline cannot call Python.
            picked = tf.gather(_whole(image_path, num_images), parsed["position"])
        else:
            # Stateless, or TensorFlow would not read ahead where operations must be deterministic.
            picked = tf.numpy_function(
                refusing(pick), [image_path, parsed["position"]], tf.string, stateful=False
            )
            picked = tf.ensure_shape(picked, [None])
        # Protocol Buffers merge messages that follow each other.
        return tf.data.Dataset.from_tensor_slices(
            tf.repeat(tf.strings.join([picked, labels]), parsed["copies"])
        )

    return tf.data.Dataset.from_tensor_slices((images, sizes, paths, numbers)).flat_map(join)


def _whole(path: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns all records of a file, string (size,)."""
    return tf.data.TFRecordDataset(path, buffer_size=1 << 20).batch(size).get_single_element()


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
