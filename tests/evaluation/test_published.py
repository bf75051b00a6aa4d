"""The check of published weights on a user's photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data.preprocessing import Preprocessing
from evaluation import imagenet, published
from training.initial import Initial
from training.model_dir import ModelSpec
from weights import pretrained


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Writes three images of class 0 and one of class 9."""
    pixels = tf.zeros([8, 8, 3], tf.uint8)
    for number, (label, count) in enumerate({0: 3, 9: 1}.items()):
        folder = tmp_path / imagenet.wnids()[label]
        folder.mkdir()
        for i in range(count):
            tf.io.write_file(str(folder / f"{number}_{i}.png"), tf.io.encode_png(pixels))
    return tmp_path


def test_the_photographs_that_are_named_are_counted(
    photographs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    images = tf.keras.Input((None, None, 3))
    bias = np.zeros(1000)
    bias[[0, 5, 9]] = 3, 2, 1  # class 0 first, class 9 third, whatever the image
    head = tf.keras.layers.Dense(
        1000, kernel_initializer="zeros", bias_initializer=tf.keras.initializers.Constant(bias)
    )
    model = tf.keras.Model(images, head(tf.keras.layers.GlobalAveragePooling2D()(images)))
    spec = ModelSpec(
        {"name": "lite0"},
        Preprocessing(image_size=8, style="imagenet"),
        tuple(map(str, range(1000))),
    )
    monkeypatch.setattr(
        pretrained, "find", lambda text, model_settings: Initial(text, spec, lambda: model, {})
    )
    published.main("efficientnet-lite0", str(photographs))
    assert (
        "efficientnet-lite0:lite0 at 8 px: top-1 75.0 %, top-5 100.0 % of 4 photographs"
        in capsys.readouterr().out
    )
    published.main("keras_cv/resnet50_v2_imagenet_classifier", str(photographs))
    assert (
        "keras_cv/resnet50_v2_imagenet_classifier at 8 px: top-1 75.0 %" in capsys.readouterr().out
    )


def test_unusable_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--name and --check must be given together"):
        published.main("efficientnet-lite0", None)
    with pytest.raises(
        InputError, match=r"^--name=efficientnet: no published weights have that name"
    ):
        published.main("efficientnet", str(tmp_path))
    with pytest.raises(
        InputError, match=r"^--name=keras_cv/resnet50_imagnet: .* did you mean resnet50_imagenet\?"
    ):
        published.main("keras_cv/resnet50_imagnet", str(tmp_path))
    with pytest.raises(
        InputError, match=r"^--name=keras_cv/resnet50_imagenet: these weights have no classifier"
    ):
        published.main("keras_cv/resnet50_imagenet", str(tmp_path))
    (tmp_path / "dog").mkdir()
    with pytest.raises(InputError, match="its folders must be WordNet ids"):
        published.main("efficientnet-lite0", str(tmp_path))
