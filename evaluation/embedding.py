"""Map of the features that separate a model's classes, for the report.

The features are the input of the model's last layer, as the exported signature `embed` answers
them. PCA takes them to two dimensions. A model separates classes with ease if they lie apart on the
map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.decomposition import PCA

from data.preprocessing import Preprocessing
from evaluation import charts, page, predict, results
from evaluation.examples import Examples

FILE = "embedding.npz"
MOST_POINTS = 2_000
"""Largest number of images on the map; of more images, every second, third, ... is on it."""


def pooled(network: tf.keras.Model) -> tf.keras.Model | None:
    """Returns the network up to its classifier: images (B, S, S, 3) -> pooled features (B, C).

    Returns None if its last layer with weights is not a Dense layer.
    """
    last = [layer for layer in network.layers if layer.weights][-1]
    dense = isinstance(last, tf.keras.layers.Dense)
    return tf.keras.Model(network.inputs, last.input) if dense else None


def features_of(
    to_features: tf.keras.Model,
    preprocessing: Preprocessing,
    examples: Examples,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the pooled features of every example, in order.

    Args:
      to_features: what `pooled` returned.
      preprocessing: how an image file becomes the network's input.
      examples: N examples.
      batch_size: images in a forward pass.

    Returns:
      (keys str [N], labels int64 [N], features float32 [N, C]).

    Raises:
      InputError: see `predict.predict`.
    """
    predict.require_some(examples)
    below = tf.function(lambda images: tf.cast(to_features(images, training=False), tf.float32))
    batches = predict.image_batches([examples], batch_size, predict.input_pixels(preprocessing))
    found: list[tuple[np.ndarray, ...]] = []
    for batch in predict.read(batches, [examples]):
        real = batch["set"].numpy() >= 0
        values = below(batch["image"]).numpy()  # (B, C)
        found.append((batch["key"].numpy()[real], batch["label"].numpy()[real], values[real]))
    keys, labels, features = (np.concatenate(parts) for parts in zip(*found))
    return predict.check_keys(examples, keys, labels), labels, features


def some(examples: Examples, most: int = MOST_POINTS) -> Examples:
    """Returns at most `most` of the examples, evenly spread over their order."""
    every = -(-examples.count // most)
    if every <= 1:
        return examples
    count = -(-examples.count // every)
    return dataclasses.replace(
        examples,
        count=count,
        stream=lambda: examples.stream().shard(every, 0),
    )


def mapped(
    network: tf.keras.Model, preprocessing: Preprocessing, examples: Examples, batch_size: int
) -> dict[str, Any] | None:
    """Makes the map of a model's features of `examples`.

    Returns:
      `index` int64 [n], the images' places in the split, `labels` int64 [n], `places` float32 [n,
      2], and `explained` float64 [2], the share of the features' variance along each axis, 0-1.
      None where there is nothing to draw: no pooled features, or fewer than three images or two
      features.
    """
    to_features = pooled(network)
    chosen = some(examples)
    if to_features is None or to_features.output_shape[-1] < 2 or chosen.count < 3:
        return None
    _, labels, features = features_of(to_features, preprocessing, chosen, batch_size)
    pca = PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):
        places = pca.fit_transform(features.astype(np.float64))
    return {
        "index": np.arange(len(labels)) * -(-examples.count // MOST_POINTS),
        "labels": labels,
        "places": places.astype(np.float32),
        "explained": np.nan_to_num(
            pca.explained_variance_ratio_
        ),  # 0/0 where all features are equal
    }


def section(folder: Path, label_names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yields the report's `charts`: the map in a model's folder; nothing where there is none."""
    if not (folder / FILE).exists():
        return
    found, answered = results.load(folder / FILE), results.load(folder / "predictions.npz")
    total = len(answered["labels"])
    right = answered["probabilities"][found["index"]].argmax(axis=1) == found["labels"]  # (n,)
    names = label_names if len(label_names) <= page.MOST_CLASSES else None
    label = f"Features of {len(right)} images, {int((~right).sum())} of them answered wrongly"
    svg = charts.scatter(label, found["places"], found["labels"], right, names)
    part = "" if len(right) == total else f" of {total:,}, evenly chosen"
    first, second = (100 * share for share in found["explained"])
    caption = (
        f"{len(right):,} images{part}: the input of the last layer of {folder.name}, by PCA. The "
        f"axes hold {first:.0f} % and {second:.0f} % of its variance. Crosses: wrong answers."
    )
    yield "charts", [(f"Features of {folder.name}", svg, caption)]
