"""Runs the paper's toy experiment (Pham et al. 2021, Section 3.1) over many seeds at once.

The command is `run_experiment.sh two_moons`. There are 2,000 points in two moons, 6 of them
labeled. Teacher and student are perceptrons 2-8-8-2 with sigmoids. The paper shows one outcome and
says that Meta Pseudo Labels succeeds much more often than the other methods. Here the share of
successes is counted.

All seeds are computed together (`toy_training`).
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)

# isort: split

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy import stats

from cli import work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import write_json
from evaluation.statistics import wilson_interval
from experiments import toy_training
from experiments.study_figure import WIDTH
from experiments.toy_training import Network

POINTS, LABELED = 1000, 3  # of each moon
SIZES = (2, 8, 8, 2)
PANELS = (
    "supervised",
    "pseudo_labels",
    "uda",
    "meta_pseudo_labels",
    "meta_pseudo_labels_with_uda",
)  # of the figure, where they were run
COLORS, LIGHT = ("#0072B2", "#D55E00"), ("#CCE3F0", "#F7DFCC")


class Moons:
    """The data of S seeds.

    Attributes:
      x: points, float32 (S, 2000, 2), about the origin.
      y: their moons, one-hot float32 (S, 2000, 2).
      labeled: (x, y) of the labeled ones, (S, 6, 2) each.
    """

    def __init__(self, seed: int, num_seeds: int, noise: float):
        points, labeled = [], []
        for index in range(num_seeds):
            rng = np.random.default_rng([seed, index])
            angle = rng.uniform(0, np.pi, (2, POINTS))
            upper = np.stack([np.cos(angle[0]), np.sin(angle[0])], -1)
            lower = np.stack([1 - np.cos(angle[1]), 0.5 - np.sin(angle[1])], -1)
            points.append(
                np.concatenate([upper, lower])
                - [0.5, 0.25]
                + noise * rng.normal(size=(2 * POINTS, 2))
            )
            labeled.append(
                np.concatenate(
                    [rng.choice(POINTS, LABELED, replace=False) + moon * POINTS for moon in (0, 1)]
                )
            )
        self.x = tf.constant(np.array(points), tf.float32)
        self.y = tf.one_hot(tf.repeat([np.repeat([0, 1], POINTS)], num_seeds, 0), 2)
        self.labeled = tuple(
            tf.gather(v, np.array(labeled), batch_dims=1) for v in (self.x, self.y)
        )

    def logits(self, network: Network, x: tf.Tensor) -> tf.Tensor:
        """Maps points (S, n, 2) to logits (S, n, 2)."""
        w1, b1, w2, b2, w3, b3 = network
        return tf.sigmoid(tf.sigmoid(x @ w1 + b1) @ w2 + b2) @ w3 + b3

    labeled_logits = logits


def initialize(seed: int, num_seeds: int, scale: float) -> list[tf.Tensor]:
    """Returns one network per seed, with weights and biases uniform in ±scale."""
    shapes = [shape for a, b in zip(SIZES, SIZES[1:]) for shape in ((a, b), (1, b))]
    return [
        tf.random.stateless_uniform([num_seeds, *shape], [seed, i], -scale, scale)
        for i, shape in enumerate(shapes)
    ]


def accuracy(network: Network, moons: Moons) -> np.ndarray:
    """Returns the share of all points that are in their own moon, (S,)."""
    return np.mean(tf.argmax(moons.logits(network, moons.x), -1) == tf.argmax(moons.y, -1), 1)


def main(config: ConfigDict, workdir: str) -> None:
    """Trains every method on every seed; leaves `results.json` and `figure.png`."""
    check_config(config)
    directory = Path(workdir)
    done = finished(directory, config)
    if done:
        work_dirs.say_done(directory, f"{done}\n{directory} is done")
        return
    tf.config.experimental.enable_op_determinism()
    moons = Moons(config.seed, config.seeds, config.noise)
    rows: dict[str, dict[str, Any]] = {}
    trained: dict[str, list[tf.Tensor]] = {}  # the network that counts, by method
    for name in config.run:
        method = config.methods[name]
        began = time.time()
        teacher, student = (
            initialize(2 * config.seed + i, config.seeds, method.init_scale) for i in (0, 1)
        )
        if method.teacher:
            teacher = trained[method.teacher]
        networks = dict(
            zip(("teacher", "student"), toy_training.train(moons, method, teacher, student))
        )
        trained[name] = networks[method.result]
        values = accuracy(trained[name], moons)
        rows[name] = {
            "success_rate": float(np.mean(values >= config.success)),
            "successes": int(np.sum(values >= config.success)),
            "seeds": config.seeds,
            "median_accuracy": float(np.median(values)),
            "accuracy": [round(float(v), 4) for v in values],
            "seconds": round(time.time() - began, 1),
        }
        print(table({name: rows[name]}), flush=True)
    for other in config.run[:-1]:
        print(against(rows, config.run[-1], other, config.success))
    write_json(directory / "results.json", {"success": config.success, "methods": rows})
    shown = [name for name in PANELS if name in trained] or list(trained)
    draw(
        moons,
        {name: trained[name] for name in shown},
        typical(rows, shown),
        directory / "figure.png",
    )
    summary = {"methods": rows, "figure": str(directory / "figure.png")}
    work_dirs.finish(directory, summary, f"{table(rows)}\n{directory} is done")
    print(f"results: {directory / 'results.json'}\nfigure: {directory / 'figure.png'}")


def check_config(config: ConfigDict) -> None:
    """Raises InputError where the recipe cannot be run."""
    if config.seed < 0:
        raise InputError(f"seed is {config.seed}; it must be at least 0")
    if config.seeds < 1:
        raise InputError(f"seeds is {config.seeds}; at least 1 is needed")
    if not 0 < config.success <= 1:
        raise InputError(
            f"success is {config.success}; it is a part of all points, above 0 and at most 1"
        )
    if not config.run:
        raise InputError(f"run names no method; known: {', '.join(config.methods)}")
    for place, name in enumerate(config.run):
        if name not in config.methods:
            raise InputError(
                f"run: there is no method {name!r}; known: {', '.join(config.methods)}"
            )
        method = config.methods[name]
        if method.teacher and method.teacher not in config.run[:place]:
            raise InputError(
                f"methods.{name}.teacher: there is no method {method.teacher!r} before it"
            )
        toy_training.check_method(name, method)


def finished(directory: Path, config: ConfigDict) -> str | None:
    """Claims the work directory; returns the table where the same recipe was run there before.

    Raises:
      InputError: it holds a run of another recipe, or its files are damaged or another command's.
    """
    try:
        done = work_dirs.start(directory, config.to_dict())
        return None if done is None else table({name: done["methods"][name] for name in config.run})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"--workdir: config.json or summary.json in {directory} is damaged or another"
            " command's; delete it or name another"
        ) from error


def typical(rows: dict[str, dict[str, Any]], names: Sequence[str]) -> int:
    """Returns the seed with the accuracies nearest to the methods' medians.

    So the figure shows no lucky seed.
    """
    distance = sum(
        np.abs(np.array(rows[name]["accuracy"]) - rows[name]["median_accuracy"]) for name in names
    )
    return int(np.argmin(distance))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns a line per method: successes, their rate with 95 % interval, median accuracy."""
    lines = []
    for name, row in rows.items():
        low, high = wilson_interval(row["successes"], row["seeds"])
        rate = f"{100 * row['success_rate']:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        lines.append(
            f"{name:<28}{row['successes']:>4} of {row['seeds']:<4}{rate:>22}   median"
            f" {100 * row['median_accuracy']:.1f} %"
        )
    return "\n".join(lines)


