"""List of all numbers that the evaluation measures: to add a metric, add one entry here.

`run_evaluate.sh` writes the numbers into `summary.json`. The table of models, the comparison over
seeds, the report and the loop's table take their rows and columns from this list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from evaluation import metrics


class Column(NamedTuple):
    """A column of a table of models: the way a number is shown.

    Attributes:
      title: title of the column.
      scale: factor before printing; 100 for a share shown in percent.
      digits: digits after the point.
      interval: whether the number's 95 % interval follows it.
      above_classes: with this number of classes or fewer, the table leaves the column out.
    """

    title: str
    scale: float = 1
    digits: int = 1
    interval: bool = False
    above_classes: int = 0


class Comparison(NamedTuple):
    """A column of the comparison over seeds: the way a number is shown.

    Attributes:
      name: key in the comparison's `summary.json`.
      title: title of the row, with the unit.
      scale: factor before printing.
    """

    name: str
    title: str
    scale: float = 1


class Number(NamedTuple):
    """One number of a model.

    Attributes:
      key: where it stands in the model's row of `summary.json`, with dots: `c.mce` is the key `mce`
        of the suite `c`. Without a dot, it belongs to the suite `clean`.
      better: "higher" or "lower".
      function: (probabilities [N, K], labels [N]) of the clean split -> number; None: another
        module writes it into the row.
      interval: (probabilities, labels) -> its 95 % interval, stored as `KEY_interval`, or None.
      column: its column in the table of models and in the report, or None.
      comparison: its row in the comparison over seeds, or None.
      loop: its column in the loop's table of stages, or None.
      part: key of the same number for a part of the suite; where a model has it, it is shown
        instead.
    """

    key: str
    better: str
    function: Callable[[np.ndarray, np.ndarray], float] | None = None
    interval: Callable[[np.ndarray, np.ndarray], tuple[float, float]] | None = None
    column: Column | None = None
    comparison: Comparison | None = None
    loop: Column | None = None
    part: str | None = None


NUMBERS = (
    Number(
        "top1",
        "higher",
        metrics.top1,
        metrics.top1_interval,
        Column("top-1 % (95 % interval)", 100, 2, interval=True),
        Comparison("top1", "top-1 (%)", 100),
        Column("top-1 %", 100, 2),
    ),
    Number(
        "balanced_accuracy",
        "higher",
        metrics.balanced_accuracy,
        column=Column("balanced %", 100, 2),
        comparison=Comparison("balanced_accuracy", "balanced accuracy (%)", 100),
    ),
    Number(
        "top5",
        "higher",
        lambda p, y: metrics.top_k_accuracy(p, y, 5),
        column=Column("top-5 %", 100, 2, above_classes=10),
    ),
    Number(
        "ece",
        "lower",
        lambda p, y: metrics.ece(p, y)[0],
        column=Column("ECE", digits=4),
        comparison=Comparison("ece", "ECE (%)", 100),
        loop=Column("ECE", digits=3),
    ),
    Number("ece_equal_mass", "lower", lambda p, y: metrics.ece(p, y, equal_mass=True)[0]),
    Number("nll", "lower", metrics.nll, column=Column("NLL", digits=4)),
    Number("real.precision", "higher", column=Column("ReaL %", 100, 2)),
    Number("a.top1", "higher", column=Column("A top-1 %", 100, 2)),
    Number("a.top1_of_1000", "higher", column=Column("A top-1 of 1000 %", 100, 2)),
    Number(
        "c.mean_error",
        "lower",
        column=Column("C error %", 100, 2, interval=True),
        comparison=Comparison("c_error", "error under corruptions (%)", 100),
    ),
    Number(
        "c.mce",
        "lower",
        column=Column("mCE"),
        comparison=Comparison("mce", "mCE (baseline = 100)"),
        part="mce_of_part",
    ),
    Number(
        "p.mean_flip",
        "lower",
        column=Column("P flips %", 100, 2, interval=True),
        comparison=Comparison("p_flips", "flips (%)", 100),
    ),
    Number("p.top1", "higher", column=Column("P top-1 %", 100, 2)),
    Number(
        "p.mfr",
        "lower",
        column=Column("mFR"),
        comparison=Comparison("mfr", "mFR (baseline = 100)"),
        part="mfr_of_part",
    ),
    Number(
        "adversarial.fgsm_mean_top1",
        "higher",
        column=Column("FGSM %", 100, 2),
        comparison=Comparison("fgsm", "top-1 under FGSM, mean over ε (%)", 100),
    ),
    Number(
        "adversarial.pgd_top1",
        "higher",
        column=Column("PGD %", 100, 2),
        comparison=Comparison("pgd", "top-1 under PGD (%)", 100),
    ),
    Number("images_per_second", "higher", column=Column("images/s", digits=0)),
)
"""Every number that a table shows, in the order of the columns."""


def clean(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns the numbers of the clean split, and their intervals.

    Numbers are stored by key, intervals [low, high] by key_interval. The split has `probabilities`
    [N, K] and `labels` [N].
    """
    row: dict[str, Any] = {}
    for number in NUMBERS:
        if number.function:
            row[number.key] = number.function(probabilities, labels)
        if number.interval:
            row[f"{number.key}_interval"] = list(number.interval(probabilities, labels))
    return row


def find(row: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a dotted key of a model's row, or None where there is none."""
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def text(row: Mapping[str, Any], key: str, column: Column) -> str:
    """Returns the cell of a number in a table; a dash where the row has none."""
    value, interval = find(row, key), find(row, f"{key}_interval") if column.interval else None
    if value is None:
        return "–"
    shown = f"{column.scale * value:.{column.digits}f}"
    if interval is None:
        return shown
    low, high = (f"{column.scale * bound:.1f}" for bound in interval)
    return f"{shown} ({low}-{high})"
