"""The numbers of a `summary.json` as a table: of text for the terminal, of cells for the report."""

from __future__ import annotations

from typing import Any


def percent(value: float | None, digits: int = 2) -> str:
    """A share as percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def plain(value: float | None, digits: int = 1) -> str:
    """A number; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def cells(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of models, with the columns of those suites that were run."""
    models = summary["models"]
    rows = list(models.values())

    def any_has(key: str) -> bool:
        return any(key in row for row in rows)

    columns: list[tuple[str, Any]] = [("model", None)]
    if any_has("top1"):
        columns += [
            ("top-1 % (95 % interval)", lambda r: _with_interval(r.get("top1"), r.get("top1_interval"))),
            (f"top-{summary['top_k']} %", lambda r: percent(r.get("top5"))),
            ("ECE", lambda r: plain(r.get("ece"), 4)),
            ("NLL", lambda r: plain(r.get("nll"), 4)),
        ]
    if any_has("real"):
        columns.append(("ReaL %", lambda r: percent(r.get("real", {}).get("precision"))))
    if any_has("a"):
        columns.append(("A top-1 %", lambda r: percent(r.get("a", {}).get("top1"))))
        columns.append(("A top-1 of 1000 %", lambda r: percent(r.get("a", {}).get("top1_of_1000"))))
    if any_has("c"):
        part = any("mce_of_part" in row.get("c", {}) for row in rows)
        key = "mce_of_part" if part else "mce"
        columns.append(("C error %", lambda r: _with_interval(r.get("c", {}).get("mean_error"), r.get("c", {}).get("mean_error_interval"))))
        columns.append(("mCE (part)" if part else "mCE", lambda r: plain(r.get("c", {}).get(key))))
    if any_has("p"):
        part = any("mfr_of_part" in row.get("p", {}) for row in rows)
        key_p = "mfr_of_part" if part else "mfr"
        columns.append(("P flips %", lambda r: _with_interval(r.get("p", {}).get("mean_flip"), r.get("p", {}).get("mean_flip_interval"))))
        columns.append(("mFR (part)" if part else "mFR", lambda r: plain(r.get("p", {}).get(key_p))))
    if any_has("adversarial"):
        columns.append(("FGSM %", lambda r: percent(r.get("adversarial", {}).get("fgsm_mean_top1"))))
        columns.append(("PGD %", lambda r: percent(r.get("adversarial", {}).get("pgd_top1"))))
    if any_has("images_per_second"):
        columns.append(("images/s", lambda r: plain(r.get("images_per_second"), 0)))
    body = [[name, *(cell(row) for _, cell in columns[1:])] for name, row in models.items()]
    return [head for head, _ in columns], body


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return percent(value)
    return f"{100 * value:.2f} ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def notes(summary: dict[str, Any]) -> list[str]:
    """What the table's columns mean, a line each."""
    lines = []
    if summary["examples"] is not None:
        lines.append(f"{summary['examples']:,} examples of split {summary['split']}")
    if left_out := summary.get("left_out_of_training"):
        what = "1 labelled image was" if left_out == 1 else f"{left_out:,} labelled images were"
        lines.append(f"{what} left out of training, being or looking like test images")
    for suite, number, of in (("c", "mCE", "error"), ("p", "mFR", "flips")):
        measured = [row[suite] for row in summary["models"].values() if suite in row]
        if measured and measured[0]["reference"] is None:
            difficulty = measured[0]["difficulty"]
            lines.append(
                f"no {number}: AlexNet's {of} are known at difficulty 1 only; the mean at difficulty {difficulty} is not normalised"
            )
        elif measured:
            lines.append(f"{number}: {of} in percent of those of {measured[0]['reference']}; lower is better")
    if any("adversarial" in row for row in summary["models"].values()):
        lines.append("FGSM: accuracy, mean over all ε above 0; PGD: accuracy; higher is better")
    return lines


def table(summary: dict[str, Any]) -> str:
    """The text table of a `summary.json`."""
    head, body = cells(summary)
    lines = [head, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]) for line in lines]
    return "\n".join([*rows, *notes(summary)])
