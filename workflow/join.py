"""Images and their predictions, brought together by key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from cli.errors import InputError
from data.records import Manifest
from data.verification import read_records


def read_images(images: Manifest, shard: int) -> Iterator[tuple[str, bytes]]:
    """Yields (key, image file) of each record of a shard. Raises InputError, naming file and record."""
    path = images.paths[shard]
    for position, serialized in enumerate(read_records(images, shard)):
        try:
            features = tf.train.Example.FromString(serialized).features.feature
            yield features["image/key"].bytes_list.value[0].decode("utf-8"), features["image/encoded"].bytes_list.value[0]
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{path}: record {position} (counting from 0) lacks image/key or image/encoded; make the data again"
            ) from error


def join_by_key(
    images: Iterable[tuple[str, bytes]], predictions: Iterable[tuple[str, Any]], image_file: str, prediction_file: str
) -> Iterator[tuple[str, bytes, Any]]:
    """Joins the images of a shard with its predictions, by key.

    Predictions are read as far as the next image needs. So where both have the same order, as our own stages write them, nothing waits;
    otherwise at most one shard of them does.

    Args:
      images: (key, image file).
      predictions: (key, prediction).
      image_file: for errors.
      prediction_file: for errors.

    Yields:
      (key, image file, prediction), in the order of the images.

    Raises:
      InputError: a key that is doubled, or that only one side has.
    """
    waiting: dict[str, Any] = {}
    seen: set[str] = set()
    source = iter(predictions)
    again = "make data and predictions again"

    def take() -> str | None:
        """Reads one more prediction; None where there are no more."""
        for key, prediction in source:
            if key in waiting or key in seen:
                raise InputError(f"{prediction_file}: image key {key} is doubled; {again}")
            waiting[key] = prediction
            return key
        return None

    for key, encoded in images:
        if key in seen:
            raise InputError(f"{image_file}: image key {key} is doubled; {again}")
        while key not in waiting:
            if take() is None:
                raise InputError(f"{prediction_file}: no prediction for image {key} of {image_file}; {again}")
        seen.add(key)
        yield key, encoded, waiting.pop(key)
    take()
    if waiting:
        raise InputError(f"{prediction_file}: prediction for {next(iter(waiting))}, which is not in {image_file}; {again}")
