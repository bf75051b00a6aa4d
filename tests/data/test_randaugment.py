"""RandAugment: the release's arithmetic, M in both modes, and how operations are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import randaugment
from data.image_ops import OPS
from data.randaugment import arguments, rand_augment
from data.settings import RANDAUGMENT_MODES
from tests.data.test_image_ops import IMAGES, PHOTO, RANDOM


@pytest.fixture(params=IMAGES)
def image(request):
    return IMAGES[request.param]


# The release's arithmetic


@pytest.mark.parametrize(
    "magnitude, rotate, bits, threshold, addition, factor, shear, translate, half_size",
    [
        (5, 15, 2, 128, 55, 1.00, 0.15, 50, 20),
        (6, 18, 2, 153, 66, 1.18, 0.18, 60, 24),
        (12, 36, 4, 307 - 256, 132, 2.26, 0.36, 120, 48),
        (15, 45, 6, 384 - 256, 165, 2.80, 0.45, 150, 60),
        (18, 54, 7, 460 - 256, 198, 3.34, 0.54, 180, 72),
        (24, 72, 1, 614 - 512, 264, 4.42, 0.72, 240, 96),  # 9 bits: wraps, and leaves the top one
        (27, 81, 1, 691 - 512, 297, 4.96, 0.81, 270, 108),
    ],
)
def test_reference_magnitudes(
    magnitude, rotate, bits, threshold, addition, factor, shear, translate, half_size
):
    expected = {
        **dict.fromkeys(["AutoContrast", "Equalize", "Invert"], ()),
        **dict.fromkeys(["Color", "Contrast", "Brightness", "Sharpness"], (factor,)),
        **dict.fromkeys(["ShearX", "ShearY"], (shear, -shear)),
        **dict.fromkeys(["TranslateX", "TranslateY"], (translate, -translate)),
        "Rotate": (rotate, -rotate),
        "Posterize": (bits,),
        "Solarize": (threshold,),
        "SolarizeAdd": (addition,),
        "Cutout": (half_size,),
    }
    values = arguments(magnitude, "reference")
    assert values.keys() == OPS.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value), name


def one(name, image, magnitude, mode="reference", seed=(1, 2), **options):
    return rand_augment(
        tf.constant(image), tf.constant(seed), 1, magnitude, ops=(name,), mode=mode, **options
    ).numpy()


def released(name, image, magnitude):
    """Applies the release's formulas in TensorFlow, in its order."""
    level = magnitude / 10
    gray = tf.image.rgb_to_grayscale(image)
    values = tf.cast(image, tf.float32)
    if name == "AutoContrast":
        low, high = tf.reduce_min(values, [0, 1]), tf.reduce_max(values, [0, 1])
        scale = 255.0 / (high - low)
        stretched = tf.cast(tf.clip_by_value(values * scale + -low * scale, 0.0, 255.0), tf.uint8)
        return tf.where(high > low, stretched, image)
    if name == "Posterize":
        shift = tf.constant((8 - int(level * 4)) % 256, tf.uint8)
        return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)
    if name == "Solarize":
        return tf.where(image < tf.constant(int(level * 256) % 256, tf.uint8), image, 255 - image)
    if name == "SolarizeAdd":
        return tf.where(
            image < 128,
            tf.cast(
                tf.clip_by_value(tf.cast(image, tf.int64) + int(level * 110), 0, 255), tf.uint8
            ),
            image,
        )
    if name == "Color":
        degenerate = tf.image.grayscale_to_rgb(gray)
    elif name == "Contrast":
        counts = tf.histogram_fixed_width(tf.cast(gray, tf.int32), [0, 255], 256)
        degenerate = tf.cast(
            tf.clip_by_value(tf.reduce_sum(tf.cast(counts, tf.float32)) / 256.0, 0.0, 255.0),
            tf.uint8,
        )
    elif name == "Brightness":
        degenerate = tf.zeros_like(image)
    else:
        kernel = tf.tile(
            tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[..., tf.newaxis, tf.newaxis]
            / 13.0,
            [1, 1, 3, 1],
        )
        smooth = tf.nn.depthwise_conv2d(values[tf.newaxis], kernel, [1, 1, 1, 1], "VALID")[0]
        smooth = tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8)
        degenerate = tf.concat(
            [image[:1], tf.concat([image[1:-1, :1], smooth, image[1:-1, -1:]], 1), image[-1:]], 0
        )
    degenerate, factor = tf.cast(degenerate, tf.float32), level * 1.8 + 0.1
    return tf.cast(
        tf.clip_by_value(degenerate + factor * (values - degenerate), 0.0, 255.0), tf.uint8
    )


