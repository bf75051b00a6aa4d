"""The operations of RandAugment and AutoAugment against PIL, plain numpy or TensorFlow Addons."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from data.image_ops import FILL, OPS, affine, cutout

RANDOM = np.random.Generator(np.random.PCG64(0)).integers(0, 256, [24, 31, 3], dtype=np.uint8)
PHOTO = np.asarray(Image.fromarray(load_sample_image("china.jpg")).resize((80, 53)))
DARK = (PHOTO // 3 + 20).astype(np.uint8)
FLAT = np.full([9, 9, 3], (0, 77, 255), np.uint8)
IMAGES = {"random": RANDOM, "photo": PHOTO, "dark": DARK, "flat": FLAT}
FACTORS = (0.0, 0.1, 0.55, 1.0, 1.45, 1.9, 4.96)


def ours(name, image, *values):
    return OPS[name](tf.constant(image), *values).numpy()


def enhanced(enhancer, image, factor):
    return np.asarray(getattr(ImageEnhance, enhancer)(Image.fromarray(image)).enhance(factor))


@pytest.fixture(params=IMAGES)
def image(request):
    return IMAGES[request.param]


# Operations against PIL


def test_operations_without_argument_are_pils(image):
    pil = Image.fromarray(image)
    np.testing.assert_array_equal(ours("Invert", image), np.asarray(ImageOps.invert(pil)))
    # PIL's table is in float64, the release's arithmetic in float32: an integer may be truncated to
    # the one below.
    difference = ours("AutoContrast", image).astype(int) - np.asarray(ImageOps.autocontrast(pil))
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.02


def unusual_images():
    """Returns images that reach every branch of Equalize, by name."""
    rng = np.random.Generator(np.random.PCG64(2))
    sparse = rng.choice(
        np.array([3, 4, 200, 255], np.uint8), [17, 40, 3], p=[0.9, 0.06, 0.03, 0.01]
    )
    channels = PHOTO.copy()
    channels[..., 1], channels[..., 2] = 255, PHOTO[..., 2] // 128 * 77  # one value, and two
    tiny = RANDOM[:3, :4]  # fewer pixels than gray levels: nothing to spread
    uneven = np.full([10, 51, 3], 9, np.uint8)
    uneven[5:, :, :] = rng.integers(
        0, 9, [5, 51, 3]
    )  # a step of 1 and a rest of 254: the table would pass 255
    return {**IMAGES, "sparse": sparse, "channels": channels, "tiny": tiny, "uneven": uneven}


def test_equalize_is_pils():
    for name, image in unusual_images().items():
        np.testing.assert_array_equal(
            ours("Equalize", image), np.asarray(ImageOps.equalize(Image.fromarray(image))), name
        )


def test_equalize_is_tensorflow_addons():
    tfa = pytest.importorskip(
        "tensorflow_addons", reason="tensorflow-addons exists for TensorFlow 2.15 only"
    )  # takes seconds
    for name, image in unusual_images().items():
        np.testing.assert_array_equal(ours("Equalize", image), tfa.image.equalize(image), name)


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pils(image, bits):
    np.testing.assert_array_equal(
        ours("Posterize", image, bits), np.asarray(ImageOps.posterize(Image.fromarray(image), bits))
    )


@pytest.mark.parametrize("threshold", [0, 1, 100, 128, 255, 256])
def test_solarize_is_pils(image, threshold):
    np.testing.assert_array_equal(
        ours("Solarize", image, threshold),
        np.asarray(ImageOps.solarize(Image.fromarray(image), threshold)),
    )


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancing_is_pils(image, name, factor):
    np.testing.assert_array_equal(ours(name, image, factor), enhanced(name, image, factor))


@pytest.mark.parametrize("addition", [0, 1, 110, 128, 297])
def test_solarize_add(image, addition):
    expected = np.where(image < 128, np.minimum(image.astype(int) + addition, 255), image)
    np.testing.assert_array_equal(ours("SolarizeAdd", image, addition), expected)


def pil_affine(image, a, b, c, d, e, f):
    # PIL's coordinates count from pixel corners: its (0.5, 0.5) is the center that `affine` calls
    # (0, 0).
    matrix = (a, b, c + 0.5 - 0.5 * a - 0.5 * b, d, e, f + 0.5 - 0.5 * d - 0.5 * e)
    pil = Image.fromarray(image)
    return np.asarray(
        pil.transform(
            pil.size,
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.NEAREST,
            fillcolor=(FILL,) * 3,
        )
    )


@pytest.mark.parametrize("level", [-0.8137, -0.1037, 0.0, 0.3019])
def test_geometry_is_pils(image, level):
    for name, matrix in {
        "ShearX": (1, level, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, level, 1, 0),
        "TranslateX": (1, 0, 20 * level, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, 20 * level),
    }.items():
        value = 20 * level if name.startswith("Translate") else level
        np.testing.assert_array_equal(ours(name, image, value), pil_affine(image, *matrix), name)


@pytest.mark.parametrize("degrees", [-81.0, -15.0, 0.0, 7.3, 90.0, 180.0])
def test_rotate_turns_about_the_center_as_pil_does(image, degrees):
    side = min(image.shape[:2])
    image = (
        image[:side, :side] if degrees == 90.0 else image
    )  # else every point of a 24×31 image falls half-way between two pixels
    expected = np.asarray(
        Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST, fillcolor=(FILL,) * 3)
    )
    differs = (ours("Rotate", image, degrees) != expected).any(axis=-1)
    assert (
        differs.mean() < 0.02
    )  # half-way between two pixels, float32 and PIL's fixed point may choose differently


def test_nearest_rounds_half_away_from_zero():
    row = np.tile(np.arange(10, 60, 10, dtype=np.uint8)[None, :, None], [1, 1, 3])
    assert ours("TranslateX", row, 0.5)[0, :, 0].tolist() == [20, 30, 40, 50, FILL]
    assert ours("TranslateX", row, -0.5)[0, :, 0].tolist() == [
        FILL,
        20,
        30,
        40,
        50,
    ]  # −0.5 is outside, 0.5 is pixel 1


@pytest.mark.parametrize("name", ["random", "photo"])
def test_sampling_is_tensorflows_transform(name):
    """Bit by bit, in float32's own rounding: at halves, of either sign, and far outside."""
    image = tf.constant(IMAGES[name])
    matrices = np.random.Generator(np.random.PCG64(1)).uniform(-2, 2, [40, 6]).astype(
        np.float32
    ) * [1, 1, 30, 1, 1, 30]
    matrices[::2] = np.round(matrices[::2] * 4) / 4  # many coordinates are halves
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.tile(image[tf.newaxis], [40, 1, 1, 1]),
        transforms=np.pad(matrices, [(0, 0), (0, 2)]).astype(np.float32),
        output_shape=image.shape[:2],
        fill_value=float(FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )
    for matrix, pixels in zip(matrices.astype(np.float32), expected):
        np.testing.assert_array_equal(affine(image, *matrix), pixels)


@pytest.mark.parametrize(
    "half_size, center", [(0, (0.5, 0.5)), (3, (0.5, 0.5)), (5, (0.0, 0.99)), (40, (0.3, 0.3))]
)
def test_cutout_fills_a_clipped_square(image, half_size, center):
    row, column = int(center[0] * image.shape[0]), int(center[1] * image.shape[1])
    expected = image.copy()
    expected[
        max(row - half_size, 0) : row + half_size, max(column - half_size, 0) : column + half_size
    ] = FILL
    np.testing.assert_array_equal(ours("Cutout", image, half_size, tf.constant(center)), expected)
    floats = cutout(tf.constant(image, tf.float32), half_size, tf.constant(center))
    np.testing.assert_array_equal(floats, expected)
