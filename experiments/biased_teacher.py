"""Tests whether the feedback mends a biased teacher, on a problem whose best answer is known.

The command is `run_experiment.sh biased_teacher`. Its recipe states the problem, the prediction and
the tests (`configs/experiments/biased_teacher.py`). All seeds are computed together
(`toy_training`).
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

from cli import work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import write_json
from experiments import study, toy_training
from experiments.toy_training import Network

CLASSES, DIMENSIONS, POINTS = 4, 16, 2000
COLORS = ("#999999", "#E69F00", "#0072B2", "#CC79A7", "#56B4E9", "#D55E00", "#009E73")


class BiasedTeacher:
    """The data of S seeds, and the networks' start. See `toy_training.Problem`.

    Attributes:
      x: unlabeled points, float32 (S, 2000, 16).
      y: their classes, one-hot float32 (S, 2000, 4).
      labeled: (x, y) of the labeled points, (S, n, 16) and (S, n, 4).
      test: (x, y) of the test points, (S, 2000, 16) and (S, 2000, 4).
      best: weights and biases of the best classifier, (S, 16, 4) and (S, 1, 4).
      memory: factor of the teacher's own logits of the labeled points.
    """

    def __init__(self, seeds: Sequence[int], labeled_per_class: int, separation: float):
        columns: list[list[np.ndarray]] = [[] for _ in range(8)]
        for seed in seeds:
            rng = np.random.default_rng([seed])
            means = rng.normal(size=(CLASSES, DIMENSIONS))
            means *= separation / np.linalg.norm(means, axis=1, keepdims=True)
            for column, count in zip((0, 2, 4), (POINTS, CLASSES * labeled_per_class, POINTS)):
                y = np.arange(count) % CLASSES
                columns[column].append(means[y] + rng.normal(size=(count, DIMENSIONS)))
                columns[column + 1].append(np.eye(CLASSES)[y])
            columns[6].append(means.T)  # log p(x | k) = x·m_k - |m_k|²/2 + terms without k
            columns[7].append(-0.5 * np.sum(means**2, axis=1)[None])
        tensors = [tf.constant(np.array(column), tf.float32) for column in columns]
        self.x, self.y = tensors[:2]
        self.labeled, self.test = tuple(tensors[2:4]), tuple(tensors[4:6])
        self.best: Network = tensors[6:]
        self.memory = 0.0

    def logits(self, network: Network, x: tf.Tensor) -> tf.Tensor:
        """Maps points (S, n, 16) to logits (S, n, 4)."""
        return x @ network[0] + network[1]

    def labeled_logits(self, teacher: Network, x: tf.Tensor) -> tf.Tensor:
        """Maps the labeled points to the teacher's logits, with its memory of them."""
        return self.logits(teacher, x) + self.memory * teacher[2]

    def start(self, bias: bool) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns teacher and student before the first step.

        With `bias` the teacher is the best classifier with classes 0 and 1 swapped. Everything else
        starts at 0.
        """
        student = [tf.zeros_like(v) for v in self.best]
        swapped = [1, 0, *range(2, CLASSES)]
        teacher = [tf.gather(v, swapped, axis=-1) for v in self.best] if bias else list(student)
        return [*teacher, tf.zeros_like(self.labeled[1])], student

    def accuracy(self, network: Network) -> np.ndarray:
        """Returns the top-1 of each seed on its test points, percent, (S,)."""
        x, y = self.test
        right = tf.argmax(self.logits(network, x), -1) == tf.argmax(y, -1)
        return 100 * np.mean(right, axis=1)


def main(config: ConfigDict, workdir: str) -> None:
    """Trains every method with every memory; leaves `results.json`, `results.md`, `figure.png`."""
    check_config(config)
    directory = Path(workdir)
    if work_dirs.start(directory, config.to_dict()) is not None:
        work_dirs.say_done(directory, f"{directory} is done")
        return
    tf.config.experimental.enable_op_determinism()
    problem = BiasedTeacher(
        range(config.seed, config.seed + config.seeds),
        config.labeled_per_class,
        config.separation,
    )
    best = problem.accuracy(problem.best)
    readings = {"best classifier": best.tolist()}
    for memory in config.memories:
        problem.memory = memory
        for name, method in config.methods.items():
            networks = toy_training.train(problem, method, *problem.start(config.bias))
            reached = problem.accuracy(networks[method.result == "student"])
            readings[f"{name}, memory {memory:g}"] = reached.tolist()
            print(f"{name}, memory {memory:g}: {np.mean(reached):.2f} %", flush=True)
    claims = [
        {"finding": text, **study.compare(readings[better], readings[worse])}
        for better, worse, text in config.claims
    ]
    found = {"readings": readings, "claims": study.corrected(claims)}
    write_json(directory / "results.json", found)
    text = study.markdown(config, found)
    with atomic_path(directory / "results.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(config, readings, directory / "figure.png")
    print(f"{text}\nfigure: {directory / 'figure.png'}")
    summary = {"figure": str(directory / "figure.png"), **found}
    work_dirs.finish(directory, summary, f"{text}\n{directory} is done")


def check_config(config: ConfigDict) -> None:
    """Raises InputError where the recipe cannot be run."""
    for key, least in (("seed", 0), ("seeds", 2), ("labeled_per_class", 1)):
        if config[key] < least:
            raise InputError(f"{key} is {config[key]}; it must be at least {least}")
    if not config.memories or min(config.memories) < 0:
        raise InputError(f"memories is {config.memories}; it needs numbers of at least 0")
    for name, method in config.methods.items():
        if method.teacher or method.all_labels:
            raise InputError(f"methods.{name}: teacher and all_labels have no meaning here")
        toy_training.check_method(name, method)
    known = {f"{name}, memory {memory:g}" for name in config.methods for memory in config.memories}
    for claim in config.claims:
        for name in claim[:2]:
            if name not in known:
                raise InputError(f"claims: there is no condition {name!r}")


def draw(config: ConfigDict, readings: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draws each method's top-1 against the memory: means, and one standard deviation."""
    figure = Figure(figsize=(8.3, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(config.memories))
    for i, name in enumerate(config.methods):
        values = np.array([readings[f"{name}, memory {memory:g}"] for memory in config.memories])
        axes.errorbar(
            places + 0.05 * (i - len(config.methods) / 2),
            values.mean(axis=1),
            yerr=values.std(axis=1, ddof=1),
            marker="o",
            capsize=3,
            color=COLORS[i % len(COLORS)],
            label=name.replace("_", " "),
        )
    axes.axhline(
        float(np.mean(readings["best classifier"])),
        color="black",
        linestyle="--",
        linewidth=1,
        label="best classifier",
    )
    axes.set_xticks(places, [f"{memory:g}" for memory in config.memories])
    axes.set_xlabel("memory of the teacher", fontsize=11)
    axes.set_ylabel("the student's top-1 (%)", fontsize=11)
    axes.set_title(f"{config.title}: {config.seeds} seeds, mean ± one standard deviation")
    axes.set_ylim(top=100)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
