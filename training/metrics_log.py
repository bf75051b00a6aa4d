"""Reads a training's log, `metrics.jsonl`: the best evaluation, and where a run goes on."""

from __future__ import annotations

from pathlib import Path

from cli.files import atomic_path
from cli.json_files import read_json_lines

METRICS = {"step": int, "seconds": float, "eval_top1?": (float, None)}
"""Fields that a line of `metrics.jsonl` has at least."""


def truncate(path: Path, step: int) -> float:
    """Drops the lines after `step`, which the continued run writes again.

    Returns the seconds that the run had taken until `step`.
    """
    if not path.exists():
        return 0.0
    rows = [(line, row) for line, row in read_json_lines(path, METRICS) if row["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line, _ in rows), encoding="utf-8")
    return float(rows[-1][1]["seconds"]) if rows else 0.0


def best(workdir: str | Path) -> dict[str, float] | None:
    """Returns the line of `metrics.jsonl` with the largest top-1 on the validation split.

    If several lines have the largest top-1, returns the first. Without evaluations, returns None.

    Only the log remembers the evaluations. So a restarted run forgets what came after its
    checkpoint.
    """
    path = Path(workdir) / "metrics.jsonl"
    rows = [row for _, row in read_json_lines(path, METRICS)] if path.exists() else []
    rows = [row for row in rows if row.get("eval_top1") is not None]
    return max(rows, key=lambda row: row["eval_top1"], default=None)


def exhausted(workdir: str | Path, stop_after: int) -> bool:
    """Tells whether the last `stop_after` evaluations in `metrics.jsonl` brought no larger top-1.

    With `stop_after` = 0 the answer is always no.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not stop_after or not path.exists():
        return False
    scores = [
        row["eval_top1"]
        for _, row in read_json_lines(path, METRICS)
        if row.get("eval_top1") is not None
    ]
    return len(scores) > stop_after and max(scores[-stop_after:]) <= max(scores[:-stop_after])
