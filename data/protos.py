"""The `tf.train.Example`s of the project: labeled images, and a model's predictions for them.

An image's features are those of ImageNet's usual shards and of Noisy Student's pseudo-labeled
ones, so both kinds of shards are read as they are:

    image/encoded        bytes    the image file
    image/key            bytes    stable name of the image (ours); predictions join images by it,
                                  never by position
    image/class/label    int64    the stored label = class + `label_offset` (1 in ImageNet's shards)
    probabilities        float[K] a pseudo-label's distribution
    label                int64    its most probable class, from 0
    prob                 float    and that class's probability
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from cli.errors import InputError


def _bytes(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _floats(values: Iterable[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _serialize(features: dict[str, tf.train.Feature]) -> bytes:
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # A map has no order, and the same images must give the same bytes.
    return example.SerializeToString(deterministic=True)


def make_example(
    encoded: bytes, key: str, label: int | None = None, probabilities: np.ndarray | None = None
) -> bytes:
    """Returns one image as a serialized `tf.train.Example`.

    Args:
      encoded: the image file.
      key: stable name of the image.
      label: the label to store, `label_offset` included; None if unknown.
      probabilities: a pseudo-label's distribution, float [K]; its top class and probability are
        stored beside it.
    """
    features = {"image/encoded": _bytes(encoded), "image/key": _bytes(key.encode("utf-8"))}
    if label is not None:
        features["image/class/label"] = _ints([int(label)])
    if probabilities is not None:
        features.update(_pseudo_label(probabilities))
    return _serialize(features)


def make_label(position: int, copies: int, probabilities: np.ndarray) -> bytes:
    """Returns a pseudo-label that stands beside its image, as a serialized `tf.train.Example`.

    Put after the image's own record, it makes the record of `make_example` with `probabilities`,
    and two more features: Protocol Buffers merge messages that follow each other.

    Args:
      position: position of the image's record in its shard, from 0.
      copies: how often the image is used, at least 1.
      probabilities: the distribution, float [K].
    """
    features = _pseudo_label(probabilities)
    return _serialize({**features, "position": _ints([position]), "copies": _ints([copies])})


def _pseudo_label(probabilities: np.ndarray) -> dict[str, tf.train.Feature]:
    values = _distribution(probabilities)  # (K,)
    top = int(np.argmax(values))
    return {"probabilities": _floats(values), "label": _ints([top]), "prob": _floats([values[top]])}


def parse_example(serialized: tf.Tensor, label_offset: int = 0) -> dict[str, tf.Tensor]:
    """Parses one record, in a graph or eagerly.

    Args:
      serialized: string scalar.
      label_offset: the manifest's offset, subtracted from `image/class/label` (a pseudo-label has
        none).

    Returns:
      `image/encoded` and `image/key` (string scalars; "" if there is no key); `label` (int64
      scalar: the pseudo-label if there is one, else the class counted from 0, −1 if unknown);
      `probabilities` (float32, [K], or [0] if there are none).
    """
    parsed = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/key": tf.io.FixedLenFeature([], tf.string, ""),
            "image/class/label": tf.io.VarLenFeature(tf.int64),
            "label": tf.io.VarLenFeature(tf.int64),
            "probabilities": tf.io.VarLenFeature(tf.float32),
        },
    )
    unknown = tf.constant([-1], tf.int64)
    labels = tf.concat(
        [parsed["label"].values, parsed["image/class/label"].values - label_offset, unknown], 0
    )
    return {
        "image/encoded": parsed["image/encoded"],
        "image/key": parsed["image/key"],
        "label": labels[0],
        "probabilities": parsed["probabilities"].values,
    }


def _distribution(probabilities: np.ndarray) -> np.ndarray:
    """Returns `probabilities` as float32 [K].

    Raises:
      ValueError: they are not a distribution. That is a bug or a broken model, not bad input.
    """
    values = np.asarray(probabilities, np.float32)
    if (
        values.ndim != 1
        or not np.all(np.isfinite(values))
        or np.any(values < 0)
        or abs(float(values.sum()) - 1.0) > 1e-2
    ):
        raise ValueError(
            f"the values are not a distribution over classes: shape {values.shape}, sum "
            f"{values.sum():.4f}"
        )
    return values


def make_prediction(key: str, probabilities: np.ndarray, top_k: int) -> bytes:
    """Returns a model's prediction for one image, as a serialized `tf.train.Example`.

    Args:
      key: key of the image.
      probabilities: float [K], summing to 1.
      top_k: how many classes to store, the most probable ones. The reader spreads the rest of the
        probability evenly over the other classes. 0 (or K and more) stores all as float16, 2·K
        bytes.
    """
    values = _distribution(probabilities)  # (K,)
    features = {"image/key": _bytes(key.encode("utf-8"))}
    if top_k <= 0 or top_k >= len(values):
        features["probabilities_float16"] = _bytes(values.astype("<f2").tobytes())
    else:
        classes = np.argsort(-values, kind="stable")[:top_k]  # ties go to the lower class
        features["top_k/classes"] = _ints(classes)
        features["top_k/probabilities"] = _floats(values[classes])
    return _serialize(features)


def read_prediction(serialized: bytes, num_classes: int) -> tuple[str, np.ndarray]:
    """Reads what `make_prediction` wrote, in either form.

    Returns:
      The image's key, and its distribution, float32 [num_classes], normalized to sum 1.

    Raises:
      InputError: the record is not a prediction, or has other classes.
    """
    try:
        example = tf.train.Example.FromString(serialized)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise InputError(
            "a record is not a tf.train.Example; make the predictions again"
        ) from error
    features = example.features.feature
    if "image/key" not in features or not features["image/key"].bytes_list.value:
        raise InputError("a record has no image/key; make the predictions again")
    key = features["image/key"].bytes_list.value[0].decode("utf-8")
    if "probabilities_float16" in features:
        stored = features["probabilities_float16"].bytes_list.value
        values = np.frombuffer(stored[0] if stored else b"", "<f2").astype(np.float32)  # (K,)
        if len(values) != num_classes:
            raise InputError(
                f"the prediction for {key} is over {len(values)} classes, not {num_classes}; make"
                " the predictions again"
            )
    elif "top_k/classes" in features:
        classes = np.asarray(features["top_k/classes"].int64_list.value, np.int64)  # (k,)
        top = np.asarray(features["top_k/probabilities"].float_list.value, np.float32)  # (k,)
        if (
            len(classes) != len(top)
            or len(classes) >= num_classes
            or np.any(classes < 0)
            or np.any(classes >= num_classes)
        ):
            raise InputError(
                f"the prediction for {key} does not fit {num_classes} classes; make the predictions"
                " again"
            )
        remainder = max(0.0, 1.0 - float(top.sum(dtype=np.float64)))
        values = np.full(
            [num_classes], remainder / (num_classes - len(classes)), np.float32
        )  # (K,)
        values[classes] = top
    else:
        raise InputError(f"the record of {key} is not a prediction; make the predictions again")
    total = float(values.sum(dtype=np.float64))
    if not np.isfinite(total) or total <= 0:
        raise InputError(
            f"the prediction for {key} is not a distribution (sum {total}); make the predictions "
            "again"
        )
    return key, values / np.float32(total)
