"""Elements of the data set and their parts: cutting a batch, adding gradients up, and its rows.

A step may cut each replica's batch into parts (`accumulation`). Noise is a function of an example's
row in the global batch, so it depends neither on the replicas nor on the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def two_pairs(data: Any, form: str) -> Any:
    """Returns the data set's element ((a, b), (c, d)), which `form` describes.

    Raises:
      ValueError: `data` has another form.
    """
    two = lambda part: isinstance(part, (tuple, list)) and len(part) == 2  # noqa: E731
    if not (two(data) and all(two(part) for part in data)):
        found = tf.nest.map_structure(lambda v: f"{v.dtype.name} {v.shape}", data)
        raise ValueError(f"an element of the data set must be {form}; got {found}")
    return data


def in_one_dtype(*images: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the batches in one type: as they are if they have one, else float32.

    So none is cut to another's bytes.
    """
    return (
        images
        if len({batch.dtype for batch in images}) == 1
        else tuple(tf.cast(batch, tf.float32) for batch in images)
    )


def part_of(data: Any, number: int, parts: int) -> Any:
    """Returns part `number`, counted from 0, of `parts` equal ones of a batch.

    Args:
      data: tensors with the batch as first dimension, nested. A scalar is not cut.
      number: which part.
      parts: number of parts; divides each batch.

    Raises:
      ValueError: `parts` does not divide a batch. For a batch of unknown size, the error is an
        InvalidArgumentError when the step runs.
    """

    def part(tensor: tf.Tensor) -> tf.Tensor:
        if tensor.shape.rank == 0:
            return tensor
        examples, message = (
            tensor.shape[0],
            f"a batch does not divide into accumulation={parts} parts",
        )
        if examples is None:
            examples = tf.shape(tensor)[0]
            tf.debugging.assert_equal(examples % parts, 0, message)
        elif examples % parts:
            raise ValueError(f"{message}: it has {examples} examples")
        size = examples // parts
        return tensor[number * size : (number + 1) * size]

    return data if parts == 1 else tf.nest.map_structure(part, data)


def in_turn(function: Callable[[Any, int], tf.Tensor], data: Any, parts: int) -> tf.Tensor:
    """Returns what `function` gives for each part of a batch, concatenated.

    Only one part is in memory at a time.

    Args:
      function: (a part of `data`, its number from 0) -> a tensor (examples of the part, ...).
      data: see `part_of`.
      parts: number of parts.
    """
    results: list[tf.Tensor] = []
    for number in range(parts):
        with tf.control_dependencies(results):  # see `accumulated`
            piece = part_of(data, number, parts)
        results.append(function(piece, number))
    return results[0] if parts == 1 else tf.concat(results, 0)


def accumulated(
    gradients: Callable[[Any, int], list[tf.Tensor | None]], data: Any, parts: int
) -> list[tf.Tensor | None]:
    """Returns the sum of the gradients of equal parts of a batch, one part in memory at a time.

    Args:
      gradients: (a part of `data`, its number from 0) -> gradients.
      data: tensors with the batch as first dimension, nested; see `part_of`.
      parts: number of parts; divides each batch.

    Raises:
      ValueError: `parts` does not divide a batch. For a batch of unknown size, the error is an
        InvalidArgumentError when the step runs.
    """
    total: list[tf.Tensor | None] = []
    for number in range(parts):
        # The next part waits for the end of the last one. A graph would otherwise run all parts at
        # once. The parts are unrolled: under MirroredStrategy a synchronized BatchNorm may not
        # communicate from inside a loop. The parts are slices: of waiting parts of a tf.split,
        # TensorFlow's optimizer makes a cycle, and gives up.
        with tf.control_dependencies([g for g in total if g is not None]):
            piece = part_of(data, number, parts)
        of_part = gradients(piece, number)
        total = [a if b is None else a + b for a, b in zip(total, of_part)] if total else of_part
    return total


def global_rows(
    size: tf.Tensor, first: tf.Tensor | int, part: int = 0, parts: int = 1
) -> tf.Tensor:
    """Returns the rows (size,) of these examples in the global batch.

    They make noise independent of the number of replicas and parts.

    Args:
      size: examples in each part of a replica's batch.
      first: the row of the first replica's first example.
      part: which part of the batch it is.
      parts: parts of a replica's batch.
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return first + (replica * parts + part) * size + tf.range(size)


def all_reduced(values: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """Sums each value over the replicas. None stays None."""
    present = [v for v in values if v is not None]
    context = tf.distribute.get_replica_context()
    reduced = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if v is None else next(reduced) for v in values]