def against(rows: dict[str, dict[str, Any]], name: str, other: str, success: float) -> str:
    """Returns a line: on how many seeds only one of two methods succeeds, and McNemar's exact p."""
    first, second = (np.array(rows[method]["accuracy"]) >= success for method in (name, other))
    only, only_other = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p = stats.binomtest(only, only + only_other).pvalue if only + only_other else 1.0
    return (
        f"{name} against {other}: {only} seeds only with the first, {only_other} only with the"
        f" second, p = {p:.2g}"
    )


def draw(moons: Moons, networks: dict[str, list[tf.Tensor]], index: int, path: Path) -> None:
    """Draws the decision regions of one seed, one panel per method, as in the paper's Figure 2."""
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    figure = Figure(figsize=(WIDTH, 0.9 + 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    x, y = moons.x[index].numpy(), np.argmax(moons.y[index], -1)
    (low_x, low_y), (high_x, high_y) = x.min(0) - 0.2, x.max(0) + 0.2
    grid = np.stack(
        np.meshgrid(np.linspace(low_x, high_x, 300), np.linspace(low_y, high_y, 300)), -1
    ).reshape(1, -1, 2)
    x_l, y_l = moons.labeled[0][index].numpy(), np.argmax(moons.labeled[1][index], -1)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(networks) :]:
        axes.set_axis_off()
    for axes, (name, network) in zip(panels, networks.items()):
        one = [v[index : index + 1] for v in network]
        region = np.argmax(moons.logits(one, tf.constant(grid, tf.float32))[0], -1).reshape(
            300, 300
        )
        axes.imshow(
            region,
            origin="lower",
            extent=(low_x, high_x, low_y, high_y),
            cmap=ListedColormap(LIGHT),
            vmin=0,
            vmax=1,
            aspect="auto",
        )
        for moon, (color, marker) in enumerate(zip(COLORS, "o^")):
            axes.scatter(*x[y == moon].T, s=3, color=color, linewidths=0)
            axes.scatter(
                *x_l[y_l == moon].T,
                s=110,
                color=color,
                marker=marker,
                edgecolors="black",
                linewidths=1.2,
            )
        right = np.mean(np.argmax(moons.logits(one, moons.x[index : index + 1])[0], -1) == y)
        title = name.replace("_", " ").replace("uda", "UDA")
        axes.set_title(f"{title}: {100 * right:.1f} % right", fontsize=12)
        axes.set(xticks=[], yticks=[])
    figure.supxlabel(
        f"Seed {index} of {len(moons.x)}, the nearest to the medians. Large marks: labeled points.",
        fontsize=11,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200)
