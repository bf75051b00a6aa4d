"""Compares several seeds of one experiment: does the student's gain hold from seed to seed?

    ./run_tool.sh compare --workdir=W --runs='runs/quickstart/seed_*' \
        [--models=teacher,student_2] [--suite=clean,c,p,adversarial]

All seeds are evaluated in the same way, and their numbers are put together. Each run is a directory
that `run_noisy_student.sh` leaves: `data/`, with the models beside it. All runs must have the same
test images, so the corrupted images are built once. Leaves in W:

    <run>/          an evaluation of each run, as run_evaluate.sh leaves it, with its own report
    report.html     the table over seeds
    summary.json    last: `runs`, `models`, and
                    `numbers`: number -> model -> {"values", "mean", "interval"}
                    `gains`: the last model minus the first on each seed,
                    {"values", "mean", "interval", "p_value"}
                    `gains_over_probe`: the last model minus the linear probe, where the recipe
                    has `init`

Intervals are Student's over seeds. They tell how another seed would have done on these test images.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from cli import app, termination
from cli.errors import InputError
from cli.json_files import reading
from cli.start import python_m
from cli.work_dirs import fingerprint, finish, require_finished, shown, start
from data.records import read_manifest
from evaluation import charts, page, probe, suites
from evaluation.numbers import NUMBERS, find
from evaluation.statistics import gain_over_seeds, over_seeds

COMPARED = {
    number.comparison.name: (number, number.comparison) for number in NUMBERS if number.comparison
}
"""Name in `numbers` of `summary.json` -> the number and how it is shown."""


def main(
    config: ml_collections.ConfigDict,
    workdir: str,
    runs: str,
    models: str | None = None,
    suite: str = "clean,c,p,adversarial",
) -> None:
    """Evaluates the runs that are not evaluated yet, and writes the table.

    Raises:
      InputError: unusable flags or runs.
    """
    wrong = [
        name for name in suite.split(",") if name not in suites.SUITES or name in ("real", "a")
    ]
    if wrong:
        raise InputError(
            f"--suite={suite}: it can be clean, c, p, adversarial, separated by commas"
        )
    found = find_runs(runs)
    names = (
        [name.strip() for name in models.split(",")]
        if models
        else max((models_of(folder) for folder in found.values()), key=len)
    )
    folders = with_models(found, names)
    _require_same_images(
        [folder / "data" / config.evaluate.get("split", "test") for folder in folders.values()]
    )

    directory = Path(workdir)
    resolved = {
        "stage": "compare",
        "evaluate": config.evaluate.to_dict(),
        "suite": suite,
        "models": names,
    }
    inputs = {f"{run} {name}": folder / name for run, folder in folders.items() for name in names}
    if config.get("init"):
        resolved["init"] = config.init
    resolved["inputs"] = {key: fingerprint(path) for key, path in inputs.items()}
    done = start(directory, resolved)
    if done is not None:
        print(f"{workdir} is done\n{shown(workdir, done, table)}")
        return
    for run, folder in folders.items():
        flags = {
            "workdir": directory / run,
            "data": folder / "data",
            "split": config.evaluate.get("split", "test"),
            "model": ",".join(str(folder / name) for name in names),
            "suite": suite,
            "cache": directory / "cache",
            **({"init": config.init} if config.get("init") else {}),
        }
        words = [*app.recipe_flags(), *(f"--{name}={value}" for name, value in flags.items())]
        print(f"== {run}: ./run_evaluate.sh {' '.join(words)}", flush=True)
        code = termination.call(python_m("cli", "evaluate", *words))
        if code:
            sys.exit(code)
    schema = {"models": dict.fromkeys(names, dict)}
    rows = [
        require_finished(directory / run, "evaluation", "run_evaluate.sh", schema)["models"]
        for run in folders
    ]
    with reading(f"a summary.json in {directory}"):
        numbers = aggregate(rows, names)
    summary = {
        "runs": {run: str(folder) for run, folder in folders.items()},
        "models": names,
        **numbers,
    }
    summary["report"] = str(directory / "report.html")
    page.write(summary["report"], "seeds.html", title="Over seeds", **body(summary))
    finish(directory, summary)
    print(table(summary))
    print(f"report: {summary['report']}")


def find_runs(text: str) -> dict[str, Path]:
    """Returns the runs by name, in the order of their names.

    Prints which directories are left out because they are not runs.

    Raises:
      InputError: no runs, or two of the same name.
    """
    found: dict[str, Path] = {}
    for part in [text] if os.path.exists(text) else text.split(","):
        for path in [part] if os.path.exists(part) else sorted(glob.glob(part)) or [part]:
            run = Path(path).resolve()
            if not (run / "data").is_dir():
                print(f"{path} is left out: it has no data/ beside its models")
            elif found.setdefault(run.name, run) != run:
                raise InputError(
                    f"--runs: {found[run.name]} and {run} have the same name; rename one of them"
                )
    if not found:
        raise InputError(
            f"--runs={text}: there is no directory with data/ and models; give work directories of "
            "run_noisy_student.sh"
        )
    return found


def models_of(run: Path) -> list[str]:
    """Returns the names of a run's teacher and finished students, in order."""
    students = [
        path.parent.name
        for path in run.glob("student_*/summary.json")
        if path.parent.name[8:].isdecimal()
    ]
    return ["teacher", *sorted(students, key=lambda name: int(name[8:]))]


