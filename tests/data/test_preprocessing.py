"""Encoded images to pixels: decoding, the legacy resize, crops, order of noise, and seeds."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_image

from cli.errors import InputError
from data.preprocessing import (
    Preprocessing,
    central_box,
    decode,
    eval_image,
    random_box,
    resize,
    train_image,
)

PHOTO = np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((120, 90)))
SMALL = PHOTO[:16, :16]


def encode(image, file_format="PNG", mode=None, **options):
    pil = Image.fromarray(image)
    buffer = io.BytesIO()
    (pil.convert(mode) if mode else pil).save(buffer, file_format, **options)
    return buffer.getvalue()


def seed(index):
    return tf.constant([index, 11], tf.int64)


# Decoding and resizing


@pytest.mark.parametrize("file_format", ["PNG", "BMP"])
def test_lossless_formats(file_format):
    np.testing.assert_array_equal(decode(encode(PHOTO, file_format)), PHOTO)


@pytest.mark.parametrize(
    "file_format, mode",
    [
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("BMP", "L"),
        ("BMP", "RGBA"),
    ],
)
def test_other_modes_get_three_channels(file_format, mode):
    expected = Image.fromarray(PHOTO).convert(mode).convert("RGB")
    np.testing.assert_array_equal(decode(encode(PHOTO, file_format, mode)), expected)


def test_16_bits_keep_the_upper_8():
    wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    np.testing.assert_array_equal(
        decode(encode(wide)), np.repeat((wide >> 8)[..., None], 3, axis=-1)
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode):
    encoded = encode(PHOTO, "JPEG", mode, quality=95)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert (
        np.abs(decode(encoded).numpy().astype(int) - expected).mean() < 3
    )  # JPEG decoders differ by a gray level or so


def test_gif_gives_its_first_frame():
    frames = [Image.fromarray(np.full([10, 12, 3], value, np.uint8)) for value in (50, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(buffer.getvalue()), np.full([10, 12, 3], 50))


@pytest.mark.parametrize(
    "damaged", [b"", b"not an image", encode(PHOTO)[:200], encode(PHOTO, "JPEG")[:300]]
)
def test_damaged_images_are_errors(damaged):
    for style in ("small", "imagenet"):
        with pytest.raises(tf.errors.InvalidArgumentError):
            eval_image(damaged, Preprocessing(16, style))


@pytest.mark.parametrize("size", [7, 16, 64, 200])
def test_resize_is_tensorflow_1s_bicubic(size):
    expected = tf.compat.v1.image.resize_bicubic(PHOTO[None], [size, size])[0]
    np.testing.assert_array_equal(resize(tf.constant(PHOTO), size), expected)
    assert np.abs(tf.image.resize(PHOTO, [size, size], "bicubic") - expected).max() > 5


def test_resize_to_the_same_size_changes_nothing():
    resized = resize(tf.constant(SMALL), 16)
    assert resized.dtype == tf.float32
    np.testing.assert_array_equal(resized, SMALL)


# Crops


@pytest.mark.parametrize(
    # side int(S / (S + P) · short side), centered; an odd pixel goes above and to the left
    "image_size, padding, height, width, expected",
    [
        (224, 32, 375, 500, (24, 86, 328, 328)),
        (224, 32, 256, 256, (16, 16, 224, 224)),
        (475, 32, 375, 500, (12, 75, 351, 351)),
        (475, 32, 507, 600, (16, 63, 475, 475)),
        (600, 32, 375, 500, (10, 72, 356, 356)),
        (800, 32, 500, 375, (70, 8, 360, 360)),
        (224, 32, 1, 9, (0, 4, 1, 1)),
        (32, 5, 28, 28, (2, 2, 24, 24)),
        (32, 5, 37, 37, (3, 3, 32, 32)),
        (32, 0, 28, 30, (0, 1, 28, 28)),
    ],
)
def test_central_box(image_size, padding, height, width, expected):
    assert (
        tuple(central_box(tf.constant([height, width, 3]), image_size, padding).numpy()) == expected
    )


@pytest.mark.parametrize("image_size", [224, 240, 260, 300, 380, 456, 475, 528, 600, 672, 800])
def test_central_box_is_the_releases_float32(image_size):
    short = np.arange(2, 5000)
    release = (np.float32(image_size / (image_size + 32)) * short.astype(np.float32)).astype(
        np.int32
    )
    boxes = tf.map_fn(
        lambda side: central_box(tf.stack([side, side + 7]), image_size)[2],
        tf.constant(short[::97], tf.int32),
    )
    np.testing.assert_array_equal(short * image_size // (image_size + 32), release)
    np.testing.assert_array_equal(boxes, release[::97])


def test_random_box_keeps_to_its_ranges():
    height, width = 375, 500
    boxes = tf.data.Dataset.range(600).map(
        lambda index: random_box(tf.constant([height, width, 3]), 224, tf.stack([index, 1]))
    )
    boxes = np.array(list(boxes.as_numpy_iterator()))
    top, left, heights, widths = boxes.T
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + heights <= height).all()
        and (left + widths <= width).all()
    )
    area, aspect = heights * widths / (height * width), widths / heights
    assert 0.078 < area.min() < 0.12 and 0.8 < area.max() <= 1.0  # whole pixels: a little past 0.08
    assert 0.74 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.345
    assert len(np.unique(boxes, axis=0)) > 590


def test_random_box_falls_back_to_the_central_box():
    shape = tf.constant([20, 500, 3])  # no box of aspect ≤ 4/3 has 8 % of this
    for index in range(5):
        np.testing.assert_array_equal(random_box(shape, 224, seed(index)), central_box(shape, 224))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_imagenet_images_are_crops_of_the_whole(file_format):
    encoded = encode(PHOTO, file_format)
    whole = decode(encoded)

    def cropped(box):
        top, left, height, width = box.numpy()
        return resize(whole[top : top + height, left : left + width], 32)

    p = Preprocessing(32, "imagenet")
    np.testing.assert_array_equal(eval_image(encoded, p), cropped(central_box(tf.shape(whole), 32)))
    np.testing.assert_array_equal(
        eval_image(encoded, dataclasses.replace(p, crop_padding=5)),
        cropped(central_box(tf.shape(whole), 32, 5)),
    )
    images = []
    for index in range(6):
        expected = cropped(
            random_box(tf.shape(whole), 32, tf.random.split(seed(index), 4)[0])
        ).numpy()
        images.append(train_image(encoded, seed(index), p).numpy())
        if file_format == "JPEG":  # the color of the outermost pixels may differ
            assert np.abs(images[-1] - expected).mean() < 0.5
            images[-1], expected = images[-1][2:-2, 2:-2], expected[2:-2, 2:-2]
        np.testing.assert_array_equal(images[-1], expected)
    assert len({image.tobytes() for image in images}) > 3


# Noise

NOISY = Preprocessing(
    16,
    pad=2,
    flip=True,
    randaugment_layers=2,
    randaugment_magnitude=7,
    translate_const=4.0,
    extra_cutout=2,
)
NOISY_IMAGENET = Preprocessing(
    24,
    "imagenet",
    flip=True,
    randaugment_layers=2,
    randaugment_magnitude=7,
    randaugment_mode="monotone",
)


def test_without_noise_training_sees_what_evaluation_sees():
    for image in (SMALL, PHOTO, PHOTO[:8, :8]):
        p = Preprocessing(16)
        np.testing.assert_array_equal(
            train_image(encode(image), seed(0), p), eval_image(encode(image), p)
        )
        np.testing.assert_array_equal(
            eval_image(encode(image), NOISY), eval_image(encode(image), p)
        )


def test_pad_and_crop_takes_every_window_of_the_mirrored_image():
    p = Preprocessing(16, pad=2)
    padded = np.pad(SMALL, [[2, 2], [2, 2], [0, 0]], "reflect")
    windows = {
        padded[i : i + 16, j : j + 16].astype(np.float32).tobytes(): (i, j)
        for i in range(5)
        for j in range(5)
    }
    images = tf.data.Dataset.range(400).map(
        lambda index: train_image(encode(SMALL), tf.stack([index, 0]), p)
    )
    drawn = [windows[image.tobytes()] for image in images.as_numpy_iterator()]
    counts = np.array([drawn.count(window) for window in windows.values()])
    assert ((counts - 16) ** 2 / 16).sum() < 51.2  # 24 degrees of freedom, p = 0.001


def test_flip_mirrors_half_of_the_images():
    images = tf.data.Dataset.range(400).map(
        lambda index: train_image(encode(SMALL), tf.stack([index, 0]), Preprocessing(16, flip=True))
    )
    flipped = 0
    for image in images.as_numpy_iterator():
        mirrored = np.array_equal(image, SMALL[:, ::-1])
        assert mirrored or np.array_equal(image, SMALL)
        flipped += mirrored
    assert abs(flipped - 200) < 40  # 4 standard deviations


def test_extra_cutout_fills_a_square_before_the_crop():
    image = np.full([16, 16, 3], 9, np.uint8)
    areas = set()
    for index in range(40):
        cut = train_image(encode(image), seed(index), Preprocessing(16, extra_cutout=3)).numpy()
        assert set(np.unique(cut)) == {9, 128}
        areas.add(int((cut == 128).all(-1).sum()))
    assert max(areas) == 36 and min(areas) < 36  # a square of side 6, clipped at the border
    # The crop comes later and moves the square. With the border mirrored, it may show it twice.
    both = [
        (
            train_image(encode(image), seed(i), Preprocessing(16, extra_cutout=3, pad=6)).numpy()
            == 128
        )
        .all(-1)
        .sum()
        for i in range(40)
    ]
    assert max(both) > 36


def test_each_kind_of_noise_has_its_own_seed():
    black = encode(np.zeros([16, 16, 3], np.uint8))
    cut = train_image(black, seed(5), Preprocessing(16, extra_cutout=3)).numpy()
    flipped = train_image(black, seed(5), Preprocessing(16, extra_cutout=3, flip=True)).numpy()
    mirrored = train_image(encode(SMALL), seed(5), Preprocessing(16, flip=True)).numpy()
    expected = cut if np.array_equal(mirrored, SMALL) else cut[:, ::-1]
    np.testing.assert_array_equal(flipped, expected)
    rotated = Preprocessing(16, randaugment_layers=1, randaugment_ops=("Invert",), extra_cutout=3)
    np.testing.assert_array_equal(train_image(black, seed(5), rotated) == 128, cut == 128)


@pytest.mark.parametrize(
    "p, image",
    [
        (NOISY, encode(SMALL)),
        (NOISY_IMAGENET, encode(PHOTO, "JPEG")),
        (NOISY_IMAGENET, encode(PHOTO)),
    ],
)
def test_a_seed_gives_the_same_pixels_eagerly_and_in_a_dataset(p, image):
    def example(index):
        return train_image(image, tf.stack([index, 11]), p)

    graph = np.stack(
        list(tf.data.Dataset.range(24).map(example, num_parallel_calls=2).as_numpy_iterator())
    )
    eager = np.stack([train_image(image, seed(index), p) for index in range(24)])
    np.testing.assert_array_equal(graph, eager)
    assert graph.shape == (24, p.image_size, p.image_size, 3) and graph.dtype == np.float32
    assert graph.min() >= 0 and graph.max() <= 255
    assert len({pixels.tobytes() for pixels in graph}) > 20


def test_randaugment_sees_clipped_and_truncated_pixels():
    edges = np.kron(np.indices([6, 6]).sum(axis=0) % 2, np.ones([3, 3], int)).astype(np.uint8)[
        ..., None
    ] * np.uint8([255, 255, 255])
    plain = train_image(encode(edges), seed(0), Preprocessing(24)).numpy()
    assert plain.min() < -5 and plain.max() > 260  # what bicubic leaves
    identity = Preprocessing(24, randaugment_layers=1, randaugment_ops=("Rotate",))  # M = 0
    np.testing.assert_array_equal(
        train_image(encode(edges), seed(0), identity), np.floor(np.clip(plain, 0, 255))
    )


def test_static_shapes():
    for p in (NOISY, NOISY_IMAGENET):
        graph = tf.function(
            lambda encoded, key, p=p: (train_image(encoded, key, p), eval_image(encoded, p))
        )
        specs = graph.get_concrete_function(
            tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64)
        ).structured_outputs
        assert [spec.shape.as_list() for spec in specs] == [[p.image_size, p.image_size, 3]] * 2


# Settings


def test_settings_survive_json():
    for p in (
        NOISY,
        dataclasses.replace(
            NOISY_IMAGENET, randaugment_ops=("Rotate", "Color"), mean=(1.0, 2.0, 3.0)
        ),
    ):
        restored = Preprocessing.from_dict(json.loads(json.dumps(p.to_dict())))
        assert restored == p and hash(restored) == hash(p)


@pytest.mark.parametrize(
    "values, words",
    [
        ({}, "image_size is not set"),
        ({"image_size": None}, "image_size is not set"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 8, "stile": "small"}, "stile is not a setting; did you mean style"),
        ({"image_size": 8, "style": "tiny"}, "'tiny'; it can be small or imagenet"),
        ({"image_size": 8, "pad": 8}, "pad is 8"),
        ({"image_size": 8, "extra_cutout": -1}, "extra_cutout is -1"),
        ({"image_size": 8, "style": "imagenet", "pad": 1}, "small style"),
        ({"image_size": 8, "std": (1.0, 0.0, 1.0)}, "std"),
        ({"image_size": 8, "randaugment_ops": ("Flip",)}, "Flip"),
        ({"image_size": 8, "randaugment_mode": "wild"}, "wild"),
        (
            {"image_size": 8, "randaugment_magnitude": -1.0},
            r"magnitude is -1\.0; it must be at least 0",
        ),
    ],
)
def test_impossible_settings(values, words):
    with pytest.raises(InputError, match=words):
        Preprocessing.from_dict(values)
