r"""Draws the learning rates of a recipe, one panel for each of its trainings.

    ./run_tool.sh plot_schedules --config=configs/noisy_student/imagenet.py:l2 \
        --output=rates.png [--data=DIR]

The steps follow from the number of labeled images in the prepared data of --data. Without --data,
the number is that of a full copy, as the recipe expects it.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.files import atomic_path
from training import estimates, resolve, schedules

POINTS = 2000
COLORS = {"": "#0072B2", "teacher": "#D55E00", "student": "#0072B2"}  # Okabe and Ito's


def rates(
    config: ConfigDict, labeled_examples: int
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Returns the learning rates of each training. Raises InputError.

    Returns:
      Train section -> network ("" if there is only one) -> (steps, learning rates), each (N,).
    """
    found = {}
    for name, section in config.items():
        if not (isinstance(section, ConfigDict) and "batch_size" in section and "steps" in section):
            continue
        train = resolve.section(
            section.to_dict(), labeled_examples=labeled_examples, unlabeled=True
        )
        steps = np.unique(np.linspace(0, train["steps"] - 1, POINTS).astype(np.int64))
        made = schedules.of_section(train, labeled_examples / train["batch_size"])
        found[name] = {
            network: (steps, schedule(tf.constant(steps)).numpy())
            for network, schedule in made.items()
        }
    if not found:
        raise InputError("--config: the recipe has no training")
    return found


def main(config: ConfigDict, output: str, data: str | None) -> None:
    """Writes `output`; see the module. Raises InputError."""
    if data and not Path(data, "summary.json").exists():
        raise InputError(
            f"--data: {data} holds no summary.json; make it with run_prepare_data.sh, or leave the"
            " flag out"
        )
    if Path(output).is_dir():
        raise InputError(f"--output: {output} is a directory; name a PNG to write")
    panels = rates(config, estimates.images(config, Path(data or "--data"))["labeled"])
    figure = Figure(figsize=(8.0, 0.6 + 2.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, networks) in zip(
        np.atleast_1d(figure.subplots(len(panels), 1)), panels.items()
    ):
        for network, (steps, values) in networks.items():
            axes.plot(steps, values, color=COLORS[network], label=network or None)
        axes.set(
            title=name,
            xlabel="optimizer step",
            ylabel="learning rate",
            xlim=(0, None),
            ylim=(0, None),
        )
        if len(networks) > 1:
            axes.legend()
    with atomic_path(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(f"learning rates of {', '.join(panels)} in {output}")
