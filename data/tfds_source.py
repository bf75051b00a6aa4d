"""Collection format: any image classification data set of tensorflow-datasets.

    tfds:NAME/SPLIT            tfds:cifar10/train, tfds:imagenet2012/validation
    tfds:NAME/CONFIG/SPLIT     tfds:imagenet_resized/32x32/train

The data set must be prepared already, in TFDS's own folder (`TFDS_DATA_DIR`): this stage downloads
nothing. Images are read as the files that TFDS keeps, in its order, which mixes the classes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cli.errors import one_line
from data.records import impossible_record
from data.sources import Request, printable


class TfdsImages:
    """A `Collection` of a TFDS split."""

    scattered = False
    ignored: dict[str, int] = {}  # noqa: RUF012
    problems = ()

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, with_labels: bool, request: Request
    ) -> None:
        self._builder, self._split, self._request = builder, split, request
        self._name = f"{builder.info.full_name.replace(':', '_')}/{split}"
        self.label_names = tuple(builder.info.features["label"].names) if with_labels else ()
        self._require_impossible_record()
        examples = self._examples()
        self.labels = np.full(examples.cardinality().numpy(), -1, np.int32)
        if with_labels:
            self.labels[:] = [
                label for label in self._readable(examples.map(lambda example: example["label"]))
            ]

    def _require_impossible_record(self) -> None:
        """Raises InputError if a TFRecord file has a length at which TensorFlow would crash."""
        splits = self._builder.info.splits  # empty where nothing is prepared
        for part in splits[self._split].file_instructions if splits else ():
            path = os.fspath(part.filename)
            if (
                "tfrecord" in os.path.basename(path)
                and os.path.isfile(path)
                and impossible_record(path) is not None
            ):
                raise self._request.error(
                    f"is damaged, or cannot be read ({path} has a record that is longer than the"
                    " file); prepare it again"
                )

    def _readable(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """Yields its elements. Raises InputError if TFDS's files are not what they should be."""
        try:
            yield from dataset.as_numpy_iterator()
        except tf.errors.OpError as error:
            raise self._request.error(
                f"is damaged, or cannot be read ({one_line(error)}); prepare it again"
            ) from error

    def _examples(self) -> tf.data.Dataset:
        """Returns the examples in TFDS's order, with the images as they are stored."""
        features = {name: True for name in ("image", *(("label",) if self.label_names else ()))}
        return self._builder.as_dataset(
            split=self._split,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(
                features, decoders={"image": tfds.decode.SkipDecoding()}
            ),
            read_config=tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1),
        )

    def key(self, index: int) -> str:
        """Returns data set, version and split, and the number in TFDS's order."""
        return f"{self._name}/{index:08d}"

    def describe(self, index: int) -> str:
        """Returns the key."""
        return self.key(index)

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """Yields the bytes of the files; `indices` ascend."""
        wanted = iter(indices)
        index = next(wanted, None)
        for number, example in enumerate(self._readable(self._examples())):
            if index is None:
                return
            if number == index:
                yield example["image"]
                index = next(wanted, None)


def open_tfds(request: Request) -> TfdsImages:
    """Opens a prepared TFDS data set.

    Raises:
      InputError: there is no data set of that name or split, it is not prepared, or it is not one
        of images with a class each.
    """
    name, slash, split = request.location.rpartition("/")
    if not slash:
        raise request.error("names no split; write tfds:NAME/SPLIT, such as tfds:cifar10/train")
    try:
        builder = tfds.builder(name)
    except (
        tfds.core.DatasetNotFoundError,
        tfds.core.registered.DatasetNotFoundError,
        ValueError,
    ) as error:
        raise request.error(
            f"is not a dataset of tensorflow-datasets ({' '.join(str(error).split())[:200]})"
        ) from error
    features = dict(builder.info.features or {})
    if not isinstance(features.get("image"), tfds.features.Image):
        raise request.error("has no feature `image`; only image data sets can be read")
    with_labels = request.role != "unlabeled"
    if with_labels and not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise request.error("has no feature `label` with one class an image; it can be --unlabeled")
    try:
        return TfdsImages(builder, split, with_labels, request)
    except AssertionError as error:  # "could not find data in ..."
        prepare = (
            f"import tensorflow_datasets as tfds; tfds.builder('{name}').download_and_prepare()"
        )
        raise request.error(
            f'is not prepared; run `{sys.executable} -c "{prepare}"` first'
        ) from error
    except (KeyError, ValueError) as error:
        raise request.error(
            f"has no split {printable(split)}; it has {', '.join(builder.info.splits)}"
        ) from error
