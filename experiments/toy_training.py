"""Trains many seeds of a toy problem at once, by Algorithm 1 of Pham et al. 2021.

A parameter is a tensor (S, in, out) for S seeds, and no operation mixes the seeds. So the sum over
seeds of a loss has each seed's own gradient. The feedback comes from `meta_pseudo_labels.feedback`,
from the same functions that the real training step uses.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)

# isort: split

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.progress import progress
from meta_pseudo_labels.feedback import (
    PSEUDO_LABELS,
    cosine,
    dot_product,
    draw_pseudo_labels,
    find_estimator,
    hard_loss,
    label_feedback,
    soft_cross_entropy,
    soft_loss,
)

CHUNK = 1000  # steps of a compiled loop
CHOICES = {
    "pseudo_labels": PSEUDO_LABELS,
    "result": ("teacher", "student"),
    "estimator": ("soft", "dot_product", "cosine"),
    "schedule": ("constant", "cosine"),
}

Network = Sequence[tf.Tensor]
"""Weights and biases of each layer, (S, in, out) and (S, 1, out)."""


class Problem(Protocol):
    """Data and networks of S seeds.

    Attributes:
      x: unlabeled points, float32 (S, N, D).
      y: their classes, one-hot float32 (S, N, K). Only `all_labels` reads them.
      labeled: (x, y) of the labeled points, (S, n, D) and (S, n, K).
    """

    x: tf.Tensor
    y: tf.Tensor
    labeled: tuple[tf.Tensor, tf.Tensor]

    def logits(self, network: Network, x: tf.Tensor) -> tf.Tensor:
        """Maps points (S, n, D) to logits (S, n, K)."""

    def labeled_logits(self, teacher: Network, x: tf.Tensor) -> tf.Tensor:
        """Maps the labeled points to the teacher's logits in its supervised loss."""


