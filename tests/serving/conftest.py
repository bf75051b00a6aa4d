"""A tiny trained model, its export, and images: what the tests of this folder share."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli.json_files import write_json
from data import protos, records
from data.preprocessing import Preprocessing, eval_image
from serving import export
from tests import networks
from training import model_dir
from training.model_dir import ModelSpec

from .running import PROGRAM, Process

NAMES = ("zero", "one", "two", "three", "four", "five", "naïve 雪")


def network(spec, seed=0):
    """Builds an untrained network with answers that differ between images, as a trained one's do.

    Its BatchNorms know such images.
    """
    model = spec.build(seed)
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    images = tf.image.resize(rng.uniform(0, 255, (64, 4, 4, 3)), [16, 16]).numpy()
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.3
            layer.gamma.assign(rng.uniform(0.7, 1.4, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
    tf.random.set_seed(seed)  # of dropout
    for _ in range(6):
        model(images, training=True)
    # (64, K)
    logits, classifier = (model(images, training=False).numpy(), model.get_layer("predictions"))
    scale = 2 / logits.std(axis=0)
    classifier.set_weights([classifier.kernel * scale, -logits.mean(axis=0) * scale])
    return model


def linear(spec, seed=0):
    """Stands in for the network where its answers don't matter."""
    kernel = tf.keras.initializers.RandomNormal(stddev=0.01, seed=seed)
    return tf.keras.Sequential(
        [
            tf.keras.Input((16, 16, 3)),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(len(spec.label_names), kernel_initializer=kernel),
        ]
    )


B0 = {"name": "b0", "width": 0.1, "depth": 0.1, "stem_stride": 1, "strides": [1, 1, 1, 2, 1, 1, 1]}


def _write_model(directory, style="small", names=NAMES, seed=0, make=network, architecture=B0):
    spec = ModelSpec(architecture, Preprocessing(image_size=16, style=style), tuple(names))
    model_dir.save(directory / "model", make(spec, seed), spec)
    write_json(directory / "summary.json", {"seed": seed, "steps": 1234, "last": {"top1": 0.875}})
    return directory


def _encoded_images(format, size=(37, 29), mode="RGB", n=3, **options):
    result = []
    for i in range(n):
        rng = np.random.Generator(np.random.PCG64([i, len(format)]))
        small = PIL.Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize(size, PIL.Image.Resampling.BICUBIC).convert(mode).save(file, format, **options)
        result.append(file.getvalue())
    return result


class Exported(NamedTuple):
    """Model of one style of preprocessing, before and after its export.

    `directory`: the training's; `path`: SERVING_DIR; `version`: the SavedModel's; `model`: Keras's;
    `saved`: the SavedModel, loaded.
    """

    directory: Path
    path: Path
    version: Path
    model: tf.keras.Model
    preprocessing: Preprocessing
    saved: object

    def serve(self, signature="serving_default", **inputs):
        """Returns the SavedModel's answer as numpy arrays."""
        return {
            name: value.numpy()
            for name, value in self.saved.signatures[signature](**inputs).items()
        }

    def evaluate(self, encoded):
        """Returns the probabilities on evaluation's own path, float32 [N, K]."""
        images = tf.stack([eval_image(image, self.preprocessing) for image in encoded])
        return tf.nn.softmax(self.model(images, training=False)).numpy()


def _export(root, style="small", **options):
    # One of the two styles with an EfficientNet is enough: styles differ before the network.
    architecture = B0 if style == "small" else {"name": networks.NAME}
    directory = _write_model(root / "student", style, architecture=architecture)
    export.main(str(root / "serving"), str(directory), **options)
    model, spec = model_dir.load(directory)
    version = root / "serving" / "classifier" / "1"
    return Exported(
        directory,
        root / "serving",
        version,
        model,
        spec.preprocessing,
        tf.saved_model.load(str(version)),
    )


@pytest.fixture(scope="session")
def write_model():
    """Makes a finished training directory."""
    return _write_model


@pytest.fixture(scope="session")
def encoded_images():
    """Makes `n` encoded pictures of smooth random colors, all of different looks."""
    return _encoded_images


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    return _export(tmp_path_factory.mktemp("small"), "small")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    return _export(tmp_path_factory.mktemp("imagenet"), "imagenet")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Makes a finished data directory: labeled pictures and others to test on."""
    folder = tmp_path_factory.mktemp("data")
    for name, format in (("labeled", "PNG"), ("test", "JPEG")):
        images = _encoded_images(format, (20, 24), n=21)
        examples = [
            protos.make_example(image, f"{name}{i}", i % len(NAMES))
            for i, image in enumerate(images)
        ]
        records.write_split(
            folder / name, name, examples, 2, len(images), label_names=NAMES, kind="labeled"
        )
    write_json(folder / "summary.json", {})
    return folder


@pytest.fixture(params=["small", "imagenet"])
def exported(request):
    """Returns the export of each style."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def server(small):
    """Starts the development server as a process, with patience of 3 seconds."""
    process = Process([sys.executable, "-c", PROGRAM, str(small.path)])
    yield process
    assert process.process.poll() is None, "nothing that the tests sent may end the server"
    assert process.stop() == 0
