"""Sections of the report on how the models came about: training curves and pseudo-labels.

They are made from what the earlier stages left. Each section yields (name, value) for
`templates/report.html`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli.json_files import read_json, read_json_lines
from data.records import MANIFEST
from evaluation import about, charts, page, pictures

BALANCED = {
    "label_names": [str],
    "above_threshold": [int],
    "below_threshold": [int],
    "total": [int],
    "images": int,
    "threshold": float,
}
"""Schema of what the report needs of the summary of run_balance.sh."""
RELABELED = {
    "label_names": [str],
    "selected": [int],
    "total": [int],
    "num_unique": int,
    "changed": int,
}
"""Schema of the same where a selection was labeled again (`run_balance.sh --selection`)."""


def training(runs: Mapping[str, Path]) -> Iterator[tuple[str, Any]]:
    """Yields the curves of the models' `metrics.jsonl`; `runs` are directories by name."""
    logs = {name: _log(run / "metrics.jsonl") for name, run in runs.items()}
    logs = {name: rows for name, rows in logs.items() if rows}
    if not logs:
        return
    drawn = []
    for key, title, y in (
        ("loss", "Loss", "loss"),
        ("top1", "Top-1 on noised labeled images", "top-1"),
        ("eval_top1", "Top-1 on validation images", "top-1"),
        ("learning_rate", "Learning rate", "rate"),
    ):
        there = {
            name: [row for row in rows if row.get(key) is not None] for name, rows in logs.items()
        }
        series = [
            (name, [row["step"] for row in rows], [row[key] for row in rows])
            for name, rows in there.items()
        ]
        series = [entry for entry in series if entry[1]]
        if series:
            drawn.append(
                (title, charts.lines(f"{title} by step", series, "step", y, markers=False), "")
            )
    if drawn:
        yield "charts", drawn


def pseudo_labels(run: Path | None) -> Iterator[tuple[str, Any]]:
    """Yields how many images each round kept, and which.

    `run` is the directory in which all stages of a run lie, if there is one.
    """
    rounds = [folder for folder in about.rounds(run) if (folder / MANIFEST).exists()]
    if not rounds or run is None:
        return
    yield "round", rounds[-1].name.rsplit("_", 1)[1]
    drawn = []
    for folder in rounds:
        title = f"Round {folder.name.rsplit('_', 1)[1]}"
        if not _selects(folder):
            drawn.append((title, *_labeled_again(folder, title)))
            continue
        counts = read_json(folder / "summary.json", BALANCED)
        svg = charts.before_and_after(
            f"{title}: pseudo-labels of each class above the threshold and after balancing",
            counts["label_names"],
            counts["above_threshold"],
            counts["total"],
        )
        left = sum(counts["below_threshold"])
        drawn.append(
            (
                title,
                svg,
                f"{left:,} of {counts['images']:,} images filtered out at {counts['threshold']:g}.",
            )
        )
    yield "charts", drawn
    selecting = [folder for folder in rounds if _selects(folder)]
    yield from _pseudo_label_pictures(run, rounds[-1], (selecting or rounds)[-1])


def _selects(folder: Path) -> bool:
    """Tells whether a round selected its images; otherwise it relabeled an earlier selection."""
    return "selected" not in read_json(folder / "summary.json", dict)


def _labeled_again(folder: Path, title: str) -> tuple[str, str]:
    """Returns chart and caption of a round that labeled a selection again."""
    counts = read_json(folder / "summary.json", RELABELED)
    svg = charts.before_and_after(
        f"{title}: pseudo-labels of each class as selected and labeled again",
        counts["label_names"],
        counts["selected"],
        counts["total"],
        ("as selected", "labeled again"),
    )
    changed, images = counts["changed"], counts["num_unique"]
    return (
        svg,
        f"The same {images:,} images with their copies; {changed:,} of them have another class.",
    )


def _pseudo_label_pictures(run: Path, folder: Path, selecting: Path) -> Iterator[tuple[str, Any]]:
    """Yields pictures of the last round, and of the images that a selection left out.

    `folder` is the last round; `selecting` is the last round that selected its images.
    """
    number, data = selecting.name.rsplit("_", 1)[1], run / "data"
    sheets = pictures.most_confident(folder, per_class=8, classes=page.MOST_CLASSES)
    yield "surest", {name: found for name, found in sheets.items() if found}
    predictions = run / f"predictions_{number}"
    if (
        _selects(selecting)
        and (predictions / MANIFEST).exists()
        and (data / "unlabeled" / MANIFEST).exists()
    ):
        threshold = read_json(selecting / "summary.json", BALANCED)["threshold"]
        found = pictures.filtered_out(predictions, data / "unlabeled", threshold, 24)
        if found:
            yield "filtered_out", found
    summary = data / "summary.json"
    facts = read_json(summary, {"source?": str}) if summary.exists() else {}
    if facts.get("out_of_domain"):
        found = pictures.out_of_domain(folder, facts["source"], 24)
        if found:
            yield "out_of_domain", found


def _log(path: Path) -> list[dict[str, Any]]:
    schema = {"step": int, str: (float, None)}
    return [row for _, row in read_json_lines(path, schema)] if path.exists() else []
