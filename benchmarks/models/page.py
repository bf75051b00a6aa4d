"""Sections of a documentation page that commands write, between two comments.

The rest of the page is written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cli.app import ROOT
from cli.errors import InputError
from cli.files import atomic_path

MODELS = ROOT / "docs" / "models.md"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table, the first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_section(page: Path, name: str, text: str) -> None:
    """Puts `text` between `<!-- name: begin -->` and `<!-- name: end -->`.

    Raises:
      InputError: the page lacks them.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise InputError(f"{page} has no section {name!r}")
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")
