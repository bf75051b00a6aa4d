"""Shows a `summary.json` as a table: text for the terminal, cells for the report."""

from __future__ import annotations

from typing import Any

from evaluation.numbers import NUMBERS, Column, Number, text


def percent(value: float | None, digits: int = 2) -> str:
    """Returns a share as percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def cells(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table of models, with columns for the suites that were run."""
    models = summary["models"]
    columns = [column for number in NUMBERS if (column := _column(number, list(models.values())))]
    classes = summary.get("classes", 1000)
    columns = [(key, column) for key, column in columns if classes > column.above_classes]
    head = ["model", *(column.title for _, column in columns)]
    return head, [
        [name, *(text(row, key, column) for key, column in columns)] for name, row in models.items()
    ]


def _column(number: Number, rows: list[dict[str, Any]]) -> tuple[str, Column] | None:
    """Returns (key, column) of a number; None where it has no column, or no row has its suite."""
    suite = number.key.partition(".")[0]  # the number itself, for one of the clean split
    if not number.column or not any(suite in row for row in rows):
        return None
    if number.part and any(number.part in row.get(suite, {}) for row in rows):
        return f"{suite}.{number.part}", number.column._replace(
            title=f"{number.column.title} (part)"
        )
    return number.key, number.column


def notes(summary: dict[str, Any]) -> list[str]:
    """Returns what the table's columns mean, one line each."""
    lines = []
    if summary["examples"] is not None:
        lines.append(f"{summary['examples']:,} examples of split {summary['split']}")
    if left_out := summary.get("left_out_of_training"):
        what = "1 labeled image was" if left_out == 1 else f"{left_out:,} labeled images were"
        lines.append(f"{what} left out of training, because test images are equal or look alike")
    if "probe" in summary:
        lines += [probe_line(summary["probe"]), *_against_probe(summary)]
    if "chance" in summary:
        lines += _guesses(summary)
    for suite, number, of in (("c", "mCE", "error"), ("p", "mFR", "flips")):
        measured = [row[suite] for row in summary["models"].values() if suite in row]
        if measured and measured[0]["reference"] is None:
            difficulty = measured[0]["difficulty"]
            lines.append(
                f"no {number}: AlexNet's {of} are known at difficulty 1 only; the mean at"
                f" difficulty {difficulty} is not normalized"
            )
        elif measured:
            lines.append(
                f"{number}: {of} in percent of those of {measured[0]['reference']}; lower is better"
            )
    if any("adversarial" in row for row in summary["models"].values()):
        lines.append("FGSM: accuracy, mean over all ε above 0; PGD: accuracy; higher is better")
    return lines


def probe_line(probe: dict[str, Any]) -> str:
    """Describes the linear probe; `probe` is what `evaluation.probe.described` returned."""
    chosen = f"by {probe['folds']}-fold cross-validation" if probe["folds"] else "not chosen"
    return (
        f"probe: logistic regression on {probe['features']:,} frozen features of {probe['init']} "
        f"at {probe['image_size']} px, {probe['labeled_images']:,} labeled images, "
        f"C = {probe['inverse_penalty']:g} ({chosen})"
    )


def _against_probe(summary: dict[str, Any]) -> list[str]:
    """Returns by how much each model is better than the probe, one line each."""
    lines = []
    for name, row in summary["models"].items():
        if "clean" in row.get("versus_probe", {}):
            found = row["versus_probe"]["clean"]
            points, (low, high) = (
                100 * found["difference"],
                (100 * end for end in found["interval"]),
            )
            interval = f"95 % interval {low:+.1f} to {high:+.1f}"
            lines.append(f"{name} minus probe: {points:+.1f} points ({interval})")
    return lines


def _guesses(summary: dict[str, Any]) -> list[str]:
    """Returns what top-1 is to be compared with, and which classes have no examples."""
    majority, split = summary["majority"], summary["split"]
    lines = [
        (
            f"chance: {percent(summary['chance'], 1)} % (1 of {summary['classes']} classes); "
            f"majority: {percent(majority['top1'], 1)} % "
            f"(always answering {majority['class']}, the most frequent class of split {split})"
        ),
        "balanced: mean over the classes of the share of right answers in each class",
    ]
    if without := summary["classes_without_examples"]:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        named = ", ".join(without[:5]) + more
        lines.append(f"no examples in split {split}, left out of balanced: {named}")
    return lines


def table(summary: dict[str, Any]) -> str:
    """Returns the text table of a `summary.json`."""
    head, body = cells(summary)
    lines = [head, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = [
        "  ".join(
            [
                line[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:])),
            ]
        )
        for line in lines
    ]
    return "\n".join([*rows, *notes(summary)])
