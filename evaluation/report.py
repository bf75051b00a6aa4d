"""The report: one page about a run, made from what its stages left.

What the evaluation measured is always on it. Training curves, pseudo-labels and configs are added
where the models' directories lie together as `run_noisy_student.sh` leaves them: beside
`pseudo_labeled_1`, `predictions_1` and `data`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.errors import one_line
from cli.json_files import read_json
from data.records import Manifest
from evaluation import about, charts, embedding, history, page, pictures, results, tables
from evaluation.classifiers import Candidate
from evaluation.metrics import Evaluation
from evaluation.robustness import CORRUPTIONS, SEVERITIES
from evaluation.suites import Inputs
from training import model_dir

NAME = "report.html"

Section = Iterator[tuple[str, Any]]

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
        )  # the probe is no candidate
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
            "corruptions": dict(self.corruptions()),
            "corrupted": _optional(self._corrupted_pictures),
            "sequences": dict(self.sequences()),
            "frames": _optional(self._sequence_pictures),
            "attacks": dict(self.attacks()),
            "mistakes": _optional(self._mistake_pictures),
            "provenance": _optional(self.provenance),
        }

    def facts(self) -> Section:
        """Yields the facts of the run; see `about.facts`."""
        return about.facts(self.run, self.data, self.commands(), self.seconds)

    def having(self, suite: str) -> dict[str, dict[str, Any]]:
        """Returns model -> its numbers of a suite, for the models that have it."""
        return {name: row[suite] for name, row in self.models.items() if suite in row}

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
        own = details[last.name]
        values = [100 * e.top1 for e in self.evaluations]
        intervals = [[100 * bound for bound in e.top1_interval] for e in self.evaluations]
        names = [e.name for e in self.evaluations]
        said = ", ".join(f"{name} {value:.1f} %" for name, value in zip(names, values))
        shares = {"chance": self.summary["chance"], "majority": self.summary["majority"]["top1"]}
        guesses = {name: 100 * share for name, share in shares.items()}
        said += "".join(f", {name} {value:.1f} %" for name, value in guesses.items())
        histogram = own["confidence_histogram"]
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

    def corruptions(self) -> Section:
        measured = self.having("c")
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
            [*(self._mean_corruptions(common) if common else []), ("Each corruption", svg, "")],
        )

    def _mean_corruptions(self, common: Sequence[str]) -> list[tuple[str, str, str]]:
        """Returns the charts of the means over the corruptions `common`.

        The four extra corruptions are not among them.
        """
        measured = self.having("c")
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
                "Not normalised.",
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
            svg = charts.bars(
                f"Mean corruption error: {said}", names, mce, [None] * len(names), "mCE"
            )
            caption = (
                f"Error in percent of that of {measured[names[-1]]['reference']}; lower is better."
            )
            drawn.insert(0, (f"mCE{part}", svg, caption))
        return drawn

    def _corrupted_pictures(self) -> Section:
        if not self.having("c"):
            return

        def ask(name: str) -> Callable[[str, int], tuple[int, int]]:
            def answer(corruption: str, severity: int) -> tuple[int, int]:
                stored = results.load(self.directory / name / "c" / f"{corruption}-{severity}.npz")
                return int(stored["answers"][0]), int(stored["labels"][0])

            return answer

        names = [name for name in self.pair() if name in self.having("c")]
        shown = pictures.corrupted(
            self.inputs.c, (1, 3, 5), {name: ask(name) for name in names}, self._label_names()
        )
        yield "pictures", {name.replace("_", " "): found for name, found in shown.items()}

    def sequences(self) -> Section:
        measured = self.having("p")
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
            svg = charts.bars(
                f"Mean flip probability: {said}", names, overall, intervals, "flips (%)"
            )
            drawn.insert(0, ("Mean flip probability", svg, "Not normalised."))
        yield "charts", drawn

    def _sequence_pictures(self) -> Section:
        measured = self.having("p")
        names = [name for name in self.pair() if name in measured] or list(measured)[-1:]
        if not names:
            return
        shown = {}
        for kind, (examples, length) in self.inputs.p.items():
            stored = {
                name: results.load(self.directory / name / "p" / f"{kind}.npz") for name in names
            }
            label = int(next(iter(stored.values()))["labels"][0])
            given = {name: arrays["answers"][0] for name, arrays in stored.items()}
            which = sorted({round(i * (length - 1) / 6) for i in range(7)})
            shown[kind.replace("_", " ")] = pictures.frames(
                examples, which, given, label, self._label_names()
            )
        yield "pictures", shown

    def attacks(self) -> Section:
        measured = self.having("adversarial")
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
        settings = read_json(self.directory / "config.json", schema)["evaluate"]
        told = (
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
                    told,
                ),
            ],
        )
        stored = results.load(self.directory / self.last / "adversarial.npz")
        shown = []
        for i in range(min(len(stored["images"]), 8)):
            after = (
                pictures.marked("right", True)
                if stored["pgd"][i]
                else pictures.marked("wrong", False)
            )
            for image, caption in ((stored["images"][i], "before"), (stored["attacked"][i], after)):
                alt = f"{self._label_names()[stored['labels'][i]]}, {pictures.plain(caption)}"
                pixels = np.rint(image).astype(np.uint8)
                shown.append(pictures.picture(pixels, caption, alt, str(stored["keys"][i])))
        yield "pictures", shown

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
        own = f"./run_evaluate.sh {shlex.join(self.command[1:])}"
        return about.commands(self.run, own, self.directory)

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


def _percents(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [100 * bound for bound in interval]


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−")


def _p(difference: Mapping[str, Any]) -> str:
    return "< 0.001" if difference["p_value"] < 0.001 else f"{difference['p_value']:.3f}"
