"""Corruptions and sequences: seeded, of growing severity, by hand where a closed form exists."""

from __future__ import annotations

import colorsys
import io
import tracemalloc

import numpy as np
import PIL.Image
import pytest
from sklearn import datasets

from evaluation import blur, corruptions, perturbations, weather
from evaluation.robustness import CORRUPTIONS


def photograph(size):
    return np.asarray(
        PIL.Image.fromarray(datasets.load_sample_images().images[0]).resize(
            (size, size), PIL.Image.Resampling.BICUBIC
        )
    )


SMALL, LARGE = photograph(32), photograph(96)
FLAT = np.full([40, 48, 3], 128, np.uint8)


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def distance(image, changed):
    return np.abs(changed.astype(float) - image).mean()


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("image", [SMALL, LARGE[:, :80]], ids=["small", "large"])
def test_every_corruption(corruption, image):
    changed = [
        corruptions.corrupt(image, corruption, severity, rng()) for severity in (1, 2, 3, 4, 5)
    ]
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in changed)
    np.testing.assert_array_equal(corruptions.corrupt(image, corruption, 3, rng()), changed[2])
    # Elastic's first two severities are of another kind than the others in both published tables.
    # The mildest glass blur and defocus hardly change 32 pixels. In the others the fifth severity
    # changes more than the first.
    if corruption not in ("elastic_transform", "glass_blur"):
        assert distance(image, changed[4]) > distance(image, changed[0])
    assert distance(image, changed[4]) > 0.5


@pytest.mark.parametrize(
    "corruption",
    [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "glass_blur",
        "motion_blur",
        "snow",
        "frost",
        "fog",
    ],
)
def test_another_seed_is_another_image(corruption):
    assert not np.array_equal(
        corruptions.corrupt(SMALL, corruption, 5, rng(1)),
        corruptions.corrupt(SMALL, corruption, 5, rng(2)),
    )


def test_noise_has_the_published_strength():
    gray = np.full([200, 200, 3], 128, np.uint8)
    gaussian = corruptions.corrupt(gray, "gaussian_noise", 1, rng()) / 255 - 128 / 255
    assert gaussian.std() == pytest.approx(0.08, rel=0.02)
    small = corruptions.corrupt(gray[:64, :64], "gaussian_noise", 1, rng()) / 255 - 128 / 255
    assert small.std() == pytest.approx(0.04, rel=0.03)
    shot = corruptions.corrupt(gray, "shot_noise", 1, rng()) / 255
    assert shot.std() == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.03)
    impulse = corruptions.corrupt(gray, "impulse_noise", 5, rng())
    assert np.mean(impulse == 0) == pytest.approx(0.135, abs=0.005) and np.mean(
        impulse == 255
    ) == pytest.approx(0.135, abs=0.005)
    assert np.mean(impulse == 128) == pytest.approx(0.73, abs=0.01)


@pytest.mark.parametrize(
    "corruption",
    [
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "pixelate",
        "jpeg_compression",
        "contrast",
    ],
)
def test_what_leaves_a_flat_image_alone(corruption):
    assert (
        distance(FLAT, corruptions.corrupt(FLAT, corruption, 5, rng())) < 1.01
    )  # truncated to whole gray levels


def test_brightness_is_v_of_hsv():
    image = LARGE[::8, ::8] / 255
    expected = [
        [
            colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1))
            for h, s, v in (colorsys.rgb_to_hsv(*p) for p in row)
        ]
        for row in image
    ]
    np.testing.assert_allclose(weather.brighten(image, 0.3), expected, atol=1e-12)
    np.testing.assert_allclose(weather.brighten(np.zeros([1, 1, 3]), 0.25), 0.25)


def test_contrast_and_jpeg_by_hand():
    x = SMALL / 255
    mean = x.mean((0, 1))
    np.testing.assert_array_equal(
        corruptions.corrupt(SMALL, "contrast", 5, rng()), ((x - mean) * 0.15 + mean) * 255 // 1
    )
    buffer = io.BytesIO()
    PIL.Image.fromarray(LARGE).save(buffer, "JPEG", quality=7)
    np.testing.assert_array_equal(
        corruptions.corrupt(LARGE, "jpeg_compression", 5, rng()), np.asarray(PIL.Image.open(buffer))
    )


