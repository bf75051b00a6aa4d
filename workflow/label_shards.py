"""The job of labeling: a teacher answers the images of a shard, which become its predictions.

Batches are filled from the start of each shard, and the last one is padded. So a prediction does
not depend on which worker or device made it, or when. A process uses all GPUs that it may
(`training.copies`). Workers that `shard_jobs` starts share them out.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)

# isort: split

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import training.strategy
from cli.errors import InputError
from data.pipeline import PARALLEL_CALLS, untuned
from data.preprocessing import Preprocessing, eval_image, train_image
from data.protos import make_prediction, parse_example
from data.records import Manifest, read_shard, shard_name, write_shard
from data.verification import record_dataset, unconverted, verified_beside
from nets.noise import model_noise
from training import model_dir, optimize
from training.copies import Copies, on_each
from workflow import shard_jobs
from workflow.calibration import fit_temperature, tempered
from workflow.join import first_copies, image_shards

CONFIDENCE_BINS = 20
"""Number of bins of the summary's histogram; equal bins over [0, 1]."""


@dataclasses.dataclass
class LabelShards:
    """The job: one shard of images -> one shard of predictions.

    Attributes:
      images: manifest of the unlabeled split or of a balanced set. If only `probabilities` is
        wanted, it may be of the validation split.
      teacher: directory of the teacher.
      directory: where the predictions go.
      batch_size: images in a forward pass.
      top_k: probabilities stored per image; 0 = all.
      views: noised copies of an image over which its probabilities are averaged; 0 = the image
        itself.
      model_noise: dropout and stochastic depth in the teacher.
      seed: seed of the noise.
      temperature: temperature of the predictions, see `calibration`.
      precision: one of `training.settings.PRECISIONS`, as in training.
      optimize: fold BatchNorm into the convolutions, and make the weights constants.
      devices: `strategy`, `cpu_devices` and `tpu` of `training.strategy.devices`.
    """

    images: Manifest
    teacher: str
    directory: Path
    batch_size: int
    top_k: int
    views: int = 0
    model_noise: bool = False
    seed: int = 0
    temperature: float = 1.0
    precision: str = "float32"
    optimize: bool = False
    devices: tuple[str, int, str] = ("auto", 1, "")

    def setup(self) -> None:
        """Loads the teacher on each device. Raises InputError where it cannot be used."""
        places = training.strategy.devices(*self.devices, share=shard_jobs.share())
        self._copies = Copies(on_each(places, self._load))

    def close(self) -> None:
        """Ends the shards that other threads are working on."""
        self._copies.close()

    def _load(self) -> Callable[[tf.Tensor, int], np.ndarray]:
        """Returns `forward` on the device of the context. Raises InputError."""
        with _policy(self.precision):
            model, self._spec = model_dir.load(self.teacher)
            if self.optimize:
                model = optimize.fold_batch_norm(model)
        if model.output_shape[-1] != self._spec.num_classes:
            raise InputError(
                f"teacher {self.teacher}: {model.output_shape[-1]} outputs for"
                f" {self._spec.num_classes} label names; train it again"
            )
        size = self._spec.preprocessing.image_size
        batch = tf.TensorSpec([self.batch_size, size, size, 3], tf.float32)

        @tf.function(input_signature=[batch, tf.TensorSpec([], tf.int64)])
        def predict(images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
            with (
                model_noise(self.seed, number, inference=True)
                if self.model_noise
                else contextlib.nullcontext()
            ):
                return tf.nn.softmax(tf.cast(model(images, training=False), tf.float32))  # (B, K)

        answer: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = predict
        # In a larger model, BatchNorm is only folded.
        if self.optimize and 4 * model.count_params() <= optimize.MAX_GRAPH_BYTES:
            alone = tf.function(lambda images: predict(images, 0), autograph=False)
            frozen = optimize.freeze(alone.get_concrete_function(batch), "float32")

            def answer(images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
                del number  # this graph has no noise
                return frozen(images)[0]

        def forward(images: tf.Tensor, number: int) -> np.ndarray:
            images = tf.reshape(images, [-1, size, size, 3])
            count = len(images)
            if count < self.batch_size:
                images = tf.pad(images, [(0, self.batch_size - count), (0, 0), (0, 0), (0, 0)])
            return answer(images, tf.constant(number, tf.int64)).numpy()[:count]

        return forward

    def outputs(self, shard: int) -> list[str]:
        """Returns the file of the shard's predictions."""
        return [str(self.directory / shard_name("predictions", shard, len(self.images.files)))]

    def run(self, shard: int) -> dict[str, Any]:
        """Labels one shard.

        Raises:
          InputError: the shard cannot be read, or the teacher gives no probabilities.
        """
        started = time.monotonic()
        statistics = _Statistics(self._spec.num_classes)
        # Of a balanced set the first copy of each image is labeled.
        wanted = first_copies(self.images, shard) if self.images.kind == "pseudo_labeled" else None
        count, digest = write_shard(
            self.outputs(shard)[0], self._predictions(shard, statistics, wanted)
        )
        if wanted is None:
            _require_count(count, self.images, shard)
        elif count != np.count_nonzero(wanted):
            raise AssertionError(
                f"{self.images.paths[shard]}: {count} of {np.count_nonzero(wanted)} images labeled"
            )
        return {
            "images": count,
            "sha256": digest,
            "seconds": time.monotonic() - started,
            **statistics.to_dict(),
        }

    def _predictions(
        self, shard: int, statistics: _Statistics, wanted: np.ndarray | None
    ) -> Iterator[bytes]:
        path, done = self.images.paths[shard], 0
        for keys, probabilities in self.probabilities(shard, wanted):
            statistics.add(probabilities)
            for key, row in zip(keys, probabilities):
                if not key:
                    raise InputError(
                        f"{path}: record {done} (counting from 0) has no image/key; make the data"
                        " with run_prepare_data.sh"
                    )
                yield make_prediction(key.decode("utf-8"), row, self.top_k)
                done += 1
        # Tells a cut file from a wrong manifest.
        if wanted is None and done != self.images.records[shard]:
            for _ in read_shard(path, num_records=self.images.records[shard]):
                pass

    def probabilities(
        self, shard: int, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the teacher's answers for a shard's images, in batches.

        Args:
          shard: number of the shard.
          wanted: bool [records], which records to answer; None: all.

        Yields:
          (keys, bytes [b]; probabilities, float32 [b, K]).

        Raises:
          InputError: the shard or an image cannot be read, or a probability is not finite.
        """
        preprocessing = self._spec.preprocessing
        with verified_beside(image_shards(self.images), shard) as path:
            batches = image_batches(
                path, preprocessing, self.batch_size, self.views, self.seed, wanted
            )
            numbered = ((shard * 2**16 + number, *batch) for number, batch in enumerate(batches))
            try:
                for (_, keys, images), answers in self._copies.map(
                    lambda batch: (batch[2], batch[0]), numbered
                ):
                    # (b, V, K) -> (b, K)
                    probabilities = answers.reshape(*images.shape[:2], -1).mean(axis=1)
                    bad = ~np.isfinite(probabilities).all(axis=1)
                    if bad.any():
                        key = keys[int(np.argmax(bad))].decode("utf-8")
                        raise InputError(
                            f"teacher {self.teacher} gives non-finite probabilities (first for"
                            f" image {key}); train it again"
                        )
                    yield (
                        keys,
                        (
                            probabilities
                            if self.temperature == 1.0
                            else tempered(probabilities, self.temperature)
                        ),
                    )
            except tf.errors.OpError as error:
                _raise_precisely(
                    path, preprocessing, image_shards(self.images).records[shard], error
                )

    def forward(self, images: tf.Tensor, number: int = 0) -> np.ndarray:
        """Returns the probabilities float32 [b, K] of at most one batch of images.

        Args:
          images: at most `batch_size` images; padded to the one shape that the graph is made for.
          number: makes the batches differ in their model noise.
        """
        return self._copies(images, number)


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    """Makes layers that are built in this block compute in that precision."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def image_batches(
    path: str,
    preprocessing: Preprocessing,
    batch_size: int,
    views: int = 0,
    seed: int = 0,
    wanted: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, tf.Tensor]]:
    """Yields a shard's images in order, in batches of at most `batch_size` copies.

    Only the last batch may be smaller than the others.

    Args:
      path: file of the shard.
      preprocessing: preprocessing of the teacher.
      batch_size: most images in a batch, counting each copy; at least `views`.
      views: copies of each image with the noise of training, a function of (seed, key, copy); 0:
        one, without noise.
      seed: seed of that noise.
      wanted: bool [records], which records to take; None: all.

    Yields:
      (keys, bytes [b]; images, float32 [b, max(views, 1), S, S, 3] in 0–255).
    """

    @unconverted
    def load(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = parse_example(serialized)
        key, encoded = example["image/key"], example["image/encoded"]
        if not views:
            return key, eval_image(encoded, preprocessing)[tf.newaxis]
        name = tf.strings.to_hash_bucket_fast(key, 2**31 - 1)
        return key, tf.stack(
            [
                train_image(
                    encoded, tf.stack([name, tf.constant(seed * 1000 + v, tf.int64)]), preprocessing
                )
                for v in range(views)
            ]
        )

    records = tf.data.TFRecordDataset(path)
    if wanted is not None:
        both = tf.data.Dataset.zip((records, tf.data.Dataset.from_tensor_slices(wanted)))
        records = both.filter(unconverted(lambda _, take: take)).map(
            unconverted(lambda record, _: record)
        )
    records = records.map(load, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
    for keys, images in untuned(records.batch(batch_size // max(views, 1)).prefetch(2)):
        yield keys.numpy(), images


def calibrated(job: LabelShards, validation: Manifest) -> LabelShards:
    """Returns `job` with the temperature of its teacher, fitted on a labeled split.

    The teacher answers that split in the same way as `job` labels images.
    """
    trial = dataclasses.replace(job, images=validation)
    trial.setup()
    with contextlib.closing(trial):  # its copies of the teacher leave before the job's are loaded
        answers = [
            probabilities
            for shard in range(len(validation.files))
            for _, probabilities in trial.probabilities(shard)
        ]
    parsed = record_dataset(validation).map(
        lambda record: parse_example(record, validation.label_offset)["label"]
    )
    return dataclasses.replace(
        job,
        temperature=fit_temperature(
            np.concatenate(answers), np.array(list(parsed.as_numpy_iterator()))
        ),
    )


def _raise_precisely(
    path: str, preprocessing: Preprocessing, num_records: int, error: Exception
) -> None:
    """Turns TensorFlow's error about some record of a shard into one that names the record.

    Raises `error` again where the shard has no fault.
    """
    for position, serialized in enumerate(read_shard(path, num_records=num_records)):
        key = ""
        try:
            example = parse_example(tf.constant(serialized))
            key = example["image/key"].numpy().decode("utf-8")
            eval_image(example["image/encoded"], preprocessing)
        except tf.errors.InvalidArgumentError as found:
            what = f"image {key} cannot be decoded" if key else "no image can be read from it"
            raise InputError(
                f"{path}: record {position} (counting from 0): {what}; make the data again"
            ) from found
    raise error


def _require_count(count: int, images: Manifest, shard: int) -> None:
    if count != images.records[shard]:
        raise InputError(
            f"{images.paths[shard]} has {count} records, but its manifest says "
            f"{images.records[shard]}; make the data again"
        )


class _Statistics:
    """Statistics of the predictions for the summary, summed over a shard."""

    def __init__(self, num_classes: int) -> None:
        self.predicted = np.zeros(num_classes, np.int64)
        self.confidence_sum = 0.0
        self.histogram = np.zeros(CONFIDENCE_BINS, np.int64)

    def add(self, probabilities: np.ndarray) -> None:
        """Adds a batch of probabilities, float32 [b, K]."""
        confidence = probabilities.max(axis=1)
        self.predicted += np.bincount(probabilities.argmax(axis=1), minlength=len(self.predicted))
        self.confidence_sum += float(confidence.sum(dtype=np.float64))
        self.histogram += np.histogram(np.minimum(confidence, 1.0), CONFIDENCE_BINS, (0.0, 1.0))[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns the statistics as JSON."""
        return {
            "predicted": self.predicted.tolist(),
            "confidence_sum": self.confidence_sum,
            "histogram": self.histogram.tolist(),
        }


def note(num_classes: int) -> dict[str, Any]:
    """Returns the schema of what `LabelShards.run` returns."""
    counts = {"predicted": [int] * num_classes, "histogram": [int] * CONFIDENCE_BINS}
    return {"images": int, "sha256": str, "seconds": float, "confidence_sum": float, **counts}
