"""Makes the text of `--help` from the table of commands and the recipes' first lines.

Imports no TensorFlow.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from cli.commands import GROUPS, STAGES, load
from cli.flags import REQUIRED, Command, Flag
from cli.places import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100


def of_command(command: Command) -> str:
    """Returns the text of `--help` for one command."""
    required = [flag.shown for flag in command.flags if flag.default is REQUIRED]
    if command.recipes and not command.recipe:
        required.insert(0, "--config=RECIPE")
    optional = command.recipes or any(flag.default is not REQUIRED for flag in command.flags)
    usage = [
        command.script,
        *required,
        *(["[FLAGS]"] if optional else []),
        *([command.words] if command.words else []),
    ]
    parts = [
        _wrapped(f"usage: {' '.join(usage)}"),
        "\n".join([command.summary, _wrapped(command.does)]),
    ]
    parts += [_flags(title, rows) for title, rows in _grouped(command) if rows]
    parts.append(
        "examples:\n"
        + "\n".join(f"  {command.script} {line}".rstrip() for line in command.examples)
    )
    if command.recipes:
        parts.append(_recipes(command))
    if command.name in COMMANDS:
        parts.append(
            _wrapped(
                "Files and folders can be in a bucket: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"
                " (docs/scaling.md)."
                " --force takes such a work directory over from a command that is dead."
            )
        )
    if command.beam:
        parts.append("Options of Apache Beam are passed on: --runner=…, --direct_num_workers=N, ….")
    return "\n\n".join(parts)


def of_group(group: str) -> str:
    """Returns the text of `./run_GROUP.sh --help`; of all scripts for group ""."""
    commands = GROUPS[group] if group else STAGES
    script = f"./run_{group}.sh NAME" if group else "./run_NAME.sh"
    rows = _rows((command.name, command.summary) for command in commands)
    groups = "" if group else f"\n\nand ./run_NAME.sh for NAME: {', '.join(GROUPS)}"
    return f"usage: {script} [FLAGS]\n\n{script} --help explains one:\n{rows}{groups}"


def of_setting(key: str, command: Command) -> str:
    """Returns the text of `--help KEY`, for one setting of the recipe."""
    if not command.recipes:
        return f"{command.script} has no recipe and so no setting {key}"
    if not command.settings:
        return f"{key}: the comments in {' and '.join(_bases(command))} explain the settings"
    from cli.settings import describe  # ml_collections takes a while to import

    return describe(load(command.settings)({}), key)


def _bases(command: Command) -> list[str]:
    bases = sorted({f"configs/{pattern.partition('/')[0]}/base.py" for pattern in command.recipes})
    return [base for base in bases if (ROOT / base).exists()] or [f"configs/{command.recipes[0]}"]


def _grouped(command: Command) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for title, wanted in (("required flags:", True), ("optional flags:", False)):
        yield (
            title,
            [
                (flag.shown, _meaning(flag))
                for flag in command.flags
                if (flag.default is REQUIRED) is wanted
            ],
        )


def _meaning(flag: Flag) -> str:
    if flag.type is bool or flag.default in (REQUIRED, None, ""):
        return flag.help
    return (
        f"{flag.help} Default: {flag.default:g}."
        if flag.type is float
        else f"{flag.help} Default: {flag.default}."
    )


def _flags(title: str, rows: list[tuple[str, str]]) -> str:
    return f"{title}\n{_rows(rows)}"


def _recipes(command: Command) -> str:
    found = sorted(
        {path for pattern in command.recipes for path in (ROOT / "configs").glob(pattern)}
    )
    rows = [
        (str(path.relative_to(ROOT)), _first_line(path))
        for path in found
        if path.name not in ("__init__.py", "base.py")
    ]
    default = f" Default: {command.recipe}." if command.recipe else ""
    return (
        f"recipes, --config=FILE[:ARGUMENT]:{default}\n{_rows(rows)}\n"
        + _wrapped(
            "  A recipe is Python code, which is executed. Read a recipe from others before you "
            "run it.",
            "  ",
        )
        + "\n  --config.KEY=VALUE changes one setting, --help KEY explains it."
    )


def _first_line(path: Path) -> str:
    found = re.match(r'"""(.*?)(?:"""|\n)', path.read_text(encoding="utf-8"))
    return found[1] if found else ""


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    """Formats two columns; where a name is too wide, its text is on the next line."""
    rows = list(rows)
    column = min(max((len(name) for name, _ in rows), default=0), 38) + 4
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - column) or [""]
        first = (
            [f"  {name}"]
            if len(name) + 4 > column
            else [f"{f'  {name}':<{column}}{wrapped.pop(0)}".rstrip()]
        )
        lines += [*first, *(" " * column + line for line in wrapped)]
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent or "    ", break_on_hyphens=False)
