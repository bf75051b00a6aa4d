"""Turns shards into batches, as a function of (seed, step).

The order of the training examples is a permutation per epoch. It is computed, not drawn from a
shuffle buffer. So a run that starts again at step s gets exactly the batches from s on, and nothing
has to be saved:

1. The shards of an epoch are permuted by (seed, epoch) and cut into windows of about
   `SHUFFLE_WINDOW` records.
2. A window is read whole, sequentially, as encoded records, and permuted by (seed, epoch, window).
3. Example number i of the resulting endless stream is augmented with the random key (seed, i).

So every example comes exactly once an epoch, and reading stays sequential. Memory is one window of
encoded images (two while the next one is read). A batch may span two epochs; nothing is dropped.

If several hosts share each batch, a host computes by the same integers which records of a window
are its own. The shards' indexes tell where the records are. The host reads only those records, in
the order of the file.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cli import buckets
from cli.errors import InputError
from data import beside, index, mixing, protos, records
from data.preprocessing import Preprocessing, eval_image, train_image, train_pixels
from data.records import Manifest
from data.verification import (
    fetched,
    read_records,
    record_dataset,
    unconverted,
    verified_paths,
)

SHUFFLE_WINDOW = 20_000
"""Number of records of a window; 20,000 JPEGs of ImageNet are about 2.2 GB."""

PARALLEL_CALLS = os.cpu_count() or 1
"""Number of images prepared at the same time."""


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the data set without tf.data's autotuning, each operation in one thread.

    Give the data set numbers of parallel calls, not `tf.data.AUTOTUNE`. Images are prepared in
    parallel, so splitting the work on one image only costs.

    Autotuning runs in a thread that sleeps for up to a minute. In TF 2.15 the iterator's destructor
    may miss waking it. Now and then a training would hang for that minute after its last step.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


@dataclasses.dataclass(frozen=True)
class _Order:
    """The order of the examples, for the shards that have any.

    All methods are pure integer functions of (seed, epoch, window).
    """

    shards: tuple[int, ...]
    sizes: tuple[int, ...]
    seed: int
    shards_per_window: int
    windows: int

    @classmethod
    def create(cls, manifest: Manifest, seed: int, window: int) -> _Order:
        filled = [(shard, size) for shard, size in enumerate(manifest.records) if size]
        if not filled:
            raise InputError(f"{manifest.directory} holds no records; nothing to train on")
        shards, sizes = zip(*filled)
        per_shard = sum(sizes) / len(sizes)
        shards_per_window = int(np.clip(round(window / per_shard), 1, len(sizes)))
        return cls(shards, sizes, seed, shards_per_window, -(-len(sizes) // shards_per_window))

    def shard_ids(self, epoch: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        """Returns the places in `shards` of a window's shards, int64 (n,)."""
        shards = len(self.sizes)
        first = window * self.shards_per_window
        places = tf.range(first, tf.minimum(first + self.shards_per_window, shards))
        return tf.random.experimental.index_shuffle(places, self._key(epoch, -1), shards - 1)

    def places(self, n: tf.Tensor, epoch: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        """Returns which of the n records of a window comes at each place, int64 (n,)."""
        return tf.random.experimental.index_shuffle(tf.range(n), self._key(epoch, window), n - 1)

    def _key(self, epoch: tf.Tensor, window: tf.Tensor | int) -> tf.Tensor:
        number = tf.cast(epoch, tf.int64) * (self.windows + 1) + tf.cast(window, tf.int64) + 1
        return tf.stack([tf.constant(self.seed, tf.int64), number])

    def locate(self, position: int) -> tuple[int, int]:
        """Maps an endless position to (endless window number, position in that window)."""
        epoch, rest = divmod(position, sum(self.sizes))
        sizes = np.asarray(self.sizes)
        for window in range(self.windows):
            ids = self.shard_ids(
                tf.constant(epoch, tf.int64), tf.constant(window, tf.int64)
            ).numpy()
            size = int(sizes[ids].sum())
            if rest < size:
                return epoch * self.windows + window, rest
            rest -= size
        raise AssertionError("the windows hold fewer records than the manifest")


def example_stream(
    manifest: Manifest, seed: int, start: int = 0, window: int = SHUFFLE_WINDOW
) -> tf.data.Dataset:
    """Returns the endless shuffled stream of a split, from example `start` on.

    Its elements are (position int64, serialized record string). A window's shards are verified when
    they are first read, see `data.verification`.
    """
    order = _Order.create(manifest, seed, window)
    first_window, skip = order.locate(start)
    shards, sizes = tf.constant(order.shards, tf.int64), tf.constant(order.sizes, tf.int64)

    @unconverted
    def fetch(number: tf.Tensor) -> tf.Tensor:
        ids = order.shard_ids(number // order.windows, number % order.windows)
        with tf.control_dependencies([fetched(manifest, tf.gather(shards, ids))]):
            return tf.identity(number)

    @unconverted
    def read(number: tf.Tensor) -> tf.Tensor:
        epoch, window_in_epoch = number // order.windows, number % order.windows
        ids = order.shard_ids(epoch, window_in_epoch)
        numbers = tf.gather(shards, ids)
        paths = verified_paths(manifest, numbers)
        size = tf.reduce_sum(tf.gather(sizes, ids))
        if manifest.beside:
            examples, rows = beside.examples(manifest.beside, paths, numbers)
        else:
            whole = tf.data.TFRecordDataset(paths, buffer_size=1 << 20)
            examples = whole.batch(size).get_single_element()  # fails if there are more
            rows = None  # each example comes once
        # A shard that was cut between two records looks whole; `training.fit` finds out which of
        # these shards it is.
        fewer = ["fewer records than the manifest says in one of", paths]
        found = tf.shape(examples if rows is None else rows, tf.int64)[0]
        tf.debugging.Assert(found == size, fewer, summarize=-1)
        # Not of `size`: a missing place would be another error, which may come first.
        places = order.places(found, epoch, window_in_epoch)
        return tf.gather(examples, places if rows is None else tf.gather(rows, places))

    windows = tf.data.Dataset.range(first_window, 2**62)
    if buckets.holds(manifest.directory):  # the next window comes while one is read
        windows = windows.map(fetch, num_parallel_calls=1).prefetch(1)
    stream = windows.map(read).prefetch(1).unbatch()
    return stream.skip(skip).enumerate(start)


class Share(NamedTuple):
    """The share of one of several hosts in each batch.

    Attributes:
      batch_size: images a step over all hosts.
      hosts: number of hosts; it divides the batch.
      host: number of this host, from 0. It has the part of that number of each batch.
    """

    batch_size: int
    hosts: int
    host: int

    def has(self, position: tf.Tensor) -> tf.Tensor:
        """Tells which positions, int64 (n,), belong to this host, bool (n,)."""
        return position % self.batch_size // (self.batch_size // self.hosts) == self.host


def own_stream(
    manifest: Manifest, seed: int, share: Share, start: int = 0, window: int = SHUFFLE_WINDOW
) -> tf.data.Dataset:
    """Returns a host's own examples of `example_stream`, in the same order.

    Reads the index of each shard and none of the other examples. Memory is the host's own part of a
    window.

    Raises:
      tf.errors.OpError: while it is iterated over; an index or a record is damaged, or belongs to
        another shard.
    """
    order = _Order.create(manifest, seed, window)
    first_window, skip = order.locate(start)
    sizes, paths = (
        tf.constant(order.sizes, tf.int64),
        tf.constant([manifest.paths[shard] for shard in order.shards]),
    )
    digests = index.digests(manifest, order.shards)

    @unconverted
    def begin(
        position: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        ids = order.shard_ids(number // order.windows, number % order.windows)
        size = tf.reduce_sum(tf.gather(sizes, ids))
        return position + size, (number, position, size)

    @unconverted
    def read(number: tf.Tensor, position: tf.Tensor, size: tf.Tensor) -> tf.data.Dataset:
        epoch, window_in_epoch = number // order.windows, number % order.windows
        ids = order.shard_ids(epoch, window_in_epoch)
        counts = tf.gather(sizes, ids)
        table = index.read_all(
            (tf.gather(paths, ids), tf.gather(digests, ids), counts), PARALLEL_CALLS
        )
        positions, wanted = position + tf.range(size), order.places(size, epoch, window_in_epoch)
        own = share.has(positions) & (positions >= start)
        positions, wanted = tf.boolean_mask(positions, own), tf.boolean_mask(wanted, own)
        in_file = tf.argsort(wanted)
        wanted = tf.gather(wanted, in_file)
        places = tf.gather(tf.repeat(tf.range(tf.size(ids, tf.int64)), counts), wanted)
        where, entries = tf.gather(tf.gather(paths, ids), places), tf.gather(table, wanted)
        if manifest.beside:
            numbers = tf.gather(tf.constant(order.shards, tf.int64), ids)
            found = beside.own_examples(
                manifest.beside, numbers, places, where, entries, PARALLEL_CALLS
            )
        else:
            found = index.read_records(where, entries, PARALLEL_CALLS)
            found = found.batch(tf.maximum(tf.size(wanted, tf.int64), 1))
        return found.map(
            unconverted(lambda records: (positions, tf.gather(records, tf.argsort(in_file))))
        )

    windows = tf.data.Dataset.range(first_window, 2**62).scan(
        tf.constant(start - skip, tf.int64), begin
    )
    return windows.flat_map(read).prefetch(1).unbatch()


def own_records(manifest: Manifest, share: Share) -> tf.data.Dataset:
    """Returns one host's part of each batch of a split in its stored order, string scalars.

    Nothing else is read of indexed shards.

    Raises:
      tf.errors.OpError: see `own_stream` and `verification.record_dataset`.
    """
    if manifest.beside or not index.indexed(manifest):
        own = (
            record_dataset(manifest)
            .enumerate()
            .filter(unconverted(lambda position, _: share.has(position)))
        )
        return own.map(unconverted(lambda _, serialized: serialized))
    firsts = np.cumsum((0, *manifest.records), dtype=np.int64)
    filled = [shard for shard, size in enumerate(manifest.records) if size]
    columns = [manifest.paths[shard] for shard in filled], index.digests(manifest, filled)
    numbers = np.array(
        [(manifest.records[shard], firsts[shard]) for shard in filled], np.int64
    ).reshape(-1, 2)

    @unconverted
    def read(path: tf.Tensor, digest: tf.Tensor, numbers: tf.Tensor) -> tf.data.Dataset:
        count, first = numbers[0], numbers[1]
        entries = tf.boolean_mask(
            index.read(path, digest, count), share.has(first + tf.range(count))
        )
        return index.read_records(tf.repeat(path, tf.shape(entries)[0]), entries, PARALLEL_CALLS)

    return tf.data.Dataset.from_tensor_slices((*columns, numbers)).flat_map(read)


def train_batches(
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    targets: str = "label",
    clean: Preprocessing | None = None,
    augment: bool = True,
    stream_id: int = 0,
    pipelines: tuple[int, int] = (1, 0),
    replicas: int = 1,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tf.data.Dataset:
    """Returns endless augmented batches from step `start_step` on.

    Args:
      manifest: manifest of a split directory.
      preprocessing: size and noise of the images.
      batch_size: images a step over all replicas.
      seed: seed of order and augmentation.
      start_step: number of finished steps.
      targets: "label" gives class ids int64 (b,), "probabilities" soft pseudo-labels float32 (b,
        K), "strong" the same images once more.
      clean: gives, instead of any target, the same images without noise, prepared so for
        evaluation.
      augment: False gives the images without noise, as for evaluation.
      stream_id: keeps the random keys of two streams of one run apart.
      pipelines: (number of input pipelines, index of this one), one a worker.
      replicas: replicas over all workers; a batch holds the images of one replica, b = batch_size /
        replicas.
      mixup: α of MixUp, for "label" targets only, which become distributions float32 (b, K);
        partners are of the same replica.
      cutmix: α of CutMix, in the same way; see `data.mixing.mix`.

    Returns:
      Dataset of (images float32 (b, S, S, 3) in 0–255, targets). With "strong" the pair is (weak
      view, strong view): the same crop and flip of an image, first without RandAugment and cutout,
      then with them. With `clean` it is (noised view, clean image).
    """
    share, start = Share(batch_size, *pipelines), start_step * batch_size
    if share.hosts == 1:
        stream = example_stream(manifest, seed * 2 + stream_id, start)
    elif index.indexed(manifest):
        stream = own_stream(manifest, seed * 2 + stream_id, share, start)
    else:
        # A host must read all examples, and decodes its own part.
        whole = example_stream(manifest, seed * 2 + stream_id, start)
        stream = whole.filter(unconverted(lambda position, _: share.has(position)))
    num_classes = manifest.num_classes

    def prepare(position: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = protos.parse_example(serialized, manifest.label_offset)
        key = tf.stack([tf.constant(seed * 2 + stream_id, tf.int64), position])
        encoded = example["image/encoded"]
        image = (
            train_pixels(encoded, key, preprocessing)
            if augment
            else eval_image(encoded, preprocessing)
        )
        if clean:
            return image, eval_image(encoded, clean)
        # The same key: what the two views share is drawn equally.
        if targets == "strong":
            return train_pixels(encoded, key, preprocessing.weak()), image
        # The gather is the check: it fails on a label out of range. A one-hot would silently be 0.
        if targets == "label":
            return image, tf.gather(tf.range(num_classes, dtype=tf.int64), example["label"])
        return image, tf.ensure_shape(example["probabilities"], [num_classes])

    @unconverted
    def mixed(
        positions: tf.Tensor, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # Negative: apart from the images' own keys.
        key = tf.stack([tf.constant(-1 - seed * 2 - stream_id, tf.int64), positions[0]])
        return mixing.mix(images, tf.one_hot(labels, num_classes), mixup, cutmix, key)

    if not (mixup or cutmix):
        return prepared_batches(stream, prepare, batch_size // replicas)
    numbered = prepared_batches(
        stream,
        lambda position, serialized: (position, *prepare(position, serialized)),
        batch_size // replicas,
    )
    return untuned(numbered.map(mixed, num_parallel_calls=PARALLEL_CALLS, deterministic=True))


def prepared_batches(
    examples: tf.data.Dataset, prepare: Callable[..., Any], batch_size: int
) -> tf.data.Dataset:
    """Returns batches of `prepare`'s results for the examples, in their order.

    uint8 results become float32 batch by batch.
    """
    prepare = unconverted(prepare)
    prepared = examples.map(prepare, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
    batches = prepared.batch(batch_size, drop_remainder=True)

    @unconverted
    def as_floats(*values: tf.Tensor) -> Any:
        floats = [
            tf.cast(value, tf.float32) if value.dtype == tf.uint8 else value for value in values
        ]
        return floats[0] if len(floats) == 1 else tuple(floats)

    return untuned(batches.map(as_floats).prefetch(2))


def samples(
    manifest: Manifest, preprocessing: Preprocessing, *, count: int, seed: int, step: int
) -> tf.Tensor:
    """Returns the first images of a split with the noise of training, to look at.

    They are uint8 (count or fewer, S, S, 3). Each step noises them anew.
    """
    shard = next(shard for shard, size in enumerate(manifest.records) if size)
    found = (
        read_records(manifest, shard)
        if manifest.beside
        else records.read_shard(manifest.paths[shard])
    )
    images = []
    for i, serialized in enumerate(itertools.islice(found, count)):
        encoded = protos.parse_example(tf.constant(serialized), manifest.label_offset)[
            "image/encoded"
        ]
        images.append(
            train_image(encoded, tf.constant([seed, step * count + i], tf.int64), preprocessing)
        )
    return tf.saturate_cast(tf.round(tf.stack(images)), tf.uint8)


def eval_batches(
    manifest: Manifest,
    batch_size: int,
    preprocessing: Preprocessing,
    pipelines: tuple[int, int] = (1, 0),
    replicas: int = 1,
) -> tf.data.Dataset:
    """Returns one pass over a split in its stored order, unaugmented, in batches of one shape.

    Args:
      manifest: manifest of a split directory.
      batch_size: images a step over all replicas.
      preprocessing: size of the images.
      pipelines: (number of input pipelines, index of this one), one a worker; each has as many
        batches.
      replicas: replicas over all workers; a batch holds the images of one replica, b = batch_size /
        replicas.

    Returns:
      Dataset of dicts: `image` float32 (b, S, S, 3) in 0–255, `label` int64 (b,), `key` string
        (b,), `weight` float32 (b,). The weight is 0 for the rows that fill up the last batch.
    """

    @unconverted
    def prepare(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = protos.parse_example(serialized, manifest.label_offset)
        image = eval_image(example["image/encoded"], preprocessing)
        return {
            "image": image,
            "label": example["label"],
            "key": example["image/key"],
            "weight": tf.ones([], tf.float32),
        }

    share, rest = Share(batch_size, *pipelines), manifest.num_records % batch_size
    local = batch_size // share.hosts
    padding = (
        max(0, min(local, (share.host + 1) * local - rest)) if rest else 0
    )  # of this worker's part of the last batch
    examples = own_records(manifest, share) if share.hosts > 1 else record_dataset(manifest)
    examples = examples.map(prepare, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
    if padding:
        shape = [preprocessing.image_size, preprocessing.image_size, 3]
        blank = {
            "image": tf.zeros(shape),
            "label": tf.zeros([], tf.int64),
            "key": tf.constant(""),
            "weight": tf.zeros([]),
        }
        examples = examples.concatenate(tf.data.Dataset.from_tensors(blank).repeat(padding))
    return untuned(examples.batch(batch_size // replicas, drop_remainder=True).prefetch(2))


def distribute(
    strategy: tf.distribute.Strategy, make: Callable[[tuple[int, int], int], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Hands the dataset `make((pipelines, index), replicas)` of per-replica batches to `strategy`.

    Replica r of a step gets the r-th batch, so the global batch is the same examples in the same
    order whatever the strategy.
    """
    return strategy.distribute_datasets_from_function(
        lambda context: make(
            (context.num_input_pipelines, context.input_pipeline_id), strategy.num_replicas_in_sync
        )
    )
