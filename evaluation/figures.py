"""Draws figures of an evaluation as PNG files: reliability, confusions, and a summary of both.

The summary also has the accuracies. Figures are independent objects (no pyplot, no global state,
no display). Colors are the eight of Okabe and Ito ("Color Universal Design", 2008), which differ
for any color vision. Lines differ in marker as well.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from cli.files import atomic_path
from evaluation.metrics import Evaluation

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe–Ito colors without the yellow, which is too pale for lines on white."""
MARKERS = "osD^vPX*"

_MOST_COUNTS = 20  # classes up to which the counts are legible in the cells
_MOST_NAMES = 40  # classes up to which the names are legible on the axes
_LONGEST_NAME = 18  # characters


def reliability(evaluations: Sequence[Evaluation], path: str | os.PathLike[str]) -> None:
    """Draws a reliability diagram: one curve per model, and below it the examples by confidence."""
    figure = _figure(6.0, 6.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _draw_reliability(top, evaluations)
    top.set_xlabel("")
    for i, evaluation in enumerate(evaluations):
        share = evaluation.bins.count / evaluation.examples
        bottom.stairs(100 * share, evaluation.bins.edges, color=_color(i), linewidth=1.5)
    bottom.set(
        xlabel="confidence (probability of the answer)", ylabel="examples (%)", ylim=(0, None)
    )
    _save(figure, path)


def confusion(evaluation: Evaluation, path: str | os.PathLike[str]) -> None:
    """Draws the confusion matrix of one model: rows are the true classes, columns the answers."""
    classes = len(evaluation.label_names)
    side = float(np.clip(0.42 * classes, 3.5, 10.0))
    figure = _figure(side + 2.0, side + 1.2)
    _draw_confusion(figure.subplots(), evaluation)
    _save(figure, path)


def summary_figure(rows: Sequence[Evaluation], path: str | os.PathLike[str]) -> None:
    """Draws one picture of a whole run.

    It shows the accuracies of teacher and students, their calibration, and the last student's
    confusions.

    Args:
      rows: evaluations of the models in the order of their making; the last is the final student.
      path: PNG to write.

    Raises:
      ValueError: no rows.
    """
    if not rows:
        raise ValueError("no models to draw")
    figure = _figure(9.0, 9.6)  # narrow: a page shows it without making its text much smaller
    panels: dict[str, Axes] = figure.subplot_mosaic(
        [["accuracies", "reliability"], ["confusion", "confusion"]], height_ratios=[1, 1.25]
    )
    _draw_accuracies(panels["accuracies"], rows)
    _draw_reliability(panels["reliability"], rows)
    _draw_confusion(panels["confusion"], rows[-1])
    _save(figure, path)


def _draw_accuracies(axes: Axes, rows: Sequence[Evaluation]) -> None:
    """Draws a dot with its interval for each model, the first one on top, up to 100 %."""
    places = np.arange(len(rows))[::-1]
    for i, (place, row) in enumerate(zip(places, rows)):
        low, high = (100 * end for end in row.top1_interval)
        axes.plot([low, high], [place, place], color=_color(i), linewidth=2)
        axes.plot(100 * row.top1, place, MARKERS[i % len(MARKERS)], color=_color(i), markersize=9)
        axes.annotate(
            f"{100 * row.top1:.1f}",
            (100 * row.top1, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
        )
    lowest = min(100 * row.top1_interval[0] for row in rows)
    axes.set_xlim(max(0.0, float(np.floor(lowest - 1))), 100)
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_yticks(places, [_text(row.name) for row in rows], parse_math=False)
    axes.set_xlabel("top-1 (%)")
    axes.grid(axis="x", alpha=0.3)
    top1 = 100 * rows[-1].top1
    _title(
        axes,
        f"Top-1 of {rows[-1].name}: {top1:.1f} %",
        f"{rows[-1].examples:,} test examples, 95 % Wilson intervals",
    )


def _draw_reliability(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    axes.plot([0, 1], [0, 1], color="#808080", linestyle="--", linewidth=1, label="perfect")
    for i, evaluation in enumerate(evaluations):
        bins = evaluation.bins
        filled = bins.count > 0
        confidence, accuracy = bins.confidence[filled], bins.accuracy[filled]
        axes.plot(confidence, accuracy, color=_color(i), linewidth=1, alpha=0.4)
        axes.scatter(
            confidence,
            accuracy,
            s=15 + 150 * np.sqrt(bins.count[filled] / evaluation.examples),  # a bin of few is small
            color=_color(i),
            marker=MARKERS[i % len(MARKERS)],
            clip_on=False,  # bins of 0 or 1 are whole marks
            zorder=3,
            label=f"{_text(evaluation.name)} (ECE {evaluation.ece:.3f})",
        )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="confidence (probability of the answer)",
        ylabel="accuracy",
    )
    legend = axes.legend(loc="best", fontsize=9)
    for handle, text in zip(legend.legend_handles, legend.get_texts()):
        text.set_parse_math(False)
        if isinstance(handle, PathCollection):
            handle.set_sizes([30])
    axes.grid(alpha=0.3)
    last = evaluations[-1]
    _title(
        axes,
        f"Calibration of {last.name}: ECE {last.ece:.3f}",
        f"{len(last.bins.count)} bins; larger marks: more images; below the diagonal: "
        "overconfident",
    )


def _draw_confusion(axes: Axes, evaluation: Evaluation) -> None:
    counts = evaluation.confusion  # (K, K)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The square root lifts rare mistakes off the white; they are what readers look for.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if classes <= _MOST_COUNTS:
        size = 10 if classes <= 12 else 7
        for i, j in zip(*np.nonzero(counts)):
            axes.text(
                j,
                i,
                str(counts[i, j]),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[i, j] > 0.35 else "black",
            )
    if classes <= _MOST_NAMES:
        names = [_text(name, fallback=f"#{i}") for i, name in enumerate(evaluation.label_names)]
        turned = max(map(len, names)) > 3
        axes.set_xticks(
            range(classes),
            names,
            parse_math=False,
            rotation=90 if turned else 0,
            fontsize=9 if classes <= 20 else 7,
        )
        axes.set_yticks(range(classes), names, parse_math=False, fontsize=9 if classes <= 20 else 7)
    axes.set(xlabel="answer", ylabel="true class")
    wrong = int(counts.sum() - np.trace(counts))
    _title(
        axes,
        f"Mistakes of {evaluation.name}: {wrong:,} of {int(counts.sum()):,}",
        "examples; color: share of the true class (square root)",
    )


def _figure(width: float, height: float) -> Figure:
    """Returns an empty figure of `width` × `height` inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(
        _text(title, longest=60), fontweight="bold", fontsize=11, parse_math=False, pad=19
    )
    axes.annotate(
        subtitle,
        (0.5, 1),
        (0, 5),
        "axes fraction",
        "offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color="#404040",
    )


def _text(name: str, fallback: str | None = None, longest: int = _LONGEST_NAME) -> str:
    """Returns `name`, shortened to `longest` characters.

    Returns `fallback`, if there is one, where the font lacks one of the characters. It would draw
    an empty box, which names no one.
    """
    if fallback is not None:
        font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
        if not name.strip() or any(font.get_char_index(ord(character)) == 0 for character in name):
            return fallback
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font"
        )  # a model's directory may be named in any script
        figure.savefig(temporary, format="png", dpi=120)
