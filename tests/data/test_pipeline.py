"""The order of the examples.

Every example comes once an epoch. The order is the same after a restart, and the parts make up the
whole.
"""

import dataclasses
import io
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import pipeline, protos, records
from data.preprocessing import Preprocessing, eval_image, train_image

SIZE = 6


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Writes 23 images in 4 shards; image i has the gray level i everywhere and the label i % 3."""

    def png(level):
        buffer = io.BytesIO()
        PIL.Image.new("L", (SIZE, SIZE), level).save(buffer, "PNG")
        return buffer.getvalue()

    examples = [protos.make_example(png(i), f"image/{i}", label=i % 3) for i in range(23)]
    directory = tmp_path_factory.mktemp("split")
    return records.write_split(
        directory, "labeled", examples, 4, 23, kind="labeled", label_names=("a", "b", "c")
    )


def positions_and_records(split, start, count, **options):
    return [
        (int(p), r.numpy())
        for p, r in pipeline.example_stream(split, 5, start, **options).take(count)
    ]


@pytest.mark.parametrize("window", [5, 10, 1000])  # one shard, two shards, everything
def test_each_epoch_is_a_permutation_and_they_differ(split, window):
    stream = positions_and_records(split, 0, 69, window=window)
    assert [p for p, _ in stream] == list(range(69))
    epochs = [[r for _, r in stream[i : i + 23]] for i in (0, 23, 46)]
    assert all(len(set(epoch)) == 23 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]


@pytest.mark.parametrize("window", [5, 10, 1000])
@pytest.mark.parametrize("start", [1, 22, 23, 50])
def test_a_later_start_gives_the_same_stream(split, window, start):
    whole = positions_and_records(split, 0, 70, window=window)
    assert positions_and_records(split, start, 70 - start, window=window) == whole[start:]


def test_seeds_differ(split):
    first, second = (list(pipeline.example_stream(split, seed).take(23)) for seed in (0, 1))
    assert [r.numpy() for _, r in first] != [r.numpy() for _, r in second]


def test_empty_shards_are_passed_over(tmp_path, split):
    directory = tmp_path / "sparse"
    sparse = records.write_split(
        directory,
        "labeled",
        [protos.make_example(b"x", "a", label=0)],
        1,
        1,
        kind="labeled",
        label_names=("a", "b"),
    )
    (directory / "empty").write_bytes(b"")
    digest = records.file_digest(directory / "empty")
    sparse = records.Manifest(
        directory,
        "labeled",
        ("empty", *sparse.files),
        (0, 1),
        ("a", "b"),
        0,
        "labeled",
        {},
        (digest, *sparse.digests),
    )
    assert len(positions_and_records(sparse, 0, 3)) == 3
    nothing = records.Manifest(
        directory, "labeled", ("empty",), (0,), ("a", "b"), 0, "labeled", {}, ("",)
    )
    with pytest.raises(InputError, match="no records"):
        pipeline.example_stream(nothing, 0)


@pytest.mark.parametrize("window", [5, 1000])  # the shard alone, and among others
@pytest.mark.parametrize("count", [0, 4, 7])  # where the manifest says 6
def test_another_number_of_records_is_an_error(tmp_path, split, window, count):
    """Each record of the shard is whole, so that only counting tells."""
    directory = tmp_path / "cut"
    shutil.copytree(split.directory, directory)
    cut = dataclasses.replace(split, directory=directory, trusted=True)
    whole = list(records.read_shard(cut.paths[2]))
    assert len(whole) == 6
    records.write_shard(cut.paths[2], (whole * 2)[:count])
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        positions_and_records(cut, 0, 23, window=window)
    if count == 4:
        assert cut.paths[2] in str(caught.value)


def levels(dataset, steps):
    return [
        [(float(image[0, 0, 0]), int(label)) for image, label in zip(*map(np.asarray, batch))]
        for batch in dataset.take(steps)
    ]


PLAIN = Preprocessing(image_size=SIZE)
NOISY = Preprocessing(
    image_size=SIZE,
    pad=2,
    randaugment_layers=2,
    randaugment_magnitude=6.0,
    randaugment_mode="monotone",
    translate_const=4.0,
)


def test_labels_stay_with_their_images(split):
    for batch in levels(pipeline.train_batches(split, PLAIN, batch_size=7, seed=0), 5):
        assert all(int(level) % 3 == label for level, label in batch)


def test_batches_restart_at_a_step_with_the_same_augmentation(split):
    def batches(start, steps):
        data = pipeline.train_batches(split, NOISY, batch_size=4, seed=0, start_step=start)
        return [image.numpy() for image, _ in data.take(steps)]

    whole, rest = batches(0, 8), batches(5, 3)
    for a, b in zip(whole[5:], rest):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(whole, batches(1, 7)))


def test_mixed_batches_restart_at_a_step(split):
    options = {"batch_size": 6, "seed": 3, "mixup": 0.4, "cutmix": 1.0}
    quiet = Preprocessing(SIZE)
    whole = list(pipeline.train_batches(split, quiet, **options).take(4).as_numpy_iterator())
    again = list(
        pipeline.train_batches(split, quiet, **options, start_step=2).take(2).as_numpy_iterator()
    )
    plain = list(
        pipeline.train_batches(split, quiet, batch_size=6, seed=3).take(4).as_numpy_iterator()
    )
    for (images, targets), (same, same_targets) in zip(whole[2:], again):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(targets, same_targets)
    assert all(targets.shape == (6, 3) and np.allclose(targets.sum(1), 1) for _, targets in whole)
    assert any((a != b).any() for (a, _), (b, _) in zip(whole, plain))


def test_without_augmentation_images_are_as_in_evaluation(split):
    noisy = Preprocessing(8, style="small", randaugment_layers=1, randaugment_ops=("Invert",))
    clean = {int(label): set() for label in range(3)}
    for batch in pipeline.eval_batches(split, 23, noisy):
        for image, label in zip(batch["image"].numpy(), batch["label"].numpy()):
            clean[int(label)].add(image.tobytes())
    for augment in (False, True):
        for images, labels in pipeline.train_batches(
            split, noisy, batch_size=23, seed=1, augment=augment
        ).take(1):
            found = [
                image.tobytes() in clean[int(label)]
                for image, label in zip(images.numpy(), labels.numpy())
            ]
            assert all(found) == (not augment)


def test_two_views_of_an_image_share_its_crop(split):
    noisy = dataclasses.replace(NOISY, pad=0, flip=True)
    options = {"batch_size": 23, "seed": 0, "stream_id": 1}
    (weak, strong), (again, _) = (
        next(iter(pipeline.train_batches(split, noisy, targets=targets, **options)))
        for targets in ("strong", "label")
    )
    np.testing.assert_array_equal(strong, again)
    assert sorted(weak.numpy()[:, 0, 0, 0].astype(int)) == list(range(23)), (
        "the weak view keeps each image's gray level"
    )
    assert (np.abs(strong - weak).max(axis=(1, 2, 3)) > 0).sum() > 10
    padded = dataclasses.replace(NOISY, randaugment_layers=0)
    weak, strong = next(iter(pipeline.train_batches(split, padded, targets="strong", **options)))
    np.testing.assert_array_equal(weak, strong)


def test_samples_are_noised_as_in_training_and_anew_at_each_step(split):
    noisy = Preprocessing(
        8, pad=2, randaugment_layers=1, randaugment_magnitude=9.0, randaugment_ops=("Rotate",)
    )
    first, again, later = (
        pipeline.samples(split, noisy, count=3, seed=5, step=step).numpy() for step in (7, 7, 8)
    )
    assert first.shape == (3, 8, 8, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != later).any()
    (serialized, *_) = records.read_shard(split.paths[0])
    encoded = protos.parse_example(serialized)["image/encoded"]
    expected = train_image(encoded, tf.constant([5, 21], tf.int64), noisy).numpy()
    np.testing.assert_array_equal(first[0], np.clip(np.round(expected), 0, 255))
    assert np.abs(first[0] - eval_image(encoded, noisy)).max() > 1


def test_replicas_and_workers_share_out_the_global_batch(split):
    whole = levels(pipeline.train_batches(split, PLAIN, batch_size=8, seed=3), 3)
    replicas = levels(pipeline.train_batches(split, PLAIN, batch_size=8, seed=3, replicas=2), 6)
    assert [replicas[2 * i] + replicas[2 * i + 1] for i in range(3)] == whole
    workers = [
        levels(
            pipeline.train_batches(
                split, PLAIN, batch_size=8, seed=3, pipelines=(2, i), replicas=2
            ),
            3,
        )
        for i in range(2)
    ]
    assert [workers[0][i] + workers[1][i] for i in range(3)] == whole


def test_the_two_streams_of_a_run_are_not_the_same(split):
    labeled, unlabeled = (
        levels(pipeline.train_batches(split, PLAIN, batch_size=8, seed=3, stream_id=i), 3)
        for i in (0, 1)
    )
    assert labeled != unlabeled


@pytest.mark.parametrize("batch_size", [5, 23, 64])
def test_evaluation_sees_every_image_once(split, batch_size):
    seen = []
    for batch in pipeline.eval_batches(split, batch_size, PLAIN):
        assert batch["image"].shape == (batch_size, SIZE, SIZE, 3)
        real = batch["weight"].numpy() == 1
        seen += [key.decode() for key in batch["key"].numpy()[real]]
        np.testing.assert_array_equal(
            batch["image"].numpy()[real][:, 0, 0, 0].astype(int) % 3, batch["label"].numpy()[real]
        )
    assert sorted(seen) == sorted(f"image/{i}" for i in range(23))


@pytest.mark.parametrize("batch_size", [4, 12, 32])  # 3 of the last 4, 11 of 12, 23 of 32
def test_workers_and_replicas_share_out_an_evaluation(split, batch_size):
    """Two workers have two replicas each.

    Replica r of a step has quarter r of the one-device batch.
    """
    whole = [
        batch["key"].numpy().tolist() for batch in pipeline.eval_batches(split, batch_size, PLAIN)
    ]
    quarters = [
        list(pipeline.eval_batches(split, batch_size, PLAIN, (2, index), 4)) for index in (0, 1)
    ]
    for step, keys in enumerate(whole):
        parts = [worker[2 * step + replica] for worker in quarters for replica in (0, 1)]
        assert [key for part in parts for key in part["key"].numpy().tolist()] == keys
        assert [len(part["weight"]) for part in parts] == [batch_size // 4] * 4
    assert [len(worker) for worker in quarters] == [2 * len(whole)] * 2
    assert sum(float(tf.reduce_sum(part["weight"])) for worker in quarters for part in worker) == 23
