"""Noisy Student as a training method: the student's training (Algorithm 1, step 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from data.preprocessing import Preprocessing
from noisy_student.model import NoisyStudent, pseudo_targets
from training import supervised
from training.method import PSEUDO_LABELED, TEACHER, Method, Network, Parts, Streams


def _check(section: Mapping[str, Any]) -> None:
    if section["online"] and not (section["labeled"] and section["unlabeled_ratio"]):
        raise InputError("online=True needs unlabeled_ratio above 0 and labeled=True")
    if not section["labeled"] and not section["unlabeled_ratio"]:
        raise InputError("labeled=False needs pseudo-labeled images, and unlabeled_ratio above 0")
    if not section["labeled"] and section.get("logit_adjustment"):
        raise InputError(
            "logit_adjustment changes the loss on labeled images, which labeled=False leaves out; "
            "set it to 0"
        )


def _images(section: Mapping[str, Any]) -> int:
    """Returns the number of images in a step."""
    size: int = section["batch_size"]
    return size * (bool(section["labeled"]) + section["unlabeled_ratio"])


def _build(section: ConfigDict, parts: Parts) -> NoisyStudent:
    options = supervised.options(section, parts)
    if not section.labeled:
        # Pseudo-labels in the labels' place need none: `_batches` smooths hard ones.
        options["label_smoothing"] = 0.0
    names = ("loss_normalization", "pseudo_labels", "temperature", "unlabeled_model_noise")
    trainer = NoisyStudent(
        parts.model, teacher=parts.teacher, **{name: section[name] for name in names}, **options
    )
    trainer.compile(optimizer=parts.optimizers[""])
    return trainer


def _batches(section: ConfigDict, streams: Streams) -> tf.data.Dataset:
    """Returns the data for `NoisyStudent`.

    Without the labeled images, an element is `(x_u, y_u)`, with the targets made of q.
    """
    mixing = {
        "mixup": section.mixup,
        "cutmix": section.cutmix,
        "augment": section.labeled_augmentation,
    }
    if not streams.unlabeled_batch_size:
        return streams.labeled_batches(**mixing)
    extra = streams.unlabeled_batches(
        targets="probabilities", clean=streams.clean, augment=section.unlabeled_augmentation
    )
    if section.labeled:
        return tf.data.Dataset.zip((streams.labeled_batches(**mixing), extra))
    return extra.map(
        lambda x, q: (
            x,
            pseudo_targets(q, section.pseudo_labels, section.temperature, section.label_smoothing),
        )
    )


def _samples(section: ConfigDict, noise: Preprocessing) -> dict[str, tuple[str, Preprocessing]]:
    shown = {
        "labeled": section.labeled and section.labeled_augmentation,
        "unlabeled": section.unlabeled_augmentation,
    }
    return {name: (name, noise) for name, augmented in shown.items() if augmented}


NOISY_STUDENT = Method(
    unlabeled=lambda section: TEACHER if section["online"] else PSEUDO_LABELED,
    networks=lambda section: [Network("", _images(section), section["rematerialize"])],
    build=_build,
    batches=_batches,
    samples=_samples,
    check=_check,
)
