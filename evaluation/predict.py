"""Passes images to a model: every example of every set exactly once, in one stream of batches.

This is the only way in which images reach a model here. Sets follow each other within a batch, so
75 sets of a few images keep a model as busy as one set of all these images. Only the very last
batch is filled up.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from data.pipeline import PARALLEL_CALLS, untuned
from data.preprocessing import Preprocessing, decode, eval_image
from data.verification import raise_refusal, unconverted
from evaluation.classifiers import Classifier
from evaluation.examples import Examples

Reduce = Callable[[np.ndarray], dict[str, np.ndarray]]


class Predictions(NamedTuple):
    """A model's answers on a set, in the set's order.

    Attributes:
      keys: str [N], unique.
      labels: int64 [N], 0-based.
      values: what was kept of the probabilities, arrays [N, …] by name.
      seconds: time of the pass, with the input pipeline, without building and tracing the model.
    """

    keys: np.ndarray
    labels: np.ndarray
    values: dict[str, np.ndarray]
    seconds: float


def everything(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Keeps `probabilities`, float32 [b, K], whole."""
    return {"probabilities": probabilities}


def answers(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Keeps `answers`, int32 [b], which is affordable for millions of images of 1,000 classes."""
    return {"answers": probabilities.argmax(axis=1).astype(np.int32)}


class Pixels(NamedTuple):
    """Function that makes pixels of an image file: `of` maps it to float32 `shape`, in 0–255."""

    of: Callable[[tf.Tensor], tf.Tensor]
    shape: tuple[int, int, int]


def input_pixels(preprocessing: Preprocessing) -> Pixels:
    """Returns the pixels that the network reads."""
    size = preprocessing.image_size
    return Pixels(lambda encoded: eval_image(encoded, preprocessing), (size, size, 3))


def image_batches(sets: Sequence[Examples], batch_size: int, pixels: Pixels) -> tf.data.Dataset:
    """Returns batches of one fixed shape over all `sets`.

    A batch has `image` float32 (b, *shape) in 0–255, `key` string (b,), `label` int64 (b,) and
    `set` int64 (b,). `set` counts from 0; it is −1 in the rows that fill up the last batch.
    """

    @unconverted
    def prepare(
        encoded: tf.Tensor, key: tf.Tensor, label: tf.Tensor, number: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return {"image": pixels.of(encoded), "key": key, "label": label, "set": number}

    def numbered(number: int, examples: Examples) -> tf.data.Dataset:
        exactly = examples.stream().apply(tf.data.experimental.assert_cardinality(examples.count))
        return exactly.map(
            lambda encoded, key, label: (encoded, key, label, tf.constant(number, tf.int64))
        )

    streams = [numbered(number, examples) for number, examples in enumerate(sets)]
    prepared = functools.reduce(tf.data.Dataset.concatenate, streams).map(
        prepare, num_parallel_calls=PARALLEL_CALLS, deterministic=True
    )
    padding = -sum(examples.count for examples in sets) % batch_size
    if padding:
        blank = {
            "image": tf.zeros(pixels.shape),
            "key": tf.constant(""),
            "label": tf.zeros([], tf.int64),
            "set": tf.constant(-1, tf.int64),
        }
        prepared = prepared.concatenate(tf.data.Dataset.from_tensors(blank).repeat(padding))
    return untuned(prepared.batch(batch_size, drop_remainder=True).prefetch(2))


def read(batches: tf.data.Dataset, sets: Sequence[Examples]) -> Iterator[dict[str, tf.Tensor]]:
    """Yields the batches of `sets`.

    Raises:
      InputError: a set, which the error names, is damaged or not of the announced size.
    """
    reached = 0
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise _blame(sets[reached:], error) from error
        reached = max(reached, int(tf.reduce_max(batch["set"])))
        yield batch


def common_shape(examples: Examples) -> tuple[int, int, int] | None:
    """Returns the shape (H, W, 3) of all images; None where they have several.

    Raises:
      InputError: there is no image, or one is damaged.
    """
    found: set[tuple[int, int, int]] = set()
    try:
        for shape in examples.stream().map(lambda encoded, key, label: tf.shape(decode(encoded))):
            height, width, channels = shape.numpy().tolist()
            found.add((height, width, channels))
            if len(found) > 1:
                return None
        (only,) = found
        return only
    except (ValueError, tf.errors.OpError) as error:
        raise _blame([examples], error) from error


def _blame(sets: Sequence[Examples], error: Exception) -> InputError:
    """Returns the error of the set that made the stream over all `sets` fail.

    Batches are made ahead, so the sets are read again to find it.
    """
    raise_refusal(error)
    for examples in sets:
        try:
            found = sum(
                1
                for _ in examples.stream().map(
                    lambda encoded, key, label: tf.shape(decode(encoded))
                )
            )
        except tf.errors.OpError as own:
            raise_refusal(own)
            reason = " ".join(str(own.message).split())[:200]
            return InputError(
                f"{examples.origin} holds a damaged record or image ({reason}); make the data again"
            )
        if found != examples.count:
            return InputError(
                f"{examples.origin} holds {found} examples, not the {examples.count} announced;"
                " make the data again"
            )
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{sets[0].origin} cannot be used ({reason})")


@dataclasses.dataclass
class _Collected:
    keys: list[np.ndarray] = dataclasses.field(default_factory=list)
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)
    values: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)


def predict(
    classifier: Classifier,
    sets: Sequence[Examples],
    batch_size: int,
    reduce: Reduce = everything,
    preprocessing: Preprocessing | None = None,
) -> Iterator[tuple[Examples, Predictions]]:
    """Yields each set with the classifier's answers, in order, as soon as it is done.

    Args:
      classifier: the model.
      sets: sets to answer for, no two of the same name.
      batch_size: images in a forward pass.
      reduce: what to keep of a batch's probabilities, float32 [b, K].
      preprocessing: used instead of the classifier's own.

    Raises:
      InputError: an empty set, damaged records or images, a label out of range, a key that comes
        twice, another number of examples than the set announces, or answers that are not finite.
    """
    for examples in sets:
        require_some(examples)
    batches = image_batches(
        sets, batch_size, input_pixels(preprocessing or classifier.preprocessing)
    )

    def answer(logits: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], np.ndarray]:
        function = tf.function(lambda images: tf.nn.softmax(tf.cast(logits(images), tf.float32)))
        function = function.get_concrete_function(
            batches.element_spec["image"]
        )  # traced before the clock starts
        return lambda images: function(images).numpy()

    probabilities_of = classifier.everywhere(answer)
    current, collected = 0, _Collected()
    started = time.perf_counter()
    for batch, probabilities in probabilities_of.map(
        lambda batch: (batch["image"],), read(batches, sets)
    ):  # (b, K)
        number = batch["set"].numpy()  # (b,)
        keys, labels = batch["key"].numpy(), batch["label"].numpy()
        for i in np.unique(number[number >= 0]):
            while current < i:
                yield (
                    sets[current],
                    _finish(sets[current], collected, time.perf_counter() - started),
                )
                current, collected, started = current + 1, _Collected(), time.perf_counter()
            rows = number == i
            require_classes(classifier, probabilities.shape[1], sets[i])
            _require_finite(probabilities[rows], keys[rows], classifier)
            collected.keys.append(keys[rows])
            collected.labels.append(labels[rows])
            collected.values.append(reduce(probabilities[rows]))
    while current < len(sets):
        yield sets[current], _finish(sets[current], collected, time.perf_counter() - started)
        current, collected, started = current + 1, _Collected(), time.perf_counter()


def require_some(examples: Examples) -> None:
    """Raises InputError for an empty set."""
    if not examples.count:
        raise InputError(f"{examples.origin} holds no examples; there is nothing to evaluate")


def require_classes(classifier: Classifier, count: int, examples: Examples) -> None:
    """Raises InputError where the classifier answers over other classes than the set's.

    `count` is the number of classes that it answers over.
    """
    if count != examples.num_classes:
        raise InputError(
            f"{classifier.name} has {count} classes, but {examples.origin} has "
            f"{examples.num_classes}"
        )


def require_labels(examples: Examples, keys: np.ndarray, labels: np.ndarray) -> None:
    """Raises InputError where one of `labels` is not a class.

    `keys` are the keys of the examples, as bytes or str.
    """
    wrong = (labels < 0) | (labels >= examples.num_classes)
    if wrong.any():
        key, label = keys[wrong][0], labels[wrong][0]
        name = key.decode("utf-8") if isinstance(key, bytes) else key
        raise InputError(
            f"{examples.origin}: {name or 'an image'} has no label or the label {label}, outside"
            f" 0..{examples.num_classes - 1}; make the data again"
        )


def _require_finite(probabilities: np.ndarray, keys: np.ndarray, classifier: Classifier) -> None:
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        raise InputError(
            f"the answer of {classifier.name} for {keys[~finite][0].decode()!r} is not finite;"
            " train it again"
        )


def check_keys(examples: Examples, keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the keys (bytes [N]) as unicode strings, once the examples are checked.

    Raises:
      InputError: an example is missing, comes twice, or has a label that is not a class.
    """
    origin = examples.origin
    if len(keys) != examples.count:
        raise InputError(
            f"{origin} holds {len(keys)} examples, not the {examples.count} announced; make the"
            " data again"
        )
    # Shards made elsewhere have no keys; their examples get their place as key.
    decoded = (
        np.array([key.decode("utf-8") for key in keys])
        if any(keys)
        else np.array([f"#{i}" for i in range(len(keys))])
    )
    unique, counts = np.unique(decoded, return_counts=True)
    if len(unique) != len(decoded):
        raise InputError(
            f"{origin} holds the key {str(unique[counts > 1][0])!r} {counts.max()} times; each"
            " example must be evaluated once"
        )
    require_labels(examples, decoded, labels)
    return decoded


def _finish(examples: Examples, collected: _Collected, seconds: float) -> Predictions:
    keys = np.concatenate(collected.keys) if collected.keys else np.zeros([0], object)
    labels = np.concatenate(collected.labels) if collected.labels else np.zeros([0], np.int64)
    keys = check_keys(examples, keys, labels)
    values = {
        name: np.concatenate([part[name] for part in collected.values])
        for name in collected.values[0]
    }
    return Predictions(keys, labels, values, seconds)
