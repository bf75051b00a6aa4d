"""Measures signal and noise of the estimators in `feedback.py`, on perceptrons and real images.

The command is `run_experiment.sh feedback_study`. Teacher and student are perceptrons with one
hidden layer on scikit-learn's digits, somewhat trained. For one unlabeled batch the labels are
drawn many times, and each time every estimator gives the teacher's gradient g.

Signal-to-noise is ‖E g‖² / E‖g − E g‖²: how much of a single step's gradient is direction and not
the luck of the draw. What the choice of batches adds is left out. Scale drops out, so a batch
factor or a weight does not matter.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)

# isort: split

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from cli import work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import write_json
from experiments.study_figure import WIDTH
from meta_pseudo_labels.feedback import (
    cosine,
    dot_product,
    draw_pseudo_labels,
    finite_difference,
    hard_loss,
    label_feedback,
    soft_cross_entropy,
    soft_loss,
)

ESTIMATORS = ("finite_difference", "dot_product", "cosine", "per_example", "soft")
BASELINES = (
    "finite_difference",
    "dot_product",
    "cosine",
    "per_example",
)  # a baseline is subtracted from these

Network = Sequence[tf.Tensor]


def logits(network: Network, x: tf.Tensor) -> tf.Tensor:
    """Maps images (B, 64) to logits (B, 10)."""
    w1, b1, w2, b2 = network
    return tf.tanh(x @ w1 + b1) @ w2 + b2


def initialize(seed: int, hidden: int) -> list[tf.Tensor]:
    """Returns a fresh network."""
    normal = [
        tf.random.stateless_normal(shape, [seed, i]) / shape[0] ** 0.5
        for i, shape in enumerate([(64, hidden), (hidden, 10)])
    ]
    return [normal[0], tf.zeros([hidden]), normal[1], tf.zeros([10])]


def descend(
    network: Network, x: tf.Tensor, targets: tf.Tensor, rate: float, steps: int
) -> list[tf.Tensor]:
    """Runs full-batch gradient descent on cross entropy."""
    network = list(network)
    for _ in range(steps):
        network = [v - rate * g for v, g in zip(network, gradient(network, x, targets)[1])]
    return network


def gradient(
    network: Network, x: tf.Tensor, targets: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns the mean cross entropy and its gradient."""
    with tf.GradientTape() as tape:
        tape.watch(network)
        loss = tf.reduce_mean(soft_cross_entropy(targets, logits(network, x)))
    return loss, tape.gradient(loss, network)


