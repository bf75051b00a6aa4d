"""Prints docs/settings.md, the table of all settings: `python -m workflow.settings_page`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from cli.settings import Section, Setting, table
from workflow.methods import METHODS, settings_of
from workflow.settings import RECIPE, SUPERVISED

INTRO = """\
# Settings

Every setting of a recipe, with its default, its range and its meaning.

Related: [the stages](stages.md), [Noisy Student](noisy_student.md), [Meta Pseudo
Labels](meta_pseudo_labels.md), [data](data.md), [glossary](glossary.md).

Made by `python -m workflow.settings_page > docs/settings.md`. Edit the rooms' `settings.py`
instead.

A recipe is a Python file in `configs/`. `--config.KEY=VALUE` changes one of its settings, and
`--config.KEY=None` leaves one open, where None is allowed. `--help KEY` explains one.
A command checks all of them before it does anything. It refuses a flag that another setting
switches off; "No effect without …" says which. The defaults below are those of
`configs/noisy_student/base.py` and `configs/meta_pseudo_labels/base.py`; a recipe may have others.
"""

OWN_PREPROCESSING = (
    "`preprocessing` in it holds what differs from the recipe's section; None keeps the recipe's"
    " value."
)


def page() -> str:
    """Returns the text of docs/settings.md."""
    sections = {name: value for name, value in RECIPE.items() if isinstance(value, Section)}
    loop = [(name, value) for name, value in RECIPE.items() if name not in sections]
    parts = [INTRO, _chapter("The recipe and the loop", RECIPE.meaning, loop)]
    parts += [_of_section(name, sections[name]) for name in ("data", "expected", "preprocessing")]
    names = "`selector`, `teacher`, `student`, `finetune`, `finetune_student`, `train`"
    rows = [row for row in SUPERVISED.walk() if not row[0].startswith("preprocessing.")]
    parts.append(_chapter(f"Trainings: {names}", f"{SUPERVISED.meaning} {OWN_PREPROCESSING}", rows))
    seen = {setting for _, setting in SUPERVISED.walk()}
    for name in _others():
        section = settings_of(name)
        rows = [row for row in section.walk() if row[1] not in seen and row[0] != "method"]
        shown = {part for key, _ in rows for part in (key, key.rpartition(".")[0])}
        more = ", ".join(f"`{key}`" for key in _keys(section) if key not in shown)
        parts.append(_chapter(f"Trainings: {name}", f"{section.meaning} As above: {more}.", rows))
        seen |= {setting for _, setting in section.walk()}
    parts += [
        _of_section(name, sections[name])
        for name in ("pseudo_label", "balance", "evaluate", "crossfit")
    ]
    return "\n".join(parts)


def _others() -> list[str]:
    """Returns a method of each train section other than Noisy Student's."""
    by_section = {row.settings: name for name, row in reversed(METHODS.items())}
    return [name for name in METHODS if name in by_section.values()][1:]


def _keys(section: Section) -> list[str]:
    """Returns the keys of a train section; a network's part is written out."""
    keys: list[str] = []
    for key, value in section.items():
        network = isinstance(value, Section) and "model" in value
        keys += [f"{key}.{part}" for part in value] if network else [key]
    return keys


def _of_section(name: str, section: Section) -> str:
    return _chapter(f"`{name}`", section.meaning, section.walk())


def _chapter(title: str, meaning: str, rows: Iterable[tuple[str, Setting]]) -> str:
    text = textwrap.fill(meaning, 100, break_on_hyphens=False)
    return f"## {title}\n\n{text}\n\n{table(rows)}\n"


if __name__ == "__main__":
    print(page(), end="")
