"""Opening of the report: what the run is about, before any number.

It has the verdict, the facts of the run, the images of each split, warnings, and the commands. All
of it is read from what the stages left. What is not there is left out.
"""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli import stack
from cli.app import ROOT
from cli.json_files import read_json
from evaluation import page

CHOICE = {"verdict": str, "served": str}
"""Schema of what the report needs of `choice.json`, which the loop writes."""
PREPARED = {"splits?": {str: {"images": int, "per_class?": {str: int}}}, "source?": str}
"""Schema of what the report needs of the summary of `run_prepare_data.sh`."""
BALANCED = {"label_names": [str], "total": [int]}
"""Schema of what the report needs of the summary of `run_balance.sh`."""
_MOST_NAMED = 10


def verdict(run: Path | None) -> Iterator[tuple[str, Any]]:
    """Yields the loop's answer: did the unlabeled images help? Nothing where no loop ran."""
    if run and (run / "choice.json").exists():
        choice = read_json(run / "choice.json", CHOICE)
        yield "verdict", choice["verdict"]
        yield "served", choice["served"]


def facts(
    run: Path | None, data: Path | None, commands: Sequence[str], seconds: float
) -> Iterator[tuple[str, Any]]:
    """Yields `facts`, rows of (what, value): data set, date, duration, recipe and versions.

    Args:
      run: directory of the whole run, if there is one.
      data: directory of the prepared data, if there is one.
      commands: command lines that were carried out.
      seconds: time that this evaluation took so far.
    """
    rows: list[tuple[str, str]] = []
    yield "facts", rows  # before it is full: the rows before a damaged file are shown
    now = datetime.datetime.now(datetime.timezone.utc)
    rows.append(("Date", now.strftime("%Y-%m-%d %H:%M UTC")))
    recipes = [found[1] for line in commands if (found := re.search(r"--config=(\S+)", line))]
    if recipes:
        rows.append(("Recipe", recipes[-1].strip("'\"")))
    rows.append(("Versions", _versions()))
    if data:
        rows.insert(0, ("Data set", _data_set(run, data)))
    if run and (run / "seconds.json").exists():
        spent = read_json(run / "seconds.json", {str: float})
        before = sum(value for name, value in spent.items() if name not in ("evaluate", "export"))
        rows.insert(2, ("Duration", f"{_time(before + seconds)}, this evaluation included"))


def _data_set(run: Path | None, data: Path) -> str:
    """Names the folders that a run was given, or else the source of its data."""
    folders: dict[str, str] = {}
    if run and (run / "config.json").exists():
        folders = read_json(run / "config.json", {"folders?": {str: str}}).get("folders", {})
    if folders:
        return "; ".join(f"{name}: {place}" for name, place in folders.items())
    source = ""
    if (data / "summary.json").exists():
        source = read_json(data / "summary.json", PREPARED).get("source", "")
    return f"{source} ({data})" if source else str(data)


def _versions() -> str:
    found = [f"Python {platform.python_version()}", stack.current(), f"NumPy {np.__version__}"]
    commit = _commit()
    return ", ".join([*found, *([f"commit {commit}"] if commit else [])])


def _commit() -> str:
    """Returns the checkout's commit, marked if files differ from it; "" if it is not known."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def counts(data: Path | None) -> Iterator[tuple[str, Any]]:
    """Yields `counts`, (head, rows) of a table: the images of each split and of each class."""
    if not data or not (data / "summary.json").exists():
        return
    splits: Mapping[str, Any] = read_json(data / "summary.json", PREPARED).get("splits", {})
    if not splits:
        return
    names = list(
        dict.fromkeys(name for row in splits.values() for name in row.get("per_class", {}))
    )
    shown = names if len(names) <= page.MOST_CLASSES else []
    rows = []
    for split, row in splits.items():
        per_class = row.get("per_class")
        cells = ["–" if per_class is None else f"{per_class.get(name, 0):,}" for name in shown]
        rows.append([split, f"{row['images']:,}", *cells])
    yield "counts", (["split", "images", *shown], rows)


def warnings(
    run: Path | None, data: Path | None, without_examples: Sequence[str], split: str
) -> Iterator[tuple[str, Any]]:
    """Yields `warnings`: classes without examples in a split, and without pseudo-labels.

    Args:
      run: directory of the whole run, if there is one.
      data: directory of the prepared data, if there is one.
      without_examples: classes that the evaluated split lacks.
      split: name of the evaluated split.
    """
    said: list[str] = []
    yield "warnings", said
    if without_examples:
        said.append(
            f"No examples in the split {split}, so nothing is known of: {_named(without_examples)}."
        )
    if data and (data / "summary.json").exists():
        splits = read_json(data / "summary.json", PREPARED).get("splits", {})
        labeled = splits.get("labeled", {}).get("per_class", {})
        if lacking := [name for name, count in labeled.items() if not count]:
            said.append(f"No labeled images, so no model can answer: {_named(lacking)}.")
    for folder in rounds(run):
        found = read_json(folder / "summary.json", BALANCED)
        lacking = [name for name, total in zip(found["label_names"], found["total"]) if not total]
        if lacking:
            number = folder.name.rsplit("_", 1)[1]
            said.append(
                f"No pseudo-labels in round {number}, so the unlabeled images could not help:"
                f" {_named(lacking)}."
            )


def rounds(run: Path | None) -> list[Path]:
    """Returns the finished directories of pseudo-labels of a run, in order."""
    found = [path.parent for path in run.glob("pseudo_labeled_*/summary.json")] if run else []
    return sorted(found, key=lambda path: (len(path.name), path.name))  # 10 after 9


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def commands(run: Path | None, command: str, directory: Path) -> list[str]:
    """Returns the commands that made a run, as they were carried out.

    The loop's list also has commands that were refused or stopped, and stages that were started
    again. Of the commands for one work directory, the last one counts, if that directory is
    finished.

    Args:
      run: directory of the whole run, if there is one.
      command: the command line of this evaluation.
      directory: work directory of this evaluation.
    """
    if not run or not (run / "commands.txt").exists():
        return [command]
    last: dict[Path, str] = {}
    for line in (run / "commands.txt").read_text(encoding="utf-8").splitlines():
        place = next((word[10:] for word in _words(line) if word.startswith("--workdir=")), "")
        if place:
            last.pop(run / place, None)  # the last one keeps its place in the order
            last[run / place] = line
    shown = [line for place, line in last.items() if _is_done(run, place, directory)]
    listed = any(directory.resolve() in (place, run / place.name) for place in last)
    return shown if listed else [*shown, command]


def _is_done(run: Path, place: Path, directory: Path) -> bool:
    """Tells whether a work directory is finished, or is that of this evaluation.

    The run may have moved since its commands were listed, so both places are tried.
    """
    here = [place, run / place.name]
    return directory.resolve() in here or any((path / "summary.json").exists() for path in here)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a line that a kill has cut
        return []
