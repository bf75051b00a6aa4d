"""Meta Pseudo Labels and its reduced form as training methods; `model/` is the averaged student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from data.preprocessing import Preprocessing
from meta_pseudo_labels import feedback
from meta_pseudo_labels.model import MetaPseudoLabels
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from training import optimizers, uda
from training.method import (
    IMAGES,
    PSEUDO_LABELED,
    Method,
    Network,
    Parts,
    Streams,
    weak_and_strong_samples,
)

STUDENT, TEACHER = "student", "teacher"
TEACHER_SEED = 50
"""Added to the run's seed: the teacher's initial weights and noise differ from the student's."""


def _check(section: Mapping[str, Any]) -> str | None:
    for network in (TEACHER, STUDENT):  # a calibrator has the teacher's
        schedule = section[network]["schedule"]
        before = schedule["wait_steps"] + schedule["warmup_steps"]
        if before >= section["steps"]:
            raise InputError(
                f"{network}.schedule: wait and warm-up take {before} steps of {section['steps']};"
                " shorten them"
            )
    try:
        estimator = feedback.find_estimator(section["feedback"], section["pseudo_labels"])
        name = section[STUDENT]["optimizer"]["name"]
        linear = name not in optimizers.NOT_LINEAR
        return feedback.check_factor(estimator, name, linear, section["approximate_feedback"])
    except ValueError as error:
        raise InputError(f"feedback: {error}") from error


def _student(section: Mapping[str, Any]) -> Network:
    return Network(
        STUDENT, section["batch_size"] * (1 + section["unlabeled_ratio"]), section["rematerialize"]
    )


def _networks(section: Mapping[str, Any]) -> list[Network]:
    images = section["batch_size"] * (1 + 2 * section["unlabeled_ratio"])
    return [_student(section), Network(TEACHER, images, section["rematerialize"])]


def _options(section: ConfigDict, parts: Parts) -> dict[str, Any]:
    """Returns `FeedbackTrainer`'s arguments from a train section and the parts of its trainer."""
    names = (
        "feedback",
        "pseudo_labels",
        "feedback_weight",
        "batch_factor",
        "baseline_decay",
        "approximate_feedback",
    )
    common = ("weight_decay", "ema_decay", "rematerialize", "accumulation")
    options = {"adjustment": parts.adjustment, "seed": parts.seed}
    return {**{name: section[name] for name in (*names, *common)}, **options}


def _build(section: ConfigDict, parts: Parts) -> MetaPseudoLabels:
    teacher = parts.build(section.teacher.model, parts.seed + TEACHER_SEED)
    options = {**uda.objective(section, parts), **_options(section, parts)}
    trainer = MetaPseudoLabels(teacher, parts.model, **options)
    trainer.compile(
        student_optimizer=parts.optimizers[STUDENT], teacher_optimizer=parts.optimizers[TEACHER]
    )
    return trainer


def _build_reduced(section: ConfigDict, parts: Parts) -> ReducedMetaPseudoLabels:
    calibrator = Calibrator(parts.num_classes, **section.calibrator, seed=parts.seed + TEACHER_SEED)
    trainer = ReducedMetaPseudoLabels(calibrator, parts.model, **_options(section, parts))
    trainer.compile(
        student_optimizer=parts.optimizers[STUDENT], teacher_optimizer=parts.optimizers[TEACHER]
    )
    return trainer


def _reduced_batches(section: ConfigDict, streams: Streams) -> tf.data.Dataset:
    labeled = streams.labeled_batches(weak=True)
    return tf.data.Dataset.zip((labeled, streams.unlabeled_batches(targets="probabilities")))


def _reduced_samples(
    section: ConfigDict, noise: Preprocessing
) -> dict[str, tuple[str, Preprocessing]]:
    return {"labeled": ("labeled", noise.weak()), "unlabeled": ("unlabeled", noise)}


META_PSEUDO_LABELS = Method(
    unlabeled=lambda section: IMAGES,
    networks=_networks,
    build=_build,
    batches=lambda section, streams: streams.weak_and_strong(),
    samples=weak_and_strong_samples,
    check=_check,
)
REDUCED = Method(
    unlabeled=lambda section: PSEUDO_LABELED,
    networks=lambda section: [_student(section)],
    build=_build_reduced,
    batches=_reduced_batches,
    samples=_reduced_samples,
    check=_check,
)
