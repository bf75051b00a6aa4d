"""Reads sets of labeled images for a model: records, folders of files, videos.

A set says how many examples it has before anyone reads it, so that each can be counted exactly
once. The elements of its stream are (image file, key, label). Image files are encoded, whatever
they came from, so one pipeline prepares all of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from data import protos
from data.pipeline import PARALLEL_CALLS
from data.records import Manifest
from data.verification import record_dataset

ELEMENT = (tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64))


@dataclasses.dataclass(frozen=True)
class Examples:
    """A set of labeled images.

    Attributes:
      name: unique among the sets that are evaluated together.
      origin: its directory, for messages.
      count: number of its examples.
      num_classes: labels are 0 … num_classes − 1.
      stream: makes the dataset of (encoded string, key string, label int64), each example once.
    """

    name: str
    origin: str
    count: int
    num_classes: int
    stream: Callable[[], tf.data.Dataset]


def from_records(manifest: Manifest, name: str) -> Examples:
    """Returns the split of `manifest`."""

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        example = protos.parse_example(serialized, manifest.label_offset)
        return example["image/encoded"], example["image/key"], example["label"]

    def stream() -> tf.data.Dataset:
        return record_dataset(manifest).map(
            parse, num_parallel_calls=PARALLEL_CALLS, deterministic=True
        )

    return Examples(
        name, str(manifest.directory), manifest.num_records, manifest.num_classes, stream
    )


def from_files(
    directory: Path, name: str, folders: Sequence[tuple[str, int]], num_classes: int
) -> Examples:
    """Returns the image files in `directory`/FOLDER/*, in the order of their names.

    `folders` are pairs (FOLDER, class).

    Raises:
      InputError: a folder is missing or empty.
    """
    files: list[tuple[str, tuple[str, ...]]] = []
    labels: list[int] = []
    for folder, label in folders:
        try:
            with os.scandir(directory / folder) as found:
                shown = [entry for entry in found if not entry.name.startswith(".")]
            # A named pipe is left out, since reading it would wait. A broken link stays, and is
            # an error when it is read.
            names = tuple(
                sorted(
                    entry.name
                    for entry in shown
                    if entry.is_file() or not os.path.exists(entry.path)
                )
            )
        except OSError:
            names = ()
        if not names:
            raise InputError(f"{directory / folder} holds no images")
        files.append((folder, names))
        labels.append(label)

    def paths() -> Iterator[tuple[str, str, int]]:
        for (folder, names), label in zip(files, labels):
            for file in names:
                yield f"{directory}/{folder}/{file}", f"{folder}/{file}", label

    def read(
        path: tf.Tensor, key: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tf.io.read_file(path), key, label

    def stream() -> tf.data.Dataset:
        named = tf.data.Dataset.from_generator(paths, output_signature=ELEMENT)
        return named.map(read, num_parallel_calls=PARALLEL_CALLS, deterministic=True)

    return Examples(
        name, str(directory), sum(len(names) for _, names in files), num_classes, stream
    )


def from_videos(
    videos: Sequence[tuple[Path, str, int]], name: str, origin: str, frames: int, num_classes: int
) -> Examples:
    """Returns the frames of `videos`, each (file, key, class).

    Each video must have `frames` frames. A frame's key is KEY#number.
    """

    def decoded() -> Iterator[tuple[bytes, str, int]]:
        for path, key, label in videos:
            for number, frame in enumerate(read_video(path, frames)):
                # Uncompressed: it only carries the pixels into the pipeline that all images go
                # through.
                yield tf.io.encode_png(frame, compression=0).numpy(), f"{key}#{number:03d}", label

    def stream() -> tf.data.Dataset:
        return tf.data.Dataset.from_generator(decoded, output_signature=ELEMENT)

    return Examples(name, origin, len(videos) * frames, num_classes, stream)


def read_video(path: Path, frames: int | None = None) -> list[np.ndarray]:
    """Returns all frames of a video file, uint8 [H, W, 3], red first.

    Raises:
      InputError: the file cannot be decoded, it does not have `frames` frames, or OpenCV is not
        installed.
    """
    try:
        import cv2  # here: nothing but ImageNet-P needs it
    except ImportError as error:
        raise InputError(
            "ImageNet-P needs opencv-python-headless; docs/installation.md says how to add it"
        ) from error

    capture = cv2.VideoCapture(str(path))
    found = []
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            found.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()
    if not found or (frames is not None and len(found) != frames):
        raise InputError(
            f"{path} holds {len(found)} frames that can be decoded"
            + (f", not {frames}" if frames else "")
            + "; get it again"
        )
    return found
