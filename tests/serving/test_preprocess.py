"""The NumPy reference of preprocessing against the graph's, on the same decoded pixels."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from data.preprocessing import Preprocessing
from serving import onnx_file, preprocess
from serving.signatures import eval_pixels

SIZES = [(1, 1), (7, 90), (16, 16), (37, 29), (224, 224), (375, 500), (600, 451)]


@pytest.mark.parametrize("style", ["small", "imagenet"])
@pytest.mark.parametrize("image_size", [16, 224, 300])
def test_pixels_are_the_graphs(style, image_size):
    """Uses noise, which has the largest differences between neighbors.

    The largest image is made smaller, the smallest larger.
    """
    preprocessing = Preprocessing(image_size=image_size, style=style)
    description = onnx_file.describe(preprocessing)
    for height, width in SIZES:
        rng = np.random.Generator(np.random.PCG64([height, width]))
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        expected = eval_pixels(tf.constant(pixels), preprocessing).numpy()
        found = preprocess.prepare(pixels, description)
        assert found.dtype == np.float32 and found.shape == (image_size, image_size, 3)
        np.testing.assert_allclose(found, expected, atol=1e-3, rtol=0)  # of a gray level
    assert np.ptp(expected) > 200


def test_another_padding_is_another_crop():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, axis=2)
    for padding in (0, 4, 32):
        preprocessing = Preprocessing(image_size=8, style="imagenet", crop_padding=padding)
        found = preprocess.prepare(pixels, onnx_file.describe(preprocessing))
        np.testing.assert_allclose(
            found, eval_pixels(tf.constant(pixels), preprocessing), atol=1e-3
        )
    np.testing.assert_array_equal(
        preprocess.prepare(pixels, {"image_size": 8, "crop": {"kind": "none"}}), pixels
    )
