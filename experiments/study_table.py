"""Prints a study's readings as Markdown tables, finished or not: `run_experiment.sh study_table`.

docs/results.md has its tables from this command, and docs/readings/ the files that it reads. So a
number on that page is one of a finished run, and what was not run says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import read_json_lines
from experiments import study
from experiments.study_runs import seeds

NOT_RUN = "not run yet"
LINE = {"run": str, "seed": int, "top1": {str: float}}
"""Fields of a line of `readings.jsonl`."""


def main(config: ConfigDict, readings: str) -> None:
    """Prints the tables. Raises InputError where the file is not one of the study."""
    study.check_config(config)
    print(tables(config, read(config, Path(readings).expanduser())))


def read(config: ConfigDict, path: Path) -> dict[str, dict[int, float]]:
    """Returns reading -> seed -> percent.

    Raises:
      InputError: there is no such file, or it has a reading or a seed that the study lacks.
    """
    if not path.is_file():
        raise InputError(f"--readings: {path} does not exist; a study writes it into its --workdir")
    known = {name: origin for name, origin, _ in config.readings}
    found: dict[str, dict[int, float]] = {name: {} for name in known}
    for number, (_, line) in enumerate(read_json_lines(path, LINE), 1):
        if line["seed"] not in seeds(config):
            raise InputError(
                f"--readings: line {number} of {path} has seed {line['seed']}; the study's are"
                f" {seeds(config)[0]} to {seeds(config)[-1]}"
            )
        for name, value in line["top1"].items():
            if known.get(name) != line["run"]:
                raise InputError(
                    f"--readings: line {number} of {path} has {name} of run {line['run']}; this"
                    " study has no such reading"
                )
            found[name][line["seed"]] = value
    return found


def tables(config: ConfigDict, found: Mapping[str, Mapping[int, float]]) -> str:
    """Returns a table of the readings and one of the claims.

    Args:
      config: the study.
      found: reading -> seed -> percent; a seed that was not run is missing.
    """
    every = list(seeds(config))
    lines = [f"| top-1 % | mean | std | {' | '.join(f'seed {seed}' for seed in every)} |"]
    lines.append(f"|{'---|' * (3 + len(every))}")
    for name, *_ in config.readings:
        numbers_of = found[name]
        numbers = [numbers_of[seed] for seed in every if seed in numbers_of]
        cells = [f"{numbers_of[seed]:.2f}" if seed in numbers_of else "" for seed in every]
        lines.append(f"| {name} | {_mean(numbers)} | {' | '.join(cells)} |")
    lines += ["", "| claim | verdict | points | 95 % interval | p |", "|---|---|---|---|---|"]
    lines += [_row(claim) for claim in claims(config, found)]
    return "\n".join(lines)


def _mean(numbers: Sequence[float]) -> str:
    """Returns the cells of the mean and of the standard deviation."""
    if not numbers:
        return f"{NOT_RUN} | "
    spread = f"{np.std(numbers, ddof=1):.2f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.2f} | {spread}"


def claims(config: ConfigDict, found: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Returns the claims' comparisons, as `study.results` does.

    A claim lacks its numbers until all its seeds are there. Holm's correction is for the number of
    all claims, so no claim has a verdict by it before the last run.
    """
    rows: list[dict[str, Any]] = []
    for better, worse, finding in config.claims:
        pair = [[found[name].get(seed) for seed in seeds(config)] for name in (better, worse)]
        complete = all(number is not None for numbers in pair for number in numbers)
        compared = study.compare(pair[0], pair[1]) if complete else {}  # type: ignore[arg-type]
        rows.append({"finding": finding, **compared})
    if config.correction == "holm":
        if all("p" in row for row in rows):
            return study.corrected(rows)
        for row in rows:
            row.pop("verdict", None)
    return rows


def _row(claim: Mapping[str, Any]) -> str:
    """Returns the row of a claim."""
    if "difference" not in claim:
        return f"| {claim['finding']} | {NOT_RUN} | | | |"
    verdict = f"**{claim['verdict']}**" if "verdict" in claim else "open until all are run"
    p = "" if claim["p"] is None else f"{claim['p']:.2g}"
    p += f", by Holm's correction {claim['p_holm']:.2g}" if "p_holm" in claim else ""
    interval = f"{claim['low']:+.2f} to {claim['high']:+.2f}"
    return f"| {claim['finding']} | {verdict} | {claim['difference']:+.2f} | {interval} | {p} |"
