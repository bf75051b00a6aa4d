"""Results of a finished loop: its summary, and the table of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli import work_dirs
from cli.json_files import read_json
from evaluation.numbers import NUMBERS, text
from workflow.iterations import names_of

SECONDS = {str: float}
SHOWN = {number.key: number.loop for number in NUMBERS if number.loop}
"""Key of a model's row -> the column of `table` that shows it."""
RESULT = dict.fromkeys(SHOWN, float)
SUMMARY = {
    "teacher": RESULT,
    "students": [RESULT],
    "finetuned?": RESULT,
    "probe?": RESULT,
    "exported?": RESULT,
    "seconds": SECONDS,
    "served?": str,
    "verdict?": str,
    "validation_top1?": [float],
}
"""Schemas of `seconds.json`, of a model's row and of the loop's `summary.json`."""


def summarize(workdir: Path, iterations: int) -> dict[str, Any]:
    """Returns the loop's summary.

    It holds the evaluation of teacher and students, where the export is, and the seconds of each
    stage.
    """
    names = names_of(iterations)
    rows = {**dict.fromkeys(names, RESULT), "finetuned?": RESULT, "probe?": RESULT}
    schema = {"models": rows, "figures": {"summary": str}, "report": str}
    directory = workdir / "evaluation"
    evaluation = work_dirs.require_finished(directory, "evaluation", "run_evaluate.sh", schema)
    directory = workdir / "export"
    export = work_dirs.require_finished(directory, "export", "run_export.sh", {"export": str})
    models = evaluation["models"]
    return {
        "teacher": models["teacher"],
        "students": [models[name] for name in names[1:]],
        **{name: models[name] for name in ("finetuned", "probe") if name in models},
        "export": export["export"],
        "figure": evaluation["figures"]["summary"],
        "report": evaluation["report"],
        "seconds": read_json(workdir / "seconds.json", SECONDS),
    }


def table(summary: dict[str, Any]) -> str:
    """Returns the verdict, and a line for each stage.

    A line has the numbers of the stage's model, if it made one, and the stage's seconds.
    """
    results = {
        "teacher": summary["teacher"],
        **{f"student_{i}": row for i, row in enumerate(summary["students"], 1)},
    }
    results |= {"finetune": summary.get("finetuned"), "probe": summary.get("probe")}
    return "\n".join(
        [
            *([summary["verdict"]] if "verdict" in summary else []),
            table_of(results, summary["seconds"]),
        ]
    )


def table_of(results: Mapping[str, Any], spent: Mapping[str, float]) -> str:
    """Returns the lines of `table`.

    Args:
      results: stage, or the linear probe -> its model's row or None.
      spent: stage -> seconds.
    """
    widths = {key: max(8, len(column.title) + 2) for key, column in SHOWN.items()}
    titles = "".join(column.title.rjust(widths[key]) for key, column in SHOWN.items())
    rows = [f"{'stage':<16}{titles}{'seconds':>9}"]

    def cells(row: Mapping[str, Any] | None) -> str:
        return "".join(
            (text(row, key, column) if row else "").rjust(widths[key])
            for key, column in SHOWN.items()
        )

    for name, seconds in spent.items():
        rows.append(f"{name:<16}{cells(results.get(name))}{seconds:>9.1f}")
    if results.get("probe"):  # its seconds are the evaluation's
        rows.append(f"{'probe':<16}{cells(results['probe'])}")
    rows.append(f"{'total':<16}{'':>{sum(widths.values())}}{sum(spent.values()):>9.1f}")
    return "\n".join(rows)
