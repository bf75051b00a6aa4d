"""Sections of the report about the suites: corruptions, perturbations and attacks.

Each section yields (name, value) for the template, or nothing where its suite was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cli.json_files import read_json
from evaluation import charts, pictures, results
from evaluation.robustness import CORRUPTIONS, SEVERITIES
from evaluation.suites import Inputs

Section = Iterator[tuple[str, Any]]


class Suites(NamedTuple):
    """Numbers and files of the suites.

    Attributes:
      directory: work directory of the evaluation.
      models: model -> its numbers, suite by suite.
      pair: models that are compared picture by picture, the last one of interest.
      inputs: the sets that were evaluated.
      label_names: names of the classes.
    """

    directory: Path
    models: Mapping[str, Mapping[str, Any]]
    pair: Sequence[str]
    inputs: Inputs
    label_names: Sequence[str]

    def having(self, suite: str) -> dict[str, dict[str, Any]]:
        """Returns model -> its numbers of a suite, for the models that have it."""
        return {name: row[suite] for name, row in self.models.items() if suite in row}


def corruptions(shown: Suites) -> Section:
    """Yields the charts of the errors under corruptions."""
    measured = shown.having("c")
    if not measured:
        return
    errors = {name: row["errors"] for name, row in measured.items()}
    kinds = list(next(iter(errors.values())))
    common = [kind for kind in kinds if kind in CORRUPTIONS]
    per_kind = {
        name: [100 * float(np.mean(errors[name][kind])) for kind in kinds] for name in errors
    }
    svg = charts.grouped_bars(
        "Error under each corruption, per model", kinds, per_kind, "error (%)"
    )
    yield (
        "charts",
        [*(_mean_corruptions(shown, common) if common else []), ("Each corruption", svg, "")],
    )


def _mean_corruptions(shown: Suites, common: Sequence[str]) -> list[tuple[str, str, str]]:
    """Returns the charts of the means over the corruptions `common`.

    The four extra corruptions are not among them.
    """
    measured = shown.having("c")
    names = list(measured)
    by_severity: list[charts.Series] = []
    for name, row in measured.items():
        accuracy = [
            100 * (1 - float(np.mean([row["errors"][kind][i] for kind in common])))
            for i in range(len(SEVERITIES))
        ]
        unchanged = row.get("unchanged_error")
        start = [] if unchanged is None else [100 * (1 - unchanged)]
        by_severity.append((name, [*([0] if start else []), *SEVERITIES], [*start, *accuracy]))
    overall = [100 * row["mean_error"] for row in measured.values()]
    intervals = [_percents(row.get("mean_error_interval")) for row in measured.values()]
    said = ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, overall))
    drawn = [
        (
            "Mean error",
            charts.bars(
                f"Mean error under corruptions: {said}", names, overall, intervals, "error (%)"
            ),
            "Not normalized.",
        ),
        (
            "By severity",
            charts.lines(
                "Top-1 by severity",
                by_severity,
                "severity (0: unchanged)",
                "top-1 (%)",
                xticks=(0, *SEVERITIES),
            ),
            "Mean over corruptions.",
        ),
    ]
    mce: list[Any] = [row.get("mce", row.get("mce_of_part")) for row in measured.values()]
    if all(value is not None for value in mce):
        part = "" if "mce" in measured[names[0]] else f" of {len(common)} corruptions"
        said = ", ".join(f"{name} {value:.1f}" for name, value in zip(names, mce))
        svg = charts.bars(f"Mean corruption error: {said}", names, mce, [None] * len(names), "mCE")
        caption = (
            f"Error in percent of that of {measured[names[-1]]['reference']}; lower is better."
        )
        drawn.insert(0, (f"mCE{part}", svg, caption))
    return drawn


def corrupted_pictures(shown: Suites) -> Section:
    """Yields corrupted pictures with the answers of the models that are compared."""
    if not shown.having("c"):
        return

    def ask(name: str) -> Callable[[str, int], tuple[int, int]]:
        def answer(corruption: str, severity: int) -> tuple[int, int]:
            stored = results.load(shown.directory / name / "c" / f"{corruption}-{severity}.npz")
            return int(stored["answers"][0]), int(stored["labels"][0])

        return answer

    names = [name for name in shown.pair if name in shown.having("c")]
    found = pictures.corrupted(
        shown.inputs.c, (1, 3, 5), {name: ask(name) for name in names}, shown.label_names
    )
    yield "pictures", {name.replace("_", " "): rows for name, rows in found.items()}


def sequences(shown: Suites) -> Section:
    """Yields the charts of the flips under perturbations."""
    measured = shown.having("p")
    if not measured:
        return
    names = list(measured)
    kinds = list(measured[names[0]]["flips"])
    per_kind = {name: [100 * measured[name]["flips"][kind] for kind in kinds] for name in names}
    drawn = [
        (
            "Each perturbation",
            charts.grouped_bars(
                "Flip probability of each perturbation", kinds, per_kind, "flips (%)"
            ),
            "",
        )
    ]
    means = [row["mean_flip"] for row in measured.values()]
    if None not in means:  # None is in it where only the extra perturbations are there
        overall = [100 * mean for mean in means]
        intervals = [_percents(row.get("mean_flip_interval")) for row in measured.values()]
        said = ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, overall))
        svg = charts.bars(f"Mean flip probability: {said}", names, overall, intervals, "flips (%)")
        drawn.insert(0, ("Mean flip probability", svg, "Not normalized."))
    yield "charts", drawn


def sequence_pictures(shown: Suites) -> Section:
    """Yields frames of each perturbation with the answers of the models."""
    measured = shown.having("p")
    names = [name for name in shown.pair if name in measured] or list(measured)[-1:]
    if not names:
        return
    rows = {}
    for kind, (examples, length) in shown.inputs.p.items():
        stored = {
            name: results.load(shown.directory / name / "p" / f"{kind}.npz") for name in names
        }
        label = int(next(iter(stored.values()))["labels"][0])
        given = {name: arrays["answers"][0] for name, arrays in stored.items()}
        which = sorted({round(i * (length - 1) / 6) for i in range(7)})
        rows[kind.replace("_", " ")] = pictures.frames(
            examples, which, given, label, shown.label_names
        )
    yield "pictures", rows


def attacks(shown: Suites) -> Section:
    """Yields charts and pictures of the adversarial attacks."""
    measured = shown.having("adversarial")
    if not measured:
        return
    names = list(measured)
    curves = [
        (
            name,
            measured[name]["epsilons"],
            [100 * value for value in measured[name]["fgsm_top1"]],
        )
        for name in names
    ]
    pgd = [100 * measured[name]["pgd_top1"] for name in names]
    intervals = [_percents(measured[name]["pgd_interval"]) for name in names]
    said = ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, pgd))
    schema = {"evaluate": {"pgd_iterations": int, "pgd_epsilon": float, "norm": object}}
    settings = read_json(shown.directory / "config.json", schema)["evaluate"]
    conditions = (
        f"{settings['pgd_iterations']} iterations, ε = {settings['pgd_epsilon']:g}, norm"
        f" {settings['norm']}; 95 % Wilson intervals."
    )
    yield (
        "charts",
        [
            (
                "FGSM",
                charts.lines(
                    "Top-1 under FGSM by epsilon",
                    curves,
                    "ε (0–255)",
                    "top-1 (%)",
                    ylim=(0, 101),
                ),
                "As in the paper's Figure 4.",
            ),
            (
                "PGD",
                charts.bars(f"Top-1 under PGD: {said}", names, pgd, intervals, "top-1 (%)"),
                conditions,
            ),
        ],
    )
    stored = results.load(shown.directory / shown.pair[-1] / "adversarial.npz")
    drawn = []
    for i in range(min(len(stored["images"]), 8)):
        after = (
            pictures.marked("right", True) if stored["pgd"][i] else pictures.marked("wrong", False)
        )
        for image, caption in ((stored["images"][i], "before"), (stored["attacked"][i], after)):
            alt = f"{shown.label_names[stored['labels'][i]]}, {pictures.plain(caption)}"
            pixels = np.rint(image).astype(np.uint8)
            drawn.append(pictures.picture(pixels, caption, alt, str(stored["keys"][i])))
    yield "pictures", drawn


def _percents(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [100 * bound for bound in interval]
