"""Draws the report's charts: small SVGs in the page's colors, which follow light and dark.

matplotlib draws them in placeholder colors, which become CSS variables: --ink (text), --line
(grid), --s0 … --s6 (one per model). Each chart is about as wide as a phone's screen, so its text
stays legible there.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from evaluation.figures import MARKERS

SERIES = 7
_INK, _LINE = "#010101", "#020202"
_COLORS = tuple(f"#0303{i:02x}" for i in range(SERIES))
_VARIABLES = {
    _INK: "var(--ink)",
    _LINE: "var(--line)",
    **{color: f"var(--s{i})" for i, color in enumerate(_COLORS)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}

Series = tuple[str, Sequence[float], Sequence[float]]
"""(name, x values, y values) of one curve."""


def color(i: int) -> str:
    """Returns the placeholder of model number i's color."""
    return _COLORS[i % SERIES]


class Chart:
    """An empty drawing: `with Chart(…) as axes: …`, then `str(chart)` is the SVG element."""

    def __init__(self, label: str, height: float = 2.6, width: float = 4.3) -> None:
        """Takes `label`, which says in words what the chart shows, for people who cannot see it."""
        self._label, self._size, self._svg = label, (width, height), ""

    def __enter__(self) -> Axes:
        self._context = matplotlib.rc_context({**_STYLE, "svg.hashsalt": self._label})
        self._context.__enter__()
        self._figure = Figure(figsize=self._size, layout="constrained")
        FigureCanvasSVG(self._figure)
        return self._figure.subplots()

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                buffer = io.StringIO()
                with warnings.catch_warnings():
                    # Names may be in any script. matplotlib only measures them; the page's fonts
                    # draw them.
                    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                    self._figure.savefig(
                        buffer,
                        format="svg",
                        transparent=True,
                        metadata={"Date": None, "Creator": None},
                    )
                self._svg = self._tidy(buffer.getvalue())
        finally:
            self._context.__exit__(*error)

    def _tidy(self, svg: str) -> str:
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        svg = re.sub(
            r' id="[A-Za-z0-9.]*_\d+"', "", svg
        )  # figure_1 and such: the same in every drawing, and nothing refers to them
        for placeholder, variable in _VARIABLES.items():
            svg = svg.replace(placeholder, variable)
        svg = re.sub(
            r"font(-family)?: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1: \2var(--font)", svg
        )
        width, height = (round(96 * inches) for inches in self._size)
        head = f'<svg role="img" aria-label="{html.escape(self._label, quote=True)}"'
        head += f' viewBox="0 0 {72 * self._size[0]:g} {72 * self._size[1]:g}"'
        head += (
            f' style="width:{width}px;height:auto;max-width:100%;aspect-ratio:{width}/{height}"'
            ' xmlns="http://www.w3.org/2000/svg"'
        )
        head += ' xmlns:xlink="http://www.w3.org/1999/xlink">'
        return head + svg[svg.index(">", svg.index("<svg")) + 1 :]

    def __str__(self) -> str:
        return self._svg


def lines(
    label: str,
    series: Sequence[Series],
    x: str,
    y: str,
    *,
    markers: bool = True,
    height: float = 2.8,
    **limits: Any,
) -> str:
    """Draws curves; `limits` go to `Axes.set`."""
    chart = Chart(label, height)
    with chart as axes:
        for i, (name, xs, ys) in enumerate(series):
            marker = MARKERS[i % len(MARKERS)] if markers else None
            axes.plot(
                xs,
                ys,
                color=color(i),
                marker=marker,
                markersize=4,
                linewidth=1.5,
                label=_short(name),
            )
        axes.set(xlabel=x, ylabel=y, **limits)
        _legend(axes, len(series))
    return str(chart)


def bars(
    label: str,
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[Sequence[float] | None],
    x: str,
    guesses: Mapping[str, float] | None = None,
) -> str:
    """Draws one bar per model, with its interval and its value.

    `guesses` are drawn as dashed lines with their names.
    """
    chart = Chart(label, 0.75 + 0.32 * len(names) + (0.25 if guesses else 0))
    with chart as axes:
        for style, (name, value) in zip(("--", ":"), (guesses or {}).items()):
            axes.axvline(
                value, color=_INK, linestyle=style, linewidth=1, label=f"{name} {value:.1f}"
            )
        places = np.arange(len(names))
        axes.barh(places, values, height=0.66, color=[color(i) for i in range(len(names))])
        for place, value, interval in zip(places, values, intervals):
            if interval is not None:
                axes.plot(
                    interval, [place, place], color=_INK, linewidth=1.2, marker="|", markersize=6
                )
            end = max(value, interval[1]) if interval is not None else value
            axes.annotate(
                f"{value:.1f}", (end, place), xytext=(4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, [_short(name) for name in names], parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x)
        axes.margins(x=0.12)
        axes.set_xlim(left=0)
        if guesses:
            _legend(axes, 2, above=True)
    return str(chart)


def grouped_bars(
    label: str, groups: Sequence[str], rows: Mapping[str, Sequence[float]], x: str
) -> str:
    """Draws one horizontal bar per model in every group: a tall chart that a phone can scroll."""
    thickness = 0.8 / max(len(rows), 1)
    chart = Chart(label, 0.9 + len(groups) * max(0.26, 0.085 * len(rows)))
    with chart as axes:
        places = np.arange(len(groups))
        for i, (name, values) in enumerate(rows.items()):
            axes.barh(
                places + (i - (len(rows) - 1) / 2) * thickness,
                values,
                height=0.9 * thickness,
                color=color(i),
                label=_short(name),
            )
        axes.set_yticks(places, [group.replace("_", " ") for group in groups], parse_math=False)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x)
        axes.set_xlim(left=0)
        _legend(axes, len(rows), above=True)
    return str(chart)