def cross_entropy(targets: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy: the mean over each seed's examples, summed over seeds."""
    return tf.reduce_sum(tf.reduce_mean(soft_cross_entropy(targets, z), 1))


def descend(
    network: Network, gradients: Sequence[tf.Tensor], rate: tf.Tensor | float
) -> list[tf.Tensor]:
    """Takes one step of plain gradient descent."""
    return [v - rate * g for v, g in zip(network, gradients)]


def step(
    teacher: Network, student: Network, number: tf.Tensor, problem: Problem, method: ConfigDict
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Takes one step of Algorithm 1 for every seed, and returns (θ_T', θ_S').

    Args:
      teacher: θ_T.
      student: θ_S.
      number: number of the step; everything random is a function of it.
      problem: data and networks.
      method: which losses the teacher has, see the config. A teacher without any stays as it is.
    """
    seeds, rate = problem.x.shape[0], tf.constant(method.learning_rate)
    if method.schedule == "cosine":
        rate *= 0.5 * (1 + tf.cos(np.pi * tf.cast(number, tf.float32) / method.steps))
    rows = tf.random.stateless_uniform(
        [seeds, method.batch_size], [number, 0], 0, problem.x.shape[1], tf.int32
    )
    x_u, y_u = (tf.gather(v, rows, batch_dims=1) for v in (problem.x, problem.y))  # (S, B_u, K)
    x_l, y_l = (x_u, y_u) if method.all_labels else problem.labeled  # (S, n, K)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(teacher)
        z_u = problem.logits(teacher, x_u)
        with tape.stop_recording():
            uniform = tf.random.stateless_uniform(tf.shape(z_u), [number, 1])
            pseudo = draw_pseudo_labels(method.pseudo_labels, z_u, uniform)  # (S, B_u, K)
            moved, h = step_student(problem, student, x_u, pseudo, x_l, y_l, rate, method.estimator)
        losses = []
        if method.supervised:
            losses.append(
                method.supervised * cross_entropy(y_l, problem.labeled_logits(teacher, x_l))
            )
        if method.feedback:  # both are means over seeds, too
            factor = method.batch_size if method.estimator == "dot_product" else 1.0
            feedback = (
                soft_loss(h, z_u)
                if method.estimator == "soft"
                else hard_loss(h, pseudo, z_u, factor)
            )
            losses.append(method.feedback * seeds * feedback)
        if method.consistency:
            shift = method.consistency_noise * tf.random.stateless_normal(
                tf.shape(x_u), [number, 2]
            )
            target = tf.stop_gradient(tf.nn.softmax(z_u / method.temperature))
            losses.append(
                method.consistency * cross_entropy(target, problem.logits(teacher, x_u + shift))
            )
        loss = tf.add_n(losses) if losses else None
    return (
        list(teacher)
        if loss is None
        else descend(teacher, tape.gradient(loss, teacher, unconnected_gradients="zero"), rate)
    ), moved


def step_student(
    problem: Problem,
    student: Network,
    x_u: tf.Tensor,
    pseudo: tf.Tensor,
    x_l: tf.Tensor,
    y_l: tf.Tensor,
    rate: tf.Tensor | float,
    estimator: str,
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Moves the student on pseudo-labels, and returns (θ_S', h).

    h comes from `feedback.label_feedback`, (S, B_u, K), or is the estimator's one number, (S, 1).
    """
    with tf.GradientTape(watch_accessed_variables=False) as label_tape:
        label_tape.watch(pseudo)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(student)
            loss = cross_entropy(pseudo, problem.logits(student, x_u))
        unlabeled = tape.gradient(loss, student)
    moved = descend(student, unlabeled, rate)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(moved)
        loss = cross_entropy(y_l, problem.logits(moved, x_l))
    labeled = tape.gradient(loss, moved)
    if estimator != "soft":
        scalar = cosine if estimator == "cosine" else functools.partial(dot_product, factor=rate)
        return moved, tf.vectorized_map(lambda pair: scalar(*pair), (labeled, unlabeled))[:, None]
    return moved, label_feedback(label_tape, pseudo, unlabeled, labeled, rate, pseudo.shape[1])


def train(
    problem: Problem, method: ConfigDict, teacher: Network, student: Network
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Takes `method.steps` steps from these networks, compiled."""

    @tf.function(jit_compile=True)
    def several(first: tf.Tensor, last: tf.Tensor, *networks: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def body(number: tf.Tensor, *networks: tf.Tensor) -> tuple[tf.Tensor, ...]:
            moved = step(
                networks[: len(teacher)], networks[len(teacher) :], number, problem, method
            )
            return (number + 1, *moved[0], *moved[1])

        return tf.while_loop(lambda number, *_: number < last, body, (first, *networks))[1:]

    networks: tuple[tf.Tensor, ...] = (*teacher, *student)
    compiled = several.get_concrete_function(tf.constant(0), tf.constant(0), *networks)
    for first in progress(
        range(0, method.steps, CHUNK), len(range(0, method.steps, CHUNK)), "thousand steps"
    ):
        networks = compiled(
            tf.constant(first), tf.constant(min(first + CHUNK, method.steps)), *networks
        )
    return list(networks[: len(teacher)]), list(networks[len(teacher) :])


def check_method(name: str, method: ConfigDict) -> None:
    """Raises InputError where a method of the recipe cannot be run."""
    for key in ("steps", "batch_size"):
        if method[key] < 1:
            raise InputError(f"methods.{name}.{key} is {method[key]}; at least 1 is needed")
    if method.temperature <= 0:
        raise InputError(f"methods.{name}.temperature is {method.temperature}; it must be above 0")
    for key, known in CHOICES.items():
        if method[key] not in known:
            raise InputError(
                f"methods.{name}.{key}: there is no {method[key]!r}; known: {', '.join(known)}"
            )
    if method.feedback:
        try:
            find_estimator(method.estimator, method.pseudo_labels)
        except ValueError as error:
            raise InputError(f"methods.{name}: {error}") from error