def teacher_gradients(
    teacher: Network,
    student: Network,
    x_u: tf.Tensor,
    x_l: tf.Tensor,
    y_l: tf.Tensor,
    uniform: tf.Tensor,
    rate: float,
    means: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what each estimator makes of one draw.

    Args:
      teacher: θ_T.
      student: θ_S.
      x_u: (B_u, 64).
      x_l: (B_l, 64).
      y_l: (B_l, 10).
      uniform: the draw, (B_u, 10).
      rate: η_S.
      means: a baseline for each of `BASELINES`.

    Returns:
      (gradients (estimators, parameters), the h of `BASELINES`).
    """
    pseudo = draw_pseudo_labels("sampled", logits(teacher, x_u), uniform)
    with tf.GradientTape(watch_accessed_variables=False) as label_tape:
        label_tape.watch(pseudo)
        _, unlabeled = gradient(student, x_u, pseudo)
    moved = [v - rate * g for v, g in zip(student, unlabeled)]
    new, labeled = gradient(moved, x_l, y_l)
    old, _ = gradient(student, x_l, y_l)
    h_ik = label_feedback(label_tape, pseudo, unlabeled, labeled, rate, x_u.shape[0])
    h_i = tf.reduce_sum(h_ik * pseudo, -1)
    h = [
        finite_difference(old, new),
        dot_product(labeled, unlabeled, rate),
        cosine(labeled, unlabeled),
        tf.reduce_mean(h_i),
    ]
    rows = []
    for i, estimator in enumerate(ESTIMATORS):
        with tf.GradientTape() as tape:
            tape.watch(teacher)
            z = logits(teacher, x_u)
            if estimator == "soft":
                loss = soft_loss(h_ik, z)
            else:
                loss = hard_loss(
                    (h_i if estimator == "per_example" else h[i]) - means[i], pseudo, z
                )
        rows.append(tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, teacher)], 0))
    return tf.stack(rows), tf.stack(h)


def signal_to_noise(gradients: np.ndarray) -> np.ndarray:
    """Returns ‖E g‖² / E‖g − E g‖² of gradients (draws, estimators, parameters), at least 0.

    The bias of a finite number of draws is taken out.
    """
    draws = len(gradients)
    noise = gradients.var(0, ddof=1).sum(-1)
    signal = (gradients.mean(0) ** 2).sum(-1) - noise / draws
    return np.maximum(signal, 0) / noise


def measure(config: ConfigDict) -> dict[str, list[list[float]]]:
    """Returns the signal-to-noise of each estimator.

    Each has a list for each batch size, with a number for each batch of images, in ascending order.
    """
    digits = load_digits()
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(digits.target))
    x = tf.constant((digits.data[order] - 5.0) / 6.0, tf.float32)
    x_l, y_l = x[: config.labeled], tf.one_hot(digits.target[order][: config.labeled], 10)
    pool = x[config.labeled :]
    teacher = descend(
        initialize(2 * config.seed, config.hidden), x_l, y_l, 0.1, config.teacher_steps
    )
    labels = tf.nn.softmax(logits(teacher, pool))
    student = descend(
        initialize(2 * config.seed + 1, config.hidden), pool, labels, 0.1, config.student_steps
    )

    def draw_all(x_u: tf.Tensor, means: tf.Tensor, batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        uniform = tf.random.stateless_uniform(
            [config.draws, x_u.shape[0], 10], [config.seed, 7 + batch]
        )
        return tf.map_fn(
            lambda u: teacher_gradients(
                teacher, student, x_u, x_l, y_l, u, config.learning_rate, means
            ),
            uniform,
            fn_output_signature=(tf.float32, tf.float32),
        )

    results: dict[str, list[list[float]]] = {}
    for size in config.batch_sizes:
        ratios = []
        compiled = tf.function(draw_all)
        for batch in range(config.batches):
            x_u = tf.gather(pool, rng.choice(len(pool), size, replace=False))
            plain, h = compiled(x_u, tf.zeros([len(BASELINES)]), tf.constant(batch))
            centered, _ = compiled(x_u, tf.reduce_mean(h, 0), tf.constant(batch))
            ratios.append(
                np.concatenate(
                    [
                        signal_to_noise(plain.numpy()),
                        signal_to_noise(centered.numpy()[:, : len(BASELINES)]),
                    ]
                )
            )
        for name, values in zip(
            (*ESTIMATORS, *(f"{name}, baseline" for name in BASELINES)), np.sort(ratios, 0).T
        ):
            results.setdefault(name, []).append(values.tolist())
        parts = (
            f"{name} {np.median(v[-1]):.2g} ({v[-1][0]:.2g} to {v[-1][-1]:.2g})"
            for name, v in results.items()
        )
        print(f"B_u = {size}: {', '.join(parts)}", flush=True)
    return results


def main(config: ConfigDict, workdir: str) -> None:
    """Runs the study; leaves `results.json` and `figure.png`."""
    check_config(config)
    directory = Path(workdir)
    done = work_dirs.start(directory, config.to_dict())
    if done:
        work_dirs.say_done(directory, f"{directory} is done")
        return
    results = measure(config)
    sizes = list(config.batch_sizes)
    write_json(directory / "results.json", {"batch_sizes": sizes, "signal_to_noise": results})
    draw(config, results, directory / "figure.png")
    work_dirs.finish(
        directory, {"batch_sizes": sizes, "signal_to_noise": results}, f"{directory} is done"
    )
    print(f"results: {directory / 'results.json'}\nfigure: {directory / 'figure.png'}")


def check_config(config: ConfigDict) -> None:
    """Raises InputError where the study cannot be made."""
    images = len(load_digits().target)
    if config.seed < 0:
        raise InputError(f"seed is {config.seed}; it must be at least 0")
    if not 1 <= config.labeled < images:
        raise InputError(
            f"labeled is {config.labeled}; it must be at least 1 and below {images}, the images"
            " there are"
        )
    for key, least in (("draws", 2), ("batches", 1), ("hidden", 1)):
        if config[key] < least:
            raise InputError(f"{key} is {config[key]}; at least {least} is needed")
    pool = images - config.labeled
    if not config.batch_sizes or min(config.batch_sizes) < 1 or max(config.batch_sizes) > pool:
        raise InputError(
            f"batch_sizes are {tuple(config.batch_sizes)}; needed are numbers from 1 to {pool}, the"
            " unlabeled images there are"
        )


def floor(draws: int) -> float:
    """Returns an upper bound of the standard error of a ratio without any signal.

    It is that of normal noise along one line.
    """
    return float(np.sqrt(2) / draws)


def draw(config: ConfigDict, results: Mapping[str, list[list[float]]], path: Path) -> None:
    """Draws medians and ranges against B_u, both on logarithmic axes.

    A baseline is a dashed line of its estimator's color. Values below `floor` are drawn there: they
    show no signal. The legend lists the estimators in the order of their last values.

    Args:
      config: the study's values.
      results: as `measure` returns them.
      path: PNG to write.
    """
    colors = dict(zip(ESTIMATORS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")))
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes, least = figure.subplots(), floor(config.draws)
    for place, (name, ratios) in enumerate(sorted(results.items(), key=_last, reverse=True)):
        estimator, _, baseline = name.partition(", ")
        values = np.maximum(ratios, least)
        middle = np.median(values, 1)
        aside = 1 + 0.03 * (place - len(results) // 2)  # so that ranges do not hide each other
        axes.errorbar(
            np.array(config.batch_sizes) * aside,
            middle,
            (middle - values.min(1), values.max(1) - middle),
            fmt="o--" if baseline else "o-",
            color=colors[estimator],
            markersize=5,
            elinewidth=1,
            label=name.replace("_", " "),
        )
    axes.axhline(least, color="0.4", linestyle=":", label="no signal")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(config.batch_sizes, [str(size) for size in config.batch_sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("unlabeled images in a step, B_u", fontsize=11)
    axes.set_ylabel("signal-to-noise of the teacher's gradient", fontsize=11)
    axes.set_title(
        f"Median and range of {config.batches} batches, {config.draws} draws each, seed"
        f" {config.seed}",
        fontsize=12,
    )
    axes.tick_params(labelsize=11)
    line, *curves = zip(*axes.get_legend_handles_labels())
    figure.legend(*zip(*curves, line), loc="outside right upper", fontsize=10)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200)


def _last(item: tuple[str, list[list[float]]]) -> float:
    """Returns the median of an estimator's ratios at the largest batch."""
    return float(np.median(item[1][-1]))