def reliability(label: str, tables: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Draws accuracy by confidence: one curve per model, and the diagonal."""
    chart = Chart(label, 3.4)
    with chart as axes:
        axes.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=0.8, label="perfect")
        for i, (name, table) in enumerate(tables.items()):
            pairs = [
                (c, a)
                for c, a in zip(table["confidence"], table["accuracy"])
                if c is not None and a is not None
            ]
            axes.plot(
                *zip(*pairs),
                color=color(i),
                marker=MARKERS[i % len(MARKERS)],
                markersize=4,
                linewidth=1.5,
                label=_short(name),
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
        _legend(axes, len(tables) + 1)
    return str(chart)


def histogram(label: str, right: Sequence[int], wrong: Sequence[int]) -> str:
    """Draws the numbers of right and wrong answers by confidence, stacked."""
    chart = Chart(label, 2.4)
    with chart as axes:
        width = 1 / len(right)
        edges = np.arange(len(right)) * width
        axes.bar(edges, right, width, align="edge", color=color(2), edgecolor="none", label="right")
        axes.bar(
            edges,
            wrong,
            width,
            align="edge",
            bottom=right,
            color=color(1),
            edgecolor="none",
            hatch="///",
            label="wrong",
        )
        axes.set(xlim=(0, 1), xlabel="confidence", ylabel="examples")
        _legend(axes, 2)
    return str(chart)


def scatter(
    label: str,
    places: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
    names: Sequence[str] | None,
) -> str:
    """Draws points colored by class, and a cross over each wrong answer.

    Args:
      label: see `Chart`.
      places: float [n, 2].
      labels: int [n], the true classes.
      right: bool [n], whether the answer is right.
      names: names of the classes; None: too many classes for a color each, so one color for all.
    """
    shown = list(enumerate(names)) if names else [(0, "images")]
    chart = Chart(label, 3.6 + 0.2 * -(-(len(shown) + 1) // 3))
    with chart as axes:
        for i, name in shown:
            of_class = places[labels == i] if names else places
            marker = MARKERS[i % len(MARKERS)]  # colors come again after seven classes
            axes.plot(
                of_class[:, 0],
                of_class[:, 1],
                color=color(i),
                marker=marker,
                linestyle="none",
                markersize=4,
                markeredgewidth=0,
                label=_short(name),
            )
        axes.plot(
            places[~right, 0],
            places[~right, 1],
            color=_INK,
            marker="x",
            linestyle="none",
            markersize=6,
            markeredgewidth=1.1,
            label="wrong answer",
        )
        axes.set(xticks=[], yticks=[], xlabel="first component", ylabel="second component")
        _legend(axes, len(shown) + 1, above=True)
    return str(chart)


def before_and_after(
    label: str,
    names: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    legend: tuple[str, str] = ("above the threshold", "after balancing"),
) -> str:
    """Draws each class's pseudo-labels before and after balancing, or what `legend` says."""
    chart = Chart(label, 2.6)
    with chart as axes:
        places = np.arange(len(names))
        axes.bar(places - 0.2, before, 0.38, color=color(0), label=legend[0])
        axes.bar(places + 0.2, after, 0.38, color=color(1), label=legend[1])
        if len(names) <= 20:
            axes.set_xticks(
                places,
                [_short(name, 10) for name in names],
                parse_math=False,
                rotation=90 if max(map(len, names)) > 3 else 0,
            )
        axes.set(xlabel="class", ylabel="images")
        axes.grid(axis="x", visible=False)
        _legend(axes, 2, above=True)
    return str(chart)


def _legend(axes: Axes, entries: int, above: bool = False) -> None:
    if entries < 2:
        return
    place = (
        {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": min(entries, 3)}
        if above
        else {"loc": "best"}
    )
    for text in axes.legend(**place).get_texts():
        text.set_parse_math(False)


def _short(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
