"""The report: one page about a run, made from what its stages left.

What the evaluation measured is always on it. Training curves, pseudo-labels and configs are added
where the models' directories lie together as `run_noisy_student.sh` leaves them: beside
`pseudo_labeled_1`, `predictions_1` and `data`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.errors import one_line
from cli.json_files import read_json
from data.records import Manifest
from evaluation import (
    about,
    charts,
    embedding,
    history,
    page,
    pictures,
    results,
    suite_sections,
    tables,
)
from evaluation.classifiers import Candidate
from evaluation.metrics import Evaluation
from evaluation.suite_sections import Section
from evaluation.suites import Inputs
from training import model_dir

NAME = "report.html"

_SUITE_NAMES = {
    "clean": "clean accuracy",
    "c": "error under corruptions",
    "p": "flips",
    "pgd": "accuracy under PGD",
    "fgsm": "error under FGSM",
}


def write(
    directory: Path,
    summary: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    candidates: Mapping[str, Candidate],
    inputs: Inputs,
    manifest: Manifest | None,
    command: Sequence[str],
    seconds: float = 0.0,
) -> Path:
    """Writes `directory`/report.html and returns its path.

    Args:
      directory: work directory of the evaluation.
      summary: the content of its `summary.json`.
      evaluations: evaluations of the clean split, in the models' order; may be empty.
      candidates: the models by name, without the linear probe.
      inputs: the sets that were evaluated.
      manifest: manifest of the split; None where only ImageNet's own sets were evaluated.
      command: the command line.
      seconds: time that the evaluation took so far.
    """
    report = _Report(
        directory, dict(summary), evaluations, candidates, inputs, manifest, command, seconds
    )
    path = directory / NAME
    page.write(
        path, "report.html", title=f"Evaluation of {', '.join(candidates)}", **report.sections()
    )
    return path


class _Report:
    """Sections of the page.

    Each section yields (name, value) for the template, or nothing where its part was not measured.
    """

    def __init__(
        self,
        directory: Path,
        summary: dict[str, Any],
        evaluations: Sequence[Evaluation],
        candidates: Mapping[str, Candidate],
        inputs: Inputs,
        manifest: Manifest | None,
        command: Sequence[str],
        seconds: float = 0.0,
    ) -> None:
        self.directory, self.summary, self.evaluations = directory, summary, evaluations
        self.candidates, self.inputs, self.manifest, self.command = (
            candidates,
            inputs,
            manifest,
            command,
        )
        self.models: dict[str, dict[str, Any]] = summary["models"]
        self.last, self.baseline = (
            list(candidates)[-1],
            summary["baseline"],
        )  # the probe is not a candidate
        self.runs = {
            name: model_dir.run_directory(candidate.directory).resolve()
            for name, candidate in candidates.items()
        }
        parents = {run.parent for run in self.runs.values()}
        self.run = parents.pop() if len(parents) == 1 else None
        self.data = manifest.directory.parent if manifest else None
        self.seconds = seconds

    def sections(self) -> dict[str, Any]:
        """Returns what `templates/report.html` shows."""
        suites = suite_sections.Suites(
            self.directory, self.models, self.pair(), self.inputs, self._label_names()
        )
        without, split = self.summary.get("classes_without_examples", []), self.summary.get("split")
        return {
            **dict(self.overview()),
            "verdict": _optional(lambda: about.verdict(self.run)),
            "facts": _optional(self.facts),
            "counts": _optional(lambda: about.counts(self.data)),
            "warnings": _optional(lambda: about.warnings(self.run, self.data, without, str(split))),
            "embedding": _optional(self.embedding),
            "calibration": dict(self.calibration()),
            "training": _optional(lambda: history.training(self.runs)),
            "pseudo_labels": _optional(lambda: history.pseudo_labels(self.run)),
            "corruptions": dict(suite_sections.corruptions(suites)),
            "corrupted": _optional(lambda: suite_sections.corrupted_pictures(suites)),
            "sequences": dict(suite_sections.sequences(suites)),
            "frames": _optional(lambda: suite_sections.sequence_pictures(suites)),
            "attacks": dict(suite_sections.attacks(suites)),
            "mistakes": _optional(self._mistake_pictures),
            "provenance": _optional(self.provenance),
        }

    def facts(self) -> Section:
        """Yields the facts of the run; see `about.facts`."""
        return about.facts(self.run, self.data, self.commands(), self.seconds)

    def pair(self) -> list[str]:
        """Returns the models that are compared picture by picture: the baseline and the last."""
        return list(dict.fromkeys([self.baseline, self.last]))

    def overview(self) -> Section:
        yield "models", list(self.candidates)
        yield "baseline", self.baseline
        yield "headline", self._headline()
        yield "numbers", tables.cells(self.summary)
        yield "notes", tables.notes(self.summary)
        compared = {self.baseline: "versus", "the linear probe": "versus_probe"}
        tables_of = {other: self._differences(key) for other, key in compared.items()}
        yield "differences", {other: lines for other, lines in tables_of.items() if lines}

    def _differences(self, key: str) -> list[list[str]]:
        return [
            [
                name,
                _SUITE_NAMES[suite],
                _signed(d["difference"]),
                f"{_signed(d['interval'][0])} … {_signed(d['interval'][1])}",
                _p(d),
                d["test"],
            ]
            for name, row in self.models.items()
            for suite, d in row.get(key, {}).items()
        ]

    def _headline(self) -> str:
        row, base = self.models[self.last], self.models[self.baseline]
        if "top1" not in row:
            return f"{self.last}, compared with {self.baseline}."
        said = f"{self.last} is right on {100 * row['top1']:.1f} % of {row['examples']:,} examples"
        if self.last != self.baseline and "top1" in base:
            said += f", {self.baseline} on {100 * base['top1']:.1f} %"
        if "c" in row and "c" in base and row["c"]["mean_error"] is not None:
            said += f"; under corruptions on {100 * (1 - row['c']['mean_error']):.1f} %"
            if self.last != self.baseline:
                said += f", {self.baseline} on {100 * (1 - base['c']['mean_error']):.1f} %"
        return said + "."

    def calibration(self) -> Section:
        if not self.evaluations:
            return
        details = {e.name: results.details(e) for e in self.evaluations}
        last = next(e for e in self.evaluations if e.name == self.last)
        evaluation = details[last.name]
        values = [100 * e.top1 for e in self.evaluations]
        intervals = [[100 * bound for bound in e.top1_interval] for e in self.evaluations]
        names = [e.name for e in self.evaluations]
        said = ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, values))
        shares = {"chance": self.summary["chance"], "majority": self.summary["majority"]["top1"]}
        guesses = {name: 100 * share for name, share in shares.items()}
        said += "".join(f", {name} {value:.1f} %" for name, value in guesses.items())
        histogram = evaluation["confidence_histogram"]
        yield (
            "charts",
            [
                (
                    "Top-1",
                    charts.bars(
                        f"Top-1 accuracy: {said}", names, values, intervals, "top-1 (%)", guesses
                    ),
                    "95 % Wilson intervals.",
                ),
                (
                    "Reliability",
                    charts.reliability(
                        "Accuracy by confidence of each model, in bins of equally many examples",
                        {name: d["reliability_equal_mass"] for name, d in details.items()},
                    ),
                    "Bins of equally many examples. Their ECE, and that of bins of equal width: "
                    + "; ".join(
                        f"{e.name} {e.ece_equal_mass:.3f}, {e.ece:.3f}" for e in self.evaluations
                    )
                    + ".",
                ),
                (
                    f"Confidence of {last.name}",
                    charts.histogram(
                        f"Right and wrong answers of {last.name} by confidence",
                        histogram["right"],
                        histogram["wrong"],
                    ),
                    "",
                ),
            ],
        )
        yield "models", names
        yield "model", last.name
        classes = len(last.label_names)
        if classes <= page.MOST_CLASSES:
            yield "classes", last.label_names
            yield "confusion", last.confusion.tolist()
            accuracy = {e.name: details[e.name]["per_class_accuracy"] for e in self.evaluations}
            rows: list[list[object]] = [
                [name, *(tables.percent(accuracy[e.name][i], 1) for e in self.evaluations)]
                for i, name in enumerate(last.label_names)
            ]
            yield "accuracy", rows
        else:
            off = last.confusion * (1 - np.eye(classes, dtype=int))
            worst = np.argsort(-off, axis=None, kind="stable")[:15]
            rows = [
                [last.label_names[i // classes], last.label_names[i % classes], int(off.flat[i])]
                for i in worst.tolist()
                if off.flat[i] > 0
            ]
            yield "confused", rows

    def _mistake_pictures(self) -> Section:
        if len(self.pair()) < 2 or not self.evaluations or self.manifest is None:
            return
        first, last = (
            (name, results.load(self.directory / name / "predictions.npz")) for name in self.pair()
        )
        found = pictures.disagreements(self.manifest, first, last, 24)
        lost = pictures.disagreements(self.manifest, last, first, 24)
        yield (
            "sheets",
            {
                f"{first[0]} wrong, {last[0]} right": found,
                f"{first[0]} right, {last[0]} wrong": lost,
            },
        )

    def embedding(self) -> Section:
        """Yields the map of the features; see `embedding.section`."""
        return embedding.section(self.directory / self.last, self._label_names())

    def commands(self) -> list[str]:
        """Returns the commands that made the run, as far as they are known."""
        this_command = f"./run_evaluate.sh {shlex.join(self.command[1:])}"
        return about.commands(self.run, this_command, self.directory)

    def provenance(self) -> Section:
        yield "commands", "\n".join(self.commands())
        configs: list[tuple[str, Any]] = []
        yield "configs", configs  # before it is full: configs before a damaged one are shown
        folders = [
            ("Evaluation", self.directory),
            *([("Whole run", self.run)] if self.run else []),
            *self.runs.items(),
        ]
        for name, folder in folders:
            if (folder / "config.json").exists():
                configs.append((f"{name}: config.json", read_json(folder / "config.json")))

    def _label_names(self) -> Sequence[str]:
        if self.manifest:
            return self.manifest.label_names
        return next(
            (c.label_names for c in self.candidates.values() if c.label_names),
            [str(i) for i in range(1000)],
        )


def _optional(section: Callable[[], Section]) -> dict[str, Any]:
    """Collects a section; an exception ends it with a `left_out` that names the error.

    What other stages left is a help, not a result. Where it is gone or damaged, the page goes on
    without it.
    """
    values: dict[str, Any] = {}
    try:
        for name, value in section():
            values[name] = value
    except Exception as error:
        values["left_out"] = one_line(error)
    return values


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def _p(difference: Mapping[str, Any]) -> str:
    return "< 0.001" if difference["p_value"] < 0.001 else f"{difference['p_value']:.3f}"
