"""Lists the published weights, and checks whether they name photographs as they should.

    ./run_tool.sh weights
    ./run_tool.sh weights --name=efficientnet-lite0 --check=DIR

DIR/<WordNet id>/* are photographs of ImageNet's classes, any number of classes. The check counts
how many of them the weights name: it tests the import, the preprocessing and the order of the
classes.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)

# isort: split

from pathlib import Path

from cli.errors import InputError
from nets import keras_cv_backbones
from weights import published

BATCH = 50


def main(name: str | None, check: str | None) -> None:
    """Prints the table of weights, or the result of a check. Raises InputError."""
    if bool(name) != bool(check):
        raise InputError(
            "--name and --check must be given together: the weights, and a folder of photographs"
        )
    if not (name and check):
        print(published.listing())
        return
    text, network = full_name(name)
    images, top1, top5, size = measure(text, network, Path(check))
    print(
        f"{text} at {size} px: top-1 {top1:.1f} %, top-5 {top5:.1f} % of {images} photographs in"
        f" {check}"
    )


def full_name(name: str) -> tuple[str, str]:
    """Returns the name that `--init` has for weights with a classifier, and their network.

    Raises:
      InputError: no published weights have that name, or they have no classifier.
    """
    if name.startswith(keras_cv_backbones.PREFIX):
        try:
            network = keras_cv_backbones.of_preset(name.removeprefix(keras_cv_backbones.PREFIX))
        except InputError as error:
            raise InputError(f"--name={name}: {error}") from error
        if not name.endswith("_classifier"):
            raise InputError(
                f"--name={name}: these weights have no classifier, so they cannot name the "
                "photographs"
            )
        return name, network
    row = published.find(name)
    if row is None:
        raise published.unknown(name, "--name")
    return f"{row.name}:{row.network}", row.network


def measure(text: str, network: str, folder: Path) -> tuple[int, float, float, int]:
    """Measures weights on photographs of ImageNet's classes.

    Args:
      text: the weights, as `full_name` returns them.
      network: `model.name`.
      folder: FOLDER/<WordNet id>/*.

    Returns:
      (photographs, top-1 and top-5 in percent among the 1,000 classes, image size in pixels).

    Raises:
      InputError: a folder is not a class of ImageNet, it holds no images, or the weights cannot be
        had.
    """
    import tensorflow as tf

    from data.preprocessing import eval_image
    from evaluation import imagenet
    from weights import pretrained

    examples = imagenet.class_folders(folder)
    initial = pretrained.find(text, {"name": network})
    model, preprocessing = initial.load(), initial.spec.preprocessing
    pixels = examples.stream().map(
        lambda encoded, key, label: (eval_image(encoded, preprocessing), label)
    )
    right, count = [0, 0], 0
    for images, labels in pixels.batch(BATCH):
        logits = model(images, training=False)
        for place, k in enumerate((1, 5)):
            right[place] += int(
                tf.reduce_sum(tf.cast(tf.math.in_top_k(labels, logits, k), tf.int32))
            )
        count += int(labels.shape[0])
    return count, 100 * right[0] / count, 100 * right[1] / count, preprocessing.image_size
