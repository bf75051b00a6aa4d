"""Prints docs/paper_map.md, the map of the papers: `python -m experiments.paper_map`."""

from __future__ import annotations

import textwrap

from experiments.papers.chapters import CHAPTERS, counts
from experiments.papers.row import IMPOSSIBLE, VERDICTS, Differs, Numbers, Row

INTRO = """\
# Where each part of the papers is

Find the command that makes a table or a figure of the papers, and how far it is checked here.

Related: [differences](differences.md), [results](results.md), [results of Meta Pseudo
Labels](meta_pseudo_labels_results.md), [scaling](scaling.md).

Made by `python -m experiments.paper_map > docs/paper_map.md`. Edit `experiments/papers/` instead.

Each row has the commands that would make a part of the papers, and how far they are checked.
`./run_experiment.sh audit` reads every command, makes its plan as `--dry_run` does, and compares
the plan with the papers' numbers. It fails where a recipe, a flag or a file is gone. `IMAGENET`,
`POOL`, `DIR` and the like stand for your own locations ([data.md](data.md)).

**Before a run** add `--dry_run` to its command; the data need not be there yet. With
`--devices=8 --device=A100` it plans for devices that are not here: settings that fit, memory, hours
([what fits where](scaling.md#what-fits-where)).

**Rows with the same teacher.** Give each row a work directory of its own. A row begins with what
another row has made where you link it: `mkdir W2; ln -s ../W1/data ../W1/teacher W2/`. Stages with
other settings than the row's are refused, not used. Link `selector`, `predictions_0` and
`pseudo_labeled_0`, too, where the selection is the same.

| verdict | what it means |
|---|---|
"""


def page() -> str:
    """Returns docs/paper_map.md."""
    verdicts = "".join(f"| {name} | {meaning} |\n" for name, meaning in VERDICTS.items())
    parts = [f"{INTRO}{verdicts}\n{textwrap.fill(counts(CHAPTERS) + '.', 100)}\n"]
    for paper, rows in CHAPTERS.items():
        head = "| paper | here | commands | checked here | verdict |\n|---|---|---|---|---|\n"
        parts.append(f"## {paper}\n\n{head}{''.join(map(_line, rows))}")
    return "\n".join(parts)


def _line(row: Row) -> str:
    part = f"{row.part}: {'; '.join(row.items)}" if row.items else row.part
    commands = "<br>".join(f"`{command}`" for command in row.commands) or "none"
    verdict = f"{row.verdict}: {row.why}" if row.verdict == IMPOSSIBLE else row.verdict
    cells = (part, row.here, commands, _checked(row), verdict)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n"


def _checked(row: Row) -> str:
    compared = [_compared(numbers) for numbers in row.numbers]
    ran = [_link(place) for place in row.ran]
    why = [row.why] if row.why and row.verdict != IMPOSSIBLE else []
    return "<br>".join([*compared, *(["ran: " + ", ".join(ran)] if ran else []), *why])


def _compared(numbers: Numbers) -> str:
    values = ", ".join(
        f"{name.replace('_', ' ')} {_number(value)}" for name, value in numbers.values.items()
    )
    return f"{numbers.training}: {values} ({numbers.source})"


def _number(value: object) -> str:
    if isinstance(value, Differs):
        return f"{_number(value.paper)} in the paper, {_number(value.here)} here ({value.why})"
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _link(place: str) -> str:
    """Returns a link from docs/ to a file or a heading of the project."""
    path, _, anchor = place.partition("#")
    target = path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}"
    return f"[{path}]({target}{'#' + anchor if anchor else ''})"


if __name__ == "__main__":
    print(page(), end="")
