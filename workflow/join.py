"""Joins images and their predictions by key, and reads the copies of a balanced set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import read_json
from data.records import MANIFEST, Manifest
from data.verification import read_records


def read_images(images: Manifest, shard: int) -> Iterator[tuple[str, bytes]]:
    """Yields (key, image file) of each record. Raises InputError, naming file and record."""
    path = images.paths[shard]
    for position, serialized in enumerate(read_records(images, shard)):
        try:
            features = tf.train.Example.FromString(serialized).features.feature
            yield (
                features["image/key"].bytes_list.value[0].decode("utf-8"),
                features["image/encoded"].bytes_list.value[0],
            )
        except (IndexError, ValueError) as error:
            raise InputError(
                f"{path}: record {position} (counting from 0) lacks image/key or image/encoded;"
                " make the data again"
            ) from error


def join_by_key(
    images: Iterable[tuple[str, Any]],
    predictions: Iterable[tuple[str, Any]],
    image_file: str,
    prediction_file: str,
) -> Iterator[tuple[str, Any, Any]]:
    """Joins the images of a shard with its predictions, by key.

    Predictions are read as far as the next image needs. Our own stages write both in the same
    order, so nothing waits. In any other order, at most one shard of predictions waits in memory.

    Args:
      images: (key, image file or whatever stands for it).
      predictions: (key, prediction).
      image_file: file of the images, for errors.
      prediction_file: file of the predictions, for errors.

    Yields:
      (key, image file, prediction), in the order of the images.

    Raises:
      InputError: a key is doubled, or only one side has it.
    """
    waiting: dict[str, Any] = {}
    seen: set[str] = set()
    source = iter(predictions)
    again = "make data and predictions again"

    def take() -> str | None:
        """Reads one more prediction; None where there are no more."""
        for key, prediction in source:
            if key in waiting or key in seen:
                raise InputError(f"{prediction_file}: image key {key} appears twice; {again}")
            waiting[key] = prediction
            return key
        return None

    for key, encoded in images:
        if key in seen:
            raise InputError(f"{image_file}: image key {key} appears twice; {again}")
        while key not in waiting:
            if take() is None:
                raise InputError(
                    f"{prediction_file}: no prediction for image {key} of {image_file}; {again}"
                )
        seen.add(key)
        yield key, encoded, waiting.pop(key)
    take()
    if waiting:
        raise InputError(
            f"{prediction_file}: there is a prediction for {next(iter(waiting))}, but {image_file} "
            f"has no such image; {again}"
        )


class Copied(NamedTuple):
    """An image of a balanced set.

    Attributes:
      encoded: the image file.
      label: class of its pseudo-label, from 0.
      copies: how often the set has it, at least 1.
      position: position of its record in a shard of images that stand beside their labels; −1
        otherwise.
    """

    encoded: bytes
    label: int
    copies: int
    position: int = -1


def read_copied(selection: Manifest, shard: int) -> Iterator[tuple[str, Copied]]:
    """Yields (key, image) for each different image of a balanced shard, in order.

    Holds one image at a time, however many copies it has.

    Raises:
      InputError: the shard cannot be read, or copies of an image do not stand side by side.
    """
    path, seen = selection.paths[shard], set[str]()
    current: tuple[str, Copied] | None = None
    for position, serialized in enumerate(read_records(selection, shard)):
        features = tf.train.Example.FromString(serialized).features.feature
        try:
            key = features["image/key"].bytes_list.value[0].decode("utf-8")
            image = Copied(
                features["image/encoded"].bytes_list.value[0],
                int(features["label"].int64_list.value[0]),
                1,
            )
            if selection.beside:
                image = image._replace(position=int(features["position"].int64_list.value[0]))
        except (IndexError, ValueError) as error:
            record = f"{path}: record {position} (counting from 0)"
            raise InputError(
                f"{record} lacks image/key, image/encoded or label; make the balanced set again"
            ) from error
        if current and key == current[0]:
            if image.encoded != current[1].encoded:
                raise InputError(
                    f"{path}: two images have the key {key}; make the balanced set again"
                )
            current = key, current[1]._replace(copies=current[1].copies + 1)
            continue
        if current:
            yield current
        if key in seen:
            raise InputError(
                f"{path}: copies of image {key} do not stand side by side; make the balanced set"
                " again"
            )
        seen.add(key)
        current = key, image
    if current:
        yield current


def image_shards(selection: Manifest) -> Manifest:
    """Returns the manifest of the shards that hold the images of a balanced set.

    These are its own shards, or the shards beside it.
    """
    return selection.beside.images if selection.beside else selection


def first_copies(selection: Manifest, shard: int) -> np.ndarray:
    """Tells which records of a shard of `image_shards` have each image of the balanced set once.

    Returns:
      bool [records of that shard].

    Raises:
      InputError: see `read_copied`.
    """
    first, place = np.zeros(image_shards(selection).records[shard], bool), 0
    for _, image in read_copied(selection, shard):
        first[image.position if selection.beside else place] = True
        place += image.copies
    return first


def require_origin(images: Manifest, predictions: Manifest) -> None:
    """Checks the images and the teacher that the predictions' manifest names.

    Raises:
      InputError: the predictions were made from other images, or by another teacher.
    """
    again = "run run_pseudo_label.sh on " + (
        "this data" if images.kind == "unlabeled" else f"--selection={images.directory}"
    )
    # None: an earlier version, which did not note these, made the predictions.
    of_images, of_teacher = (predictions.extra.get(name) for name in ("images", "teacher"))
    if of_images is not None and of_images != images.digest:
        raise InputError(
            f"{predictions.directory} was not made from the shards that {images.directory} has "
            f"now; {again}"
        )
    config = predictions.directory / "config.json"
    if of_teacher is not None and config.exists():
        run = read_json(config)
        inputs = run.get("inputs") if isinstance(run, dict) else None
        if not isinstance(inputs, dict) or inputs.get("teacher") != of_teacher:
            raise InputError(
                f"{predictions.directory / MANIFEST} is of another teacher than {config}; {again}"
            )
