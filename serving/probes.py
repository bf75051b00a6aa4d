"""Synthetic images, on which an export's answers are compared with the trained model's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from cli.files import plain_path
from data.preprocessing import Preprocessing, eval_image
from serving.answers import OK
from training.model_dir import ModelSpec

COUNT = 16


def deviation(path: Path, model: tf.keras.Model, spec: ModelSpec) -> float:
    """Returns the largest difference of a probability between a SavedModel and the trained model.

    Both answer synthetic images of the model's size. The result is NaN if one of them answers with
    numbers that are not finite.
    """
    encoded, prepared = images(spec.preprocessing)
    expected = tf.nn.softmax(tf.cast(model(prepared, training=False), tf.float32))
    loaded = tf.saved_model.load(str(plain_path(path)))
    actual = loaded.signatures["serving_default"](image_bytes=encoded)
    if tf.reduce_any(actual["status"] != OK):
        return math.nan
    return float(tf.reduce_max(tf.abs(actual["probabilities"] - expected)))


def images(preprocessing: Preprocessing) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes synthetic images: encoded, string [COUNT], and prepared, float32 [COUNT, S, S, 3]."""
    size, encoded = preprocessing.image_size, []
    for i in range(COUNT):
        colors = np.random.Generator(np.random.PCG64([i])).uniform(0, 255, (4, 4, 3))
        picture = tf.clip_by_value(
            tf.image.resize(colors, [size + size // 4, size + size // 3], "bicubic"), 0, 255
        )
        encoded.append(tf.io.encode_png(tf.cast(picture, tf.uint8)))
    return tf.stack(encoded), tf.stack([eval_image(image, preprocessing) for image in encoded])
