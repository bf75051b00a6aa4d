"""Linear probe: a simple classifier beside which every training has to prove itself.

Logistic regression on the pooled features of a network with published weights. The network stays
as it is; only the labeled images are learned from. This takes seconds where a training takes hours.
A probe answers like any other model, so every suite can be run on it.

Source: Alain and Bengio 2017, "Understanding intermediate layers using linear classifier probes".
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import to_json
from cli.work_dirs import fingerprint
from data.preprocessing import Preprocessing
from data.records import Manifest
from evaluation import embedding, metrics, results
from evaluation.classifiers import Candidate
from evaluation.examples import from_records
from serving import versions
from training import model_dir
from weights import pretrained

NAME = "probe"
FIT = "fit.npz"
MOST_IMAGES = 5_000
"""Largest number of labeled images for a probe; with more, the search for C takes too long."""
INVERSE_PENALTIES = tuple(10.0**power for power in range(-4, 2))
"""Values of scikit-learn's C that cross-validation chooses from."""
NOT_CHOSEN = 0.01
"""C where no class has two images to cross-validate with."""
FOLDS = 5
_NEVER = -1e9
"""Logit of a class without labeled images."""


class Fit(NamedTuple):
    """A fitted probe: logits = features · kernel + bias.

    Attributes:
      kernel: float32 [C, K].
      bias: float32 [K].
      inverse_penalty: scikit-learn's C.
      images: labeled images that it learned from.
      folds: number of folds of the cross-validation; 0: there was none.
    """

    kernel: np.ndarray
    bias: np.ndarray
    inverse_penalty: float
    images: int
    folds: int


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int, seed: int = 0) -> Fit:
    """Fits logistic regression on standardized features.

    Cross-validation chooses C by the negative log likelihood: of few images, the number of right
    answers says too little.

    Args:
      features: float [N, C].
      labels: int [N], 0-based.
      num_classes: K. A class that has no example gets no probability.
      seed: seed of the folds.
    """
    counts = np.bincount(labels, minlength=num_classes)
    folds = min(FOLDS, max(2, int(counts[counts > 0].min())))
    if (counts > 0).sum() == 1 or counts.max() < folds:
        kernel, bias = _regression(features, labels, num_classes, NOT_CHOSEN)
        return Fit(kernel, bias, NOT_CHOSEN, len(labels), 0)
    loss = np.zeros(len(INVERSE_PENALTIES))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
        for train, test in parts.split(features, labels):
            for i, c in enumerate(INVERSE_PENALTIES):
                kernel, bias = _regression(features[train], labels[train], num_classes, c)
                probabilities = softmax(features[test].astype(np.float64) @ kernel + bias, axis=1)
                loss[i] += len(test) * metrics.nll(probabilities, labels[test])
    best = INVERSE_PENALTIES[int(loss.argmin())]
    kernel, bias = _regression(features, labels, num_classes, best)
    return Fit(kernel, bias, best, len(labels), folds)


def _regression(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    c: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel float32 [C, K] and bias float32 [K] for features as they are."""
    kernel = np.zeros([features.shape[1], num_classes])
    bias = np.full([num_classes], _NEVER)
    scaler = StandardScaler().fit(features.astype(np.float64))
    classes = np.unique(labels)
    if len(classes) == 1:
        bias[classes] = 0.0
    else:
        regression = LogisticRegression(C=c, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of the largest C
            regression.fit(scaler.transform(features.astype(np.float64)), labels)
        coefficients, intercepts = regression.coef_, regression.intercept_
        if len(classes) == 2:  # scikit-learn has one row for both
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([[0.0], intercepts])
        kernel[:, classes] = coefficients.T / scaler.scale_[:, np.newaxis]
        bias[classes] = intercepts - scaler.mean_ @ kernel[:, classes]
    return kernel.astype(np.float32), bias.astype(np.float32)


def open_probe(
    init: str,
    like: Candidate,
    labeled: Manifest,
    folder: Path,
    batch_size: int,
    seed: int,
) -> Candidate | None:
    """Describes the probe as a model to evaluate; nothing is computed before it is loaded.

    Args:
      init: weights, as `--init` of the trainings names them.
      like: a model trained from these weights; the probe gets its images.
      labeled: the labeled split.
      folder: where the fit is kept; one that is there is used again.
      batch_size: images in a forward pass.
      seed: seed of the folds.

    Returns:
      The probe. None, with a printed reason, where there are too many labeled images, or `like`
      is an export.

    Raises:
      InputError: `init` names no weights.
    """
    if labeled.num_records > MOST_IMAGES:
        print(
            f"the {NAME} is left out: {labeled.num_records:,} labeled images are more than "
            f"{MOST_IMAGES:,}"
        )
        return None
    if versions.find(like.directory) is not None:
        print(
            f"the {NAME} is left out: {like.directory} is an export; name a training directory "
            "first in --model"
        )
        return None
    spec = model_dir.read_spec(like.directory)
    initial = pretrained.find(init, spec.architecture)
    source = initial.source or {"directory": fingerprint(init)}
    digest = hashlib.sha256(to_json([source, labeled.digests]).encode()).hexdigest()[:16]

    def load() -> Callable[[tf.Tensor], tf.Tensor]:
        below = embedding.pooled(initial.load())
        if below is None:
            raise InputError(
                f"--init={init}: its last layer is not a Dense layer; set evaluate.probe=False"
            )
        kernel, bias = _fitted(below, like.preprocessing, labeled, folder, batch_size, seed)[:2]
        return lambda images: tf.cast(below(images, training=False), tf.float32) @ kernel + bias

    return Candidate(NAME, folder, like.preprocessing, labeled.label_names, digest, None, load)


def _fitted(
    below: tf.keras.Model,
    preprocessing: Preprocessing,
    labeled: Manifest,
    folder: Path,
    batch_size: int,
    seed: int,
) -> Fit:
    """Reads the fit of `folder`, or makes and keeps one."""
    if not (folder / FIT).exists():
        examples = from_records(labeled, "labeled")
        _, labels, features = embedding.features_of(below, preprocessing, examples, batch_size)
        fitted = fit(features, labels, labeled.num_classes, seed)
        with atomic_path(folder / FIT) as temporary, open(temporary, "wb") as f:
            np.savez(f, **fitted._asdict())
    return _read(folder)


def _read(folder: Path) -> Fit:
    stored = results.load(folder / FIT)
    numbers = (float(stored["inverse_penalty"]), int(stored["images"]), int(stored["folds"]))
    return Fit(stored["kernel"], stored["bias"], *numbers)


def described(candidate: Candidate, init: str) -> dict[str, Any]:
    """Returns what the summary says of a probe that has been loaded before."""
    fitted = _read(candidate.directory)
    return {
        "init": init,
        "image_size": candidate.preprocessing.image_size,
        "features": len(fitted.kernel),
        "labeled_images": fitted.images,
        "inverse_penalty": fitted.inverse_penalty,
        "folds": fitted.folds,
    }