RECIPES = (5, 6, 12, 15, 16, 17, 18, 24, 27, 28)


@pytest.mark.parametrize(
    "name",
    ["AutoContrast", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness"],
)
def test_reference_is_the_release_bit_by_bit(name, image):
    for magnitude in (0, 1.5, 2.5, 10, 20, 22, 23, *RECIPES):
        np.testing.assert_array_equal(
            one(name, image, magnitude),
            released(name, tf.constant(image), magnitude),
            f"M = {magnitude}",
        )


def test_reference_sharpness_is_the_release_but_for_whole_quotients(image):
    """Tests that if 13 divides the sum, the release's smoothed image may be one level lower.

    The blend multiplies that by |1 - factor|.
    """
    values, (height, width) = image.astype(int), image.shape[:2]
    total = (
        sum(values[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
        + 4 * values[1:-1, 1:-1]
    )
    whole = np.pad(total % 13 == 0, [(1, 1), (1, 1), (0, 0)])
    for magnitude in RECIPES:
        difference = (
            one("Sharpness", image, magnitude).astype(int)
            - released("Sharpness", tf.constant(image), magnitude).numpy()
        )
        assert not difference[~whole].any()
        assert np.abs(difference).max() <= np.ceil(abs(0.18 * magnitude - 0.9))  # 4 at M = 27


@pytest.mark.parametrize("side, mean", [(16, 1), (32, 4), (224, 196), (256, 255), (300, 255)])
def test_reference_contrast_blends_with_the_area(side, mean):
    image = np.resize(PHOTO, [side, side, 3])
    factor = np.float32(0.15 * 1.8 + 0.1)
    expected = (mean + factor * (image.astype(np.float32) - mean)).astype(np.uint8)
    np.testing.assert_array_equal(one("Contrast", image, 1.5), expected)


# The monotone mode


@pytest.mark.parametrize("name", OPS)
def test_monotone_zero_is_the_identity(name):
    for image in (RANDOM, PHOTO):
        np.testing.assert_array_equal(one(name, image, 0, "monotone"), image)


@pytest.mark.parametrize(
    "name", [name for name in OPS if not name.startswith(("Rotate", "Shear", "Translate"))]
)
@pytest.mark.parametrize("seed", [(0, 0), (1, 0), (2, 0), (3, 0)])
def test_monotone_severity_never_falls(name, seed):
    magnitudes = (0, 1, 2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 30)
    change = [
        np.abs(one(name, PHOTO, m, "monotone", seed).astype(int) - PHOTO).mean() for m in magnitudes
    ]
    assert (np.diff(change) >= 0).all(), change
    assert change[-1] > 0


def test_monotone_arguments_grow_and_stop_at_sensible_ends():
    values = [arguments(m, "monotone") for m in range(0, 41)]
    for name in ("Rotate", "ShearX", "TranslateY", "Cutout", "SolarizeAdd", "Color"):
        assert (np.diff([v[name][0] for v in values]) >= 0).all(), name
    assert [v["Posterize"][0] for v in values[::5]] == [8, 6, 4, 2, 1, 1, 1, 1, 1]
    assert [v["Solarize"][0] for v in values[::5]] == [256, 128, 0, 0, 0, 0, 0, 0, 0]
    assert values[5]["Brightness"] == pytest.approx((1.45, 0.55)) and values[27][
        "Brightness"
    ] == pytest.approx((3.43, 0.1))
    assert max(v["SolarizeAdd"][0] for v in values) == 128


def test_monotone_never_erases_the_image():
    for seed in range(20):
        for name, kept in (("TranslateX", 0.5), ("TranslateY", 0.5), ("Cutout", 0.7)):
            image = np.full([32, 48, 3], 200, np.uint8)
            assert (one(name, image, 30, "monotone", (seed, 0)) == 200).mean() >= kept


# Drawing


def stubbed(monkeypatch, stub, count, layers, mode="reference", **options):
    """Runs ``stub(name index, image, arguments…)`` instead of the operations.

    The seeds are 0 … count − 1.
    """
    table = {
        name: lambda image, *rest, index=index: stub(index, image, *rest)
        for index, name in enumerate(OPS)
    }
    monkeypatch.setitem(randaugment._MODE_OPS, mode, table)

    def draw(index):
        return rand_augment(
            tf.zeros([1, 1, 3], tf.uint8), tf.stack([index, 5]), layers, 10, mode=mode, **options
        )[0, 0, 0]

    return np.array(list(tf.data.Dataset.range(count).map(draw).as_numpy_iterator()))


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def test_operations_of_two_layers_are_uniform_and_independent(monkeypatch):
    drawn = stubbed(monkeypatch, lambda index, image, *_: image * 16 + index, 8000, 2)
    pairs = np.bincount(drawn, minlength=256).reshape(16, 16)
    assert (
        chi_square(pairs.sum(axis=0)) < 37.7 and chi_square(pairs.sum(axis=1)) < 37.7
    )  # 15 degrees of freedom, p = 0.001
    assert chi_square(pairs) < 330.5  # 255 degrees of freedom, p = 0.001


def test_only_the_named_operations_are_drawn(monkeypatch):
    names = list(OPS)
    drawn = stubbed(
        monkeypatch,
        lambda index, image, *_: image + index,
        600,
        1,
        ops=("Rotate", "Color", "Cutout"),
    )
    counts = np.bincount(drawn, minlength=16)
    assert {names[i] for i in np.flatnonzero(counts)} == {"Rotate", "Color", "Cutout"}
    assert chi_square(counts[counts > 0]) < 13.8  # 2 degrees of freedom, p = 0.001


def test_operations_of_meta_pseudo_labels_are_applied_with_one_probability_an_image(monkeypatch):
    assert randaugment.TABLES["meta_pseudo_labels"].ops == tuple(
        name for name in OPS if name != "SolarizeAdd"
    )
    applied = stubbed(
        monkeypatch, lambda index, image, *_: image + 1, 4000, 6, table="meta_pseudo_labels"
    )
    # Of 6 draws with p ~ U(0.2, 0.8), the mean is 6·0.5. The variance is 6·E[p(1−p)] + 36·Var[p] =
    # 6·0.22 + 36·0.03.
    assert abs(applied.mean() - 3.0) < 4 * np.sqrt(2.4 / 4000)
    # With a probability drawn for each operation it would be 1.5.
    assert abs(applied.var() - 2.4) < 0.2


def test_tables_draw_the_same_but_for_what_is_left_out():
    """Tests that the table with a probability changes nothing else of the drawing.

    That holds if every operation is applied.
    """
    for seed in range(6):
        options = {"ops": ("Rotate", "Color", "Cutout"), "translate_const": 20, "cutout_const": 10}
        always = rand_augment(tf.constant(PHOTO), tf.constant([seed, 0]), 1, 9, **options).numpy()
        sometimes = rand_augment(
            tf.constant(PHOTO), tf.constant([seed, 0]), 1, 9, table="meta_pseudo_labels", **options
        ).numpy()
        assert (sometimes == always).all() or (sometimes == PHOTO).all()


@pytest.mark.parametrize("mode, middle", [("reference", 0.0), ("monotone", 1.0)])
def test_directions_are_drawn_evenly_and_apart_from_the_operation(monkeypatch, mode, middle):
    two_sided = [i for i, name in enumerate(OPS) if len(arguments(10, mode)[name]) == 2]

    def stub(index, image, *rest):
        if index not in two_sided:
            return image
        limit = (
            middle if list(OPS)[index] in ("Color", "Contrast", "Brightness", "Sharpness") else 0.0
        )
        return image + tf.cast(2 * index + 100 + tf.cast(rest[0] > limit, tf.int32), tf.uint8)

    drawn = stubbed(monkeypatch, stub, 4000, 1, mode)
    for index in two_sided:
        up, down = (drawn == 2 * index + 101).sum(), (drawn == 2 * index + 100).sum()
        assert abs(up - down) < 4 * np.sqrt(up + down), index  # 4 standard deviations
        assert up + down > 150


@pytest.mark.parametrize("mode", RANDAUGMENT_MODES)
def test_eager_and_dataset_agree_and_seeds_differ(mode):
    def augment(index):
        return rand_augment(
            tf.constant(PHOTO),
            tf.stack([index, 3]),
            2,
            9,
            mode=mode,
            translate_const=20,
            cutout_const=10,
        )

    graph = np.stack(
        list(tf.data.Dataset.range(48).map(augment, num_parallel_calls=2).as_numpy_iterator())
    )
    eager = np.stack([augment(tf.constant(index, tf.int64)) for index in range(48)])
    np.testing.assert_array_equal(graph, eager)
    assert graph.dtype == np.uint8
    assert len({image.tobytes() for image in graph}) > 40


@pytest.mark.parametrize("mode, magnitude", [("reference", 27), ("monotone", 5)])
def test_every_operation_compiles_to_the_same_pixels(mode, magnitude):
    """XLA tends to round once where TensorFlow's kernels round a product and then a sum.

    The factors here are, in float32, above their decimals.
    """
    operations = [randaugment.operation(name, magnitude, mode, 5.0, 2.0) for name in OPS]
    image = tf.constant(PHOTO[10:34, 20:40])

    def each(image, draw):
        return tf.stack([operation(image, draw) for operation in operations])

    compiled = tf.function(each, jit_compile=True)
    for draw in ([0.0, 0.2, 0.4, 0.9], [0.0, 0.8, 0.01, 0.5]):
        for name, found, expected in zip(
            OPS, compiled(image, tf.constant(draw)), each(image, tf.constant(draw))
        ):
            np.testing.assert_array_equal(found, expected, name)


def test_drawing_compiles():
    options = {
        "table": "meta_pseudo_labels",
        "ops": ("Equalize", "Cutout", "TranslateX", "Color"),
        "translate_const": 5,
        "cutout_const": 4,
    }

    def augment(image, seed):
        return rand_augment(image, seed, 2, 17, **options)

    compiled = tf.function(augment, jit_compile=True)
    for seed in range(8):
        inputs = tf.constant(PHOTO[10:34, 20:40]), tf.constant([seed, 7])
        np.testing.assert_array_equal(compiled(*inputs), augment(*inputs))


@pytest.mark.parametrize("mode", RANDAUGMENT_MODES)
def test_unknown_sizes(mode):
    @tf.function(
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int32)]
    )
    def augment(image, seed):
        return rand_augment(image, seed, 3, 8, mode=mode)

    for seed in range(10):
        for image in (RANDOM, PHOTO[:8, :8]):
            expected = rand_augment(tf.constant(image), tf.constant([seed, 0]), 3, 8, mode=mode)
            np.testing.assert_array_equal(augment(image, tf.constant([seed, 0])), expected)


def test_no_layers_is_the_identity():
    np.testing.assert_array_equal(
        rand_augment(tf.constant(PHOTO), tf.constant([0, 0]), 0, 27), PHOTO
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ops": ("Rotat",)}, "Rotat"),
        ({"mode": "sane"}, "sane"),
        ({"num_layers": -1}, "-1"),
        ({"magnitude": -2}, "-2"),
        ({"table": "uda"}, "uda"),
        ({"table": "meta_pseudo_labels", "ops": ("SolarizeAdd",)}, "SolarizeAdd"),
    ],
)
def test_impossible_settings(change, words):
    with pytest.raises(InputError, match=words):
        rand_augment(
            tf.constant(PHOTO), tf.constant([0, 0]), **{"num_layers": 1, "magnitude": 1, **change}
        )
