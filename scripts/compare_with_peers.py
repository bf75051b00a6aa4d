"""Compares the evaluation's attacks and corruptions with those of established libraries.

    pip install --target=DIR --no-deps foolbox eagerpy gitpython gitdb smmap imagecorruptions \
        opencv-python-headless==4.11.0.86 'scikit-image<0.27' lazy-loader
    PEERS=DIR ./run_tool.sh compare_with_peers --run=RUN [--images=100]

RUN is a finished directory of run_noisy_student.sh. The library foolbox attacks RUN/teacher on the
test images by FGSM and by PGD from the image itself. By FGSM the images must be ours to the last
bit or so. The library imagecorruptions corrupts a photograph. Where nothing is random the images
are compared, else mean and standard deviation of the change. The libraries are not among the
project's dependencies.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import contextlib
import io
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf
from scipy import ndimage
from sklearn import datasets

from benchmarks import report
from data.records import read_manifest
from evaluation import adversarial, predict
from evaluation.classifiers import open_candidate
from evaluation.corruptions import corrupt
from evaluation.examples import from_records
from evaluation.robustness import CORRUPTIONS


def attacks(run: Path, count: int) -> None:
    """Prints how far foolbox's attacked images are from ours, and the accuracy under each."""
    import foolbox

    candidate = open_candidate("teacher", run / "teacher", "small")
    logits = candidate.load().logits
    examples = from_records(read_manifest(run / "data" / "test", "labeled"), "clean")
    batch = next(
        predict.read(
            predict.image_batches([examples], count, predict.input_pixels(candidate.preprocessing)),
            [examples],
        )
    )
    real = batch["set"] >= 0  # the others fill up the batch
    images, labels = (
        tf.round(tf.clip_by_value(batch["image"][real], 0.0, 255.0)),
        batch["label"][real],
    )
    gradient = adversarial.input_gradient(logits, images, labels)
    network = foolbox.models.TensorFlowModel(logits, bounds=(0, 255))

    def top1(attacked: tf.Tensor) -> float:
        return 100 * float(
            tf.reduce_mean(tf.cast(tf.argmax(logits(attacked), 1) == labels, tf.float32))
        )

    print(f"{len(labels)} test images, top-1 {top1(images):.2f} %")
    for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0):
        theirs, _, _ = foolbox.attacks.LinfFastGradientAttack(random_start=False)(
            network, images, labels, epsilons=epsilon
        )
        ours = adversarial.fgsm(images, gradient, tf.constant(epsilon))
        same = 100 * float(tf.reduce_mean(tf.cast(tf.abs(ours - theirs) < 1e-3, tf.float32)))
        print(
            f"FGSM, epsilon {epsilon:g}: top-1 ours {top1(ours):.2f} %, foolbox"
            f" {top1(theirs):.2f} %; {same:.2f} % of values equal"
        )
    for epsilon in (1.0, 2.0, 4.0, 16.0):
        step = 2.5 * epsilon / 10
        attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=step, steps=10, random_start=False
        )
        theirs, _, _ = attack(network, images, labels, epsilons=epsilon)
        ours = adversarial.pgd(logits, images, labels, epsilon, iterations=10, step=step)
        print(
            f"PGD, epsilon {epsilon:g}, 10 steps of {step:g}: top-1 ours {top1(ours):.2f} %,"
            f" foolbox {top1(theirs):.2f} %"
        )


def corruptions() -> None:
    """Prints how far imagecorruptions' images are from ours.

    The corruptions have severity 3 of the table for 224 pixels.
    """
    _let_imagecorruptions_be_imported()
    import imagecorruptions

    image = np.asarray(
        PIL.Image.fromarray(datasets.load_sample_images().images[0]).resize(
            (224, 224), PIL.Image.Resampling.BICUBIC
        )
    )
    print(f"{'corruption':<20}{'mean change, ours':>20}{'theirs':>10}{'mean difference':>18}")
    for name in CORRUPTIONS:
        np.random.seed(0)  # the library draws from numpy's global generator
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = imagecorruptions.corrupt(image, severity=3, corruption_name=name).astype(float)
        ours = corrupt(image, name, 3, np.random.Generator(np.random.PCG64(0))).astype(float)
        mine, its = (np.abs(x - image).mean() for x in (ours, theirs))
        print(f"{name:<20}{mine:>20.2f}{its:>10.2f}{np.abs(ours - theirs).mean():>18.2f}")


def _let_imagecorruptions_be_imported() -> None:
    """Gives scipy and scikit-image the names that its last release of 2020 asks for.

    They have since moved these names.
    """
    from skimage import filters

    moved: Any = types.ModuleType("scipy.ndimage.interpolation")
    moved.map_coordinates = ndimage.map_coordinates
    sys.modules["scipy.ndimage.interpolation"] = moved
    gaussian = filters.gaussian

    def with_old_name(
        image: np.ndarray, *arguments: Any, multichannel: bool = False, **keywords: Any
    ) -> np.ndarray:
        return gaussian(image, *arguments, channel_axis=-1 if multichannel else None, **keywords)

    filters.gaussian = with_old_name
    np.float_ = np.float64  # type: ignore[misc]


def main(run: str, images: int) -> None:
    """Prints both comparisons; see the module."""
    report.find_peers()
    attacks(Path(run), images)
    corruptions()
