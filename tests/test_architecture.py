"""Imports run one way through the rooms of the house."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LEAVES = {"stages", "data", "efficientnet", "resnet"}

# Room -> the rooms that it may import besides itself. `stages` is the floor that all stand on; the two methods never
# import each other; what runs after them reads their models and records, not their code.
ALLOWED = {
    "stages": set(),
    "configs": set(),
    "data": {"stages"},
    "efficientnet": {"stages"},
    "resnet": {"stages", "efficientnet"},  # for the layers that both families are made of
    "training": LEAVES,
    "noisy_student": LEAVES | {"training"},
    "meta_pseudo_labels": LEAVES | {"training"},
    "evaluation": LEAVES | {"training"},
    "serving": LEAVES | {"training"},
}
# Commands that end in, or start from, a work directory stand with what they are about; nothing imports them.
COMMANDS = {"efficientnet/import_weights.py": {"data", "training"}, "efficientnet/export_weights.py": {"data", "training"}}
OUTSIDE = {"tests", "benchmarks", "docs", "scripts"}  # may import every room, and no room imports them


def imported(source: str) -> list[tuple[int, str]]:
    """(line, first part of the module's name) of each import, wherever in the file it stands; relative ones are left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, (node.module or "").partition(".")[0]))
    return found


def test_the_reader_of_imports_sees_every_form() -> None:
    source = "import a.b as c, d\nfrom e.f import g\nfrom . import h\ndef i():\n    from j import k\n"
    assert imported(source) == [(1, "a"), (1, "d"), (2, "e"), (5, "j")]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_lies_below(room: str) -> None:
    forbidden = (set(ALLOWED) | OUTSIDE) - ALLOWED[room] - {room}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, name in imported(path.read_text(encoding="utf-8"))
        if name in forbidden - COMMANDS.get(str(path.relative_to(ROOT)), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_with_code_is_a_known_room() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".") and any(path.glob("*.py"))}
    folders = {name for name in folders if not (ROOT / name / "pyvenv.cfg").exists()}
    assert {"stages", "data", "noisy_student"} <= folders
    assert folders <= set(ALLOWED) | OUTSIDE


@pytest.mark.parametrize("room", sorted(set(ALLOWED) - {"configs"}))
def test_room_says_what_lives_there(room: str) -> None:
    if (ROOT / room).exists():
        assert ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))