def test_glass_moves_pixels_no_farther_than_it_says():
    """Tests that without blur, each round gives a pixel the value of one at most `reach` away."""
    ramp = np.broadcast_to(np.arange(40)[None, :, None], (40, 40, 3)) / 255.0
    moved = blur.glass_blur(ramp, (0.0, 2, 1), rng()) * 255
    assert np.abs(moved - ramp * 255).max() > 0
    # Moves come one after another, from the lower right, and may carry a value on. Along the row
    # this goes no farther than by chance.
    assert np.abs(moved - ramp * 255).mean() < 2


def test_frost_and_fog_of_a_square_image_are_the_whole_map_s():
    """Against the formula on a map of the whole plane, cut to a window at the end: bit for bit."""
    x = LARGE / 255
    generator = rng(7)
    top, left = int(generator.integers(256 - 96 + 1)), int(generator.integers(256 - 96 + 1))
    needles = 1 - np.abs(2 * weather.plasma(256, 1.6, generator) - 1)
    texture = (0.35 * weather.plasma(256, 2.5, generator) + 0.65 * needles**3)[
        top : top + 96, left : left + 96
    ]
    texture = (texture - texture.mean()) / texture.std()
    frost = np.clip(np.clip(0.45 + 0.2 * texture, 0, 1)[..., None] * [0.92, 1.0, 1.08], 0, 1)
    np.testing.assert_array_equal(weather.frost(x, (0.7, 0.7), rng(7)), 0.7 * x + 0.7 * frost)
    fog = weather.plasma(128, 1.7, rng(7))[:96, :96, None]
    np.testing.assert_array_equal(
        weather.fog(x, (2.5, 1.7), rng(7)), (x + 2.5 * fog) * x.max() / (x.max() + 2.5)
    )


@pytest.mark.parametrize("corruption", ["frost", "fog"])
def test_a_long_image_costs_memory_by_its_area(corruption):
    image = np.full([64, 4096, 3], 128, np.uint8)
    tracemalloc.start()
    try:
        changed = corruptions.corrupt(image, corruption, 3, rng())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * image.size * 8  # doubles; a map of 4096 × 4096 has 134 MB
    period = {"frost": 128, "fog": 64}[corruption]
    np.testing.assert_array_equal(
        changed[:, :-period], changed[:, period:]
    )  # around the torus, on a flat image


@pytest.mark.parametrize("image", [SMALL[:31], SMALL[..., 0], SMALL.astype(float)])
def test_unusable_images(image):
    with pytest.raises(ValueError, match="32 pixels"):
        corruptions.corrupt(image, "fog", 1, rng())
    with pytest.raises(ValueError, match="severity"):
        corruptions.corrupt(SMALL, "fog", 6, rng())


@pytest.mark.parametrize("perturbation", perturbations.FRAMES)
def test_sequences(perturbation):
    frames = perturbations.sequence(SMALL, perturbation, rng())
    assert len(frames) == perturbations.FRAMES[perturbation]
    assert all(frame.shape == SMALL.shape and frame.dtype == np.uint8 for frame in frames)
    still = {"translate": 7, "rotate": 15, "scale": 15, "brightness": 15, "gaussian_noise": 0}[
        perturbation
    ]
    np.testing.assert_array_equal(frames[still], SMALL)  # the image itself is one of them
    assert all(distance(a, b) > 0 for a, b in zip(frames, frames[1:]))


def test_moves_are_the_ones_they_say():
    frames = perturbations.sequence(SMALL, "translate", rng())
    np.testing.assert_array_equal(frames[9][:, 2:], SMALL[:, :-2])  # two to the right
    assert not frames[9][:, :2].any()
    np.testing.assert_array_equal(frames[0][:, :-7], SMALL[:, 7:])
    smaller = perturbations.sequence(SMALL, "scale", rng())[
        0
    ]  # 0.7: what was at 5 from the middle is at 3.5, and the border is black
    assert not smaller[:4].any() and not smaller[:, :4].any() and smaller[16, 16].any()
    quarter = perturbations._moved(SMALL / 255, angle=90)
    np.testing.assert_allclose(
        quarter[1:-1, 1:-1], np.rot90(SMALL / 255, -1)[1:-1, 1:-1], atol=1e-9
    )  # clockwise
    noise = (
        np.stack(perturbations.sequence(FLAT[:40, :40], "gaussian_noise", rng()))[1:] / 255
        - 128 / 255
    )
    assert noise.std() == pytest.approx(0.02, rel=0.05)