def with_models(runs: Mapping[str, Path], names: Sequence[str]) -> dict[str, Path]:
    """Returns the runs that have finished all models in `names`; prints which have not.

    Raises:
      InputError: no run has finished them all.
    """
    complete = {}
    for run, folder in runs.items():
        lacking = [name for name in names if not (folder / name / "summary.json").exists()]
        if lacking:
            print(f"{folder} is left out: it has no finished {', '.join(lacking)}")
        else:
            complete[run] = folder
    if not complete:
        raise InputError(
            f"none of the runs has all of {', '.join(names)}; finish the runs with "
            "run_noisy_student.sh, or name other --models"
        )
    return complete


def _require_same_images(splits: Sequence[Path]) -> None:
    digests = {split: read_manifest(split, "labeled").digests for split in splits}
    for split, digest in digests.items():
        if digest != digests[splits[0]]:
            raise InputError(
                f"{split} holds other test images than {splits[0]}; seeds can only be compared on "
                "the same test images"
            )


def aggregate(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Returns `numbers` and `gains` of `summary.json`, and `gains_over_probe` with a probe.

    `rows` are the `models` of each seed's evaluation.
    """
    numbers: dict[str, dict[str, Any]] = {}
    gains: dict[str, dict[str, Any]] = {}
    over_probe: dict[str, dict[str, Any]] = {}
    if probe.NAME not in names and all(probe.NAME in row for row in rows):
        names = [*names, probe.NAME]
    trained = [name for name in names if name != probe.NAME]
    for key, (number, shown_as) in COMPARED.items():
        measured = {name: [find(row[name], number.key) for row in rows] for name in names}
        if any(value is None for values in measured.values() for value in values):
            continue
        found = {
            name: [shown_as.scale * value for value in values] for name, values in measured.items()
        }
        numbers[key] = {name: _described(values) for name, values in found.items()}
        if len(trained) > 1:
            gains[key] = gain_over_seeds(found[trained[0]], found[trained[-1]])._asdict()
        if trained and probe.NAME in names:
            over_probe[key] = gain_over_seeds(found[probe.NAME], found[trained[-1]])._asdict()
    probe_gains = {"gains_over_probe": over_probe} if over_probe else {}
    return {"numbers": numbers, "gains": gains, **probe_gains}


def _described(values: Sequence[Any]) -> dict[str, Any]:
    mean, deviation, interval = over_seeds(values)
    return {"values": list(values), "mean": mean, "deviation": deviation, "interval": interval}


def cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows: one row per number, one column per model, mean ± half of the interval.

    Further columns have the gains of the last model over the first, and over the linear probe.
    """
    names = summary["models"]
    gains = {names[0]: summary["gains"], probe.NAME: summary.get("gains_over_probe", {})}
    head = ["", *_columns(summary)]
    for name, by_number in gains.items():
        head += [f"{names[-1]} − {name}", "seeds better", "p"] if by_number else []
    body = []
    for key, by_model in summary["numbers"].items():
        number, shown_as = COMPARED[key]
        row = [shown_as.title, *(_mean(by_model[name]) for name in _columns(summary))]
        for by_number in gains.values():
            row += _gain(by_number[key], number.better) if key in by_number else []
        body.append(row)
    return head, body


def _columns(summary: Mapping[str, Any]) -> list[str]:
    """Returns the names of the models, and of the linear probe where there is one."""
    return [*summary["models"], *([probe.NAME] if summary.get("gains_over_probe") else [])]


def _gain(gain: Mapping[str, Any], better: str) -> list[str]:
    sign = 1 if better == "higher" else -1
    count = sum(sign * value > 0 for value in gain["values"])
    p = gain["p_value"]
    p_value = "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return [_mean(gain, "+"), f"{count} of {len(gain['values'])}", p_value]


def _mean(described: Mapping[str, Any], sign: str = "") -> str:
    interval = described["interval"]
    text = f"{described['mean']:{sign}.2f}"
    return text if interval is None else f"{text} ± {(interval[1] - interval[0]) / 2:.2f}"


def table(summary: Mapping[str, Any]) -> str:
    """Returns the table as text."""
    head, body = cells(summary)
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])),
            ]
        )
        for row in [head, *body]
    ]
    return "\n".join(
        [
            *lines,
            (
                f"{len(summary['runs'])} seeds; mean ± half of the 95 % interval over seeds"
                " (Student's t)"
            ),
        ]
    )


def body(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `templates/seeds.html` shows."""
    names, runs = _columns(summary), list(summary["runs"])
    drawn, seeds = [], {}
    for key, by_model in summary["numbers"].items():
        number, (_, title, _) = COMPARED[key]
        intervals = [by_model[name]["interval"] for name in names]
        svg = charts.bars(
            f"{title} of each model, mean over seeds",
            names,
            [by_model[name]["mean"] for name in names],
            intervals,
            title,
        )
        drawn.append(
            (
                title[:1].upper() + title[1:],
                svg,
                f"{number.better.capitalize()} is better. 95 % intervals over seeds.",
            )
        )
        seeds[title] = [
            [run, *(f"{by_model[name]['values'][i]:.2f}" for name in names)]
            for i, run in enumerate(runs)
        ]
    return {
        "models": names,
        "runs": summary["runs"],
        "numbers": cells(summary),
        "charts_of_numbers": drawn,
        "seeds": seeds,
    }
