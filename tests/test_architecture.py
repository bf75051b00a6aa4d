"""Imports run one way through the rooms of the house."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground up: a room imports rooms of the rows above its own. In its own row it imports only
# itself.
FLOORS = [
    ("cli",),
    ("data", "nets"),
    ("efficientnet", "resnet"),
    ("training",),
    ("weights", "noisy_student", "meta_pseudo_labels", "fixmatch", "serving"),
    ("evaluation",),
    ("workflow",),
    ("experiments", "configs"),
]
ALLOWED = {
    room: {below for row in FLOORS[:floor] for below in row}
    for floor, rooms in enumerate(FLOORS)
    for room in rooms
}
# They may import every room, and no room imports them.
OUTSIDE = {
    "tests",
    "benchmarks",
    "docs",
    "scripts",
}


def imported(source: str) -> list[tuple[int, str]]:
    """Returns (line, first part of the module's name) of each import, wherever it stands.

    Relative imports are left out.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name.partition(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, (node.module or "").partition(".")[0]))
    return found


def test_the_reader_of_imports_sees_every_form() -> None:
    source = (
        "import a.b as c, d\nfrom e.f import g\nfrom . import h\ndef i():\n    from j import k\n"
    )
    assert imported(source) == [(1, "a"), (1, "d"), (2, "e"), (5, "j")]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_what_lies_below(room: str) -> None:
    forbidden = (set(ALLOWED) | OUTSIDE) - ALLOWED[room] - {room}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, name in imported(path.read_text(encoding="utf-8"))
        if name in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_with_code_is_a_known_room() -> None:
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and any(path.glob("*.py"))
    }
    folders = {name for name in folders if not (ROOT / name / "pyvenv.cfg").exists()}
    assert {"cli", "data", "noisy_student"} <= folders
    assert folders <= set(ALLOWED) | OUTSIDE


@pytest.mark.parametrize("room", sorted(set(ALLOWED) - {"configs"}))
def test_room_says_what_lives_there(room: str) -> None:
    if (ROOT / room).exists():
        assert ast.get_docstring(
            ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))
        )


def modules() -> dict[str, Path]:
    """Returns every module of the rooms by its dotted name."""
    found = {}
    for room in ALLOWED:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(names: Mapping[str, Path]) -> dict[str, set[str]]:
    """Returns module -> the project's modules that it imports, anywhere in its file."""
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        found[name] = {target for target in targets if target in names} - {name}
    return found


def test_no_import_runs_in_a_circle() -> None:
    remaining = arrows(
        {name: path for name, path in modules().items() if path.name != "__init__.py"}
    )
    while True:
        free = {name for name, targets in remaining.items() if not targets & remaining.keys()}
        if not free:
            break
        remaining = {name: targets for name, targets in remaining.items() if name not in free}
    assert not remaining, f"modules in a circle of imports, or above one: {sorted(remaining)}"
