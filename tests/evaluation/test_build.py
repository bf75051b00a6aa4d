"""A -C and a -P of a user's data: whole, seeded, shared, and the same pixels for the model."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import protos, records
from data.preprocessing import Preprocessing, eval_image
from evaluation import build
from evaluation.robustness import CORRUPTIONS


def png(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(directory, images, name="test"):
    examples = [protos.make_example(image, f"k{i}", i % 2 + 1) for i, image in enumerate(images)]
    return records.write_split(
        directory,
        name,
        examples,
        1,
        len(examples),
        kind="labeled",
        label_names=("a", "b"),
        label_offset=1,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.Generator(np.random.PCG64(0))
    return write(
        tmp_path_factory.mktemp("source") / "test",
        [png(rng.integers(0, 256, (8, 8), np.uint8)) for _ in range(3)],
    )


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    unchanged, corrupted = build.corrupted_sets(source, cache, seed=0)
    return cache, unchanged, corrupted, build.sequence_sets(source, cache, seed=0)


def read(examples):
    return [
        (encoded.numpy(), key.numpy().decode(), int(label))
        for encoded, key, label in examples.stream()
    ]


def test_every_image_in_every_set(built):
    _, unchanged, corrupted, sequences = built
    assert tuple(corrupted) == CORRUPTIONS
    for examples in [
        unchanged,
        *(e for severities in corrupted.values() for e in severities.values()),
    ]:
        assert examples.count == 3
        assert [(key, label) for _, key, label in read(examples)] == [
            ("k0", 0),
            ("k1", 1),
            ("k2", 0),
        ]
    for examples, frames in sequences.values():
        keys = [key for _, key, _ in read(examples)]
        assert keys == [
            f"k{i}#{j:03d}" for i in range(3) for j in range(frames)
        ] and examples.count == len(keys)


def test_again_nothing_is_made(source, built, monkeypatch):
    monkeypatch.setattr(build, "write_split", None)
    build.corrupted_sets(source, built[0], seed=0)


def test_a_function_of_seed_and_key(source, built, tmp_path):
    """The same image alone, in another place of another split, is corrupted in the same way.

    With another seed it is not.
    """
    examples = list(records.read_shard(source.paths[0]))
    alone = records.write_split(
        tmp_path / "test",
        "test",
        examples[2:],
        1,
        1,
        kind="labeled",
        label_names=("a", "b"),
        label_offset=1,
    )
    make = {"gaussian_noise-5": lambda image, rng: build._corrupt("gaussian_noise", 5, image, rng)}
    same = read(build._build(alone, tmp_path / "cache", 0, make, "make")["gaussian_noise-5"])
    other = read(build._build(alone, tmp_path / "cache", 1, make, "make")["gaussian_noise-5"])
    expected = read(built[2]["gaussian_noise"][5])
    assert same[0] == expected[2] != other[0]


def test_enlarging_changes_nothing_for_a_model_that_enlarges(source, built):
    """Images of 8 pixels, a network of 16: the way through 32 pixels changes only the rounding."""
    preprocessing = Preprocessing(image_size=16)
    for record, (encoded, _, _) in zip(records.read_shard(source.paths[0]), read(built[1])):
        direct = eval_image(
            protos.parse_example(tf.constant(record))["image/encoded"], preprocessing
        )
        np.testing.assert_allclose(
            eval_image(encoded, preprocessing), tf.clip_by_value(direct, 0, 255), atol=0.51
        )


def test_sizes():
    sizes = {
        (8, 8): (32, 32),
        (20, 40): (32, 64),
        (32, 50): (32, 50),
        (224, 300): (224, 300),
        (448, 600): (224, 300),
    }
    for size, expected in sizes.items():
        assert build.base_image(png(np.zeros([*size, 3], np.uint8))).shape[:2] == expected
    assert (
        build.encode(np.zeros([64, 80, 3], np.uint8))[1:4] == b"PNG"
        and build.encode(np.zeros([65, 80, 3], np.uint8))[:2] == b"\xff\xd8"
    )


def test_decoded_images_kept_in_part(source, tmp_path, monkeypatch):
    whole = [(key, image.tolist()) for key, _, image in build._Images(source)]
    monkeypatch.setattr(build, "KEPT_BYTES", 2 * 32 * 32 * 3)
    images = build._Images(source)
    for _ in range(2):
        assert [(key, image.tolist()) for key, _, image in images] == whole
    assert len(images._kept) == 2


def test_a_damaged_image_is_named(tmp_path):
    source = write(tmp_path / "test", [b"no image"])
    with pytest.raises(InputError, match="image k0 cannot be decoded"):
        build.corrupted_sets(source, tmp_path / "cache", 0)
