"""Measures how busy an evaluation on a -C keeps the model, beside bare forward passes.

    ./run_benchmarks.sh evaluation

The rates are those of `evaluation.predict` and of the same graph alone, with EfficientNet-B0. The
evaluation takes 75 sets (15 corruptions × 5 severities) of JPEGs of 224 pixels, in ImageNet-C's
layout; the traced network alone takes as many batches. Both run in turns.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow as tf
from sklearn import datasets

from benchmarks import report
from data.preprocessing import Preprocessing
from efficientnet import EfficientNet
from evaluation import imagenet, predict
from evaluation.classifiers import Classifier
from evaluation.corruptions import corrupt
from evaluation.robustness import CORRUPTIONS, SEVERITIES

SIZE, BATCH_SIZE, IMAGES_PER_SET, ROUNDS = 224, 32, 40, 2


def write_sets(directory: Path) -> None:
    """Writes corrupted crops of scikit-learn's two photographs."""
    rng = np.random.Generator(np.random.PCG64(0))
    photographs = datasets.load_sample_images().images
    wnids = imagenet.wnids()
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            for photograph, wnid in zip(photographs, wnids):
                top, left = int(rng.integers(427 - SIZE)), int(rng.integers(640 - SIZE))
                crop = PIL.Image.fromarray(
                    corrupt(
                        photograph[top : top + SIZE, left : left + SIZE], corruption, severity, rng
                    )
                )
                folder = directory / corruption / str(severity) / wnid
                folder.mkdir(parents=True)
                for i in range(IMAGES_PER_SET // len(photographs)):
                    crop.save(folder / f"{i}.JPEG", "JPEG", quality=85)


def main() -> None:
    """Prints one JSON line."""
    model = EfficientNet("b0", num_classes=1000)
    classifier = Classifier(
        "b0", Preprocessing(image_size=SIZE), lambda images: model(images, training=False)
    )
    forward = tf.function(lambda images: tf.nn.softmax(classifier.logits(images)))
    batch = tf.random.stateless_uniform([BATCH_SIZE, SIZE, SIZE, 3], [0, 0], 0.0, 255.0)
    forward(batch)
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as directory:
        write_sets(Path(directory))
        sets = [
            examples
            for severities in imagenet.imagenet_c(directory).values()
            for examples in severities.values()
        ]
        images = sum(examples.count for examples in sets)
        for _ in range(ROUNDS):
            results = [
                result
                for _, result in predict.predict(classifier, sets, BATCH_SIZE, predict.answers)
            ]
            ours.append(images / sum(result.seconds for result in results))
            batches = -(-images // BATCH_SIZE)
            started = time.perf_counter()
            for _ in range(batches):
                forward(batch).numpy()
            bare.append(batches * BATCH_SIZE / (time.perf_counter() - started))
    report.line(
        "evaluation_c",
        float(np.median(ours)),
        float(np.median(bare)),
        "bare forward passes",
        goal=0.9,
        unit="images/s",
    )
