"""Draws the figure of a study: every condition with its seeds, its mean and its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from cli.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.3
"""Inches. At 100 dots an inch a page shows the figure without making its text smaller."""


def figure(config: ConfigDict, found: Mapping[str, Any], path: Path) -> None:
    """Writes the figure of `drawn` to the PNG `path`."""
    with atomic_path(path) as temporary:
        drawn(config.title, found["readings"]).savefig(temporary, format="png", dpi=200)


def drawn(title: str, readings: Mapping[str, Sequence[float]]) -> Figure:
    """Draws a row for each reading, the best one on top.

    Dots are the seeds, the bar is their mean, and the whisker is one standard deviation to either
    side. The axis ends at 100 %.

    Args:
      title: title of the study.
      readings: the numbers of each reading by name, in percent, one for each seed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(readings, key=lambda name: float(np.mean(readings[name])))
    sheet = Figure(figsize=(WIDTH, 1.3 + 0.36 * len(names)), layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.subplots()
    for row, name in enumerate(names):
        _draw_row(axes, row, readings[name])
    numbers = np.concatenate([readings[name] for name in names])
    axes.set_xlim(*_limits(numbers))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=11)
    seeds = len(readings[names[0]])
    axes.set_xlabel(f"top-1 (%): {seeds} seeds, their mean, ± one standard deviation", fontsize=11)
    axes.set_title(title, fontsize=12)
    axes.grid(axis="x", alpha=0.3)
    return sheet


def _draw_row(axes: Any, row: int, numbers: Sequence[float]) -> None:
    mean, spread = float(np.mean(numbers)), float(np.std(numbers, ddof=1))
    axes.plot([mean - spread, min(100.0, mean + spread)], [row, row], color="black", linewidth=1.2)
    axes.plot([mean, mean], [row - 0.3, row + 0.3], color="black", linewidth=2.5)
    heights = np.linspace(row - 0.18, row + 0.18, len(numbers))  # apart, where numbers are equal
    axes.plot(numbers, heights, "o", color="#0072B2", markersize=5, alpha=0.8)


def _limits(numbers: np.ndarray) -> tuple[float, float]:
    """Returns the ends of the axis, in percent: a point around the numbers, within 0 and 100."""
    low, high = np.floor(numbers.min() - 1), np.ceil(numbers.max() + 1)
    return max(0.0, float(low)), min(100.0, float(high))
