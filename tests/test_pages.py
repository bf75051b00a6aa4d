"""The pages: links lead somewhere, each page opens with its purpose, and lines are short."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest

from tests.test_architecture import FLOORS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("*.ipynb")])
COLUMNS = 100
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def text_of(page: Path) -> str:
    """Returns the Markdown of a page; of a notebook, the Markdown of its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        return "\n\n".join("".join(cell["source"]) for cell in cells)
    return text


def prose(text: str) -> list[tuple[int, str]]:
    """Yields (number, line) of the lines outside of fenced code."""
    found, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            found.append((number, line))
    return found


def slug(title: str) -> str:
    """Returns the anchor that GitHub and MyST give a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> set[str]:
    found: dict[str, int] = {}
    names = set()
    for _, line in prose(text_of(page)):
        heading = re.match(r"#{1,6} (.*)", line)
        if heading:
            name = slug(heading[1])
            count = found[name] = found.get(name, -1) + 1
            names.add(f"{name}-{count}" if count else name)
    return names


def broken(page: Path, text: str) -> list[str]:
    """Returns the links of a page's text that lead nowhere in the project."""
    plain = re.sub(r"`[^`\n]*`", "``", "\n".join(line for _, line in prose(text)))
    wrong = []
    for target in LINK.findall(plain):
        place, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / place).resolve() if place else page
        if not path.exists() or ROOT not in path.parents:
            wrong.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            wrong.append(f"{target}: no such heading")
    return wrong


def too_long(text: str) -> list[str]:
    """Returns the lines above 100 columns that could be broken.

    Tables, headings and pictures are one line each, and what is printed by a program (```text)
    stays as it is. A command in backticks and a link's address cannot be broken.
    """
    wrong, language = [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            language = None if language is not None else fence[1]
        elif len(line) <= COLUMNS or language == "text" or re.match(r"\s*(\||#+ |!\[)", line):
            continue
        elif language is not None:
            wrong.append(f"{number}: {line}")
        else:
            whole = re.sub(r"`[^`]*`", lambda code: "x" * len(code[0]), line).strip()
            if " " in whole:
                wrong.append(f"{number}: {line}")
    return wrong


def opening(text: str) -> tuple[str, str]:
    """Returns the first two paragraphs below a page's title."""
    _, first, second, *_ = text.split("\n\n")
    return first, second


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page, text_of(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    assert not too_long(text_of(page))


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in ("README.md", "index.md")],
    ids=lambda page: page.name,
)
def test_a_page_opens_with_its_purpose_and_its_neighbors(page: Path) -> None:
    purpose, related = opening(text_of(page))
    assert re.match(r"\w", purpose) and purpose.endswith((".", ":"))
    assert related.startswith("Related: ") and len(LINK.findall(related)) >= 3


def test_the_index_names_every_page() -> None:
    named = {
        (DOCS / target.partition("#")[0]).resolve()
        for target in LINK.findall(text_of(DOCS / "index.md"))
    }
    assert set(PAGES) - named == {DOCS / "index.md"}


def test_pictures_are_shown() -> None:
    pictures = {path for kind in ("png", "jpg", "svg") for path in DOCS.glob(f"*.{kind}")}
    shown = {
        (page.parent / target).resolve() for page in PAGES for target in LINK.findall(text_of(page))
    }
    assert pictures and pictures <= shown


def test_the_import_plan_is_the_one_that_is_tested() -> None:
    rows = re.findall(r"^\| (\d) \| (.*?) \|", text_of(DOCS / "architecture.md"), re.MULTILINE)
    floors = {int(floor): tuple(re.findall(r"`(\w+)`", rooms)) for floor, rooms in rows}
    assert floors == dict(enumerate(FLOORS, 1))


def test_what_the_checks_find() -> None:
    page = DOCS / "index.md"
    text = "[a](gone.md) [b](data.md#gone) [c](data.md#imagenet-2012) `[d](e.md)`\n```\n[f](g.md)\n"
    assert broken(page, text) == ["gone.md: no such file", "data.md#gone: no such heading"]
    assert broken(page, "[`a`\nb](x.md) ![c [d]](y.png)") == [
        "x.md: no such file",
        "y.png: no such file",
    ]
    word = "x" * 101
    assert too_long(f"a {word}\n| {word} a\n{word}\n`a {word}`\n```text\na {word}\n```\n") == [
        f"1: a {word}"
    ]
    assert too_long(f"```\na {word}\n```\n") == [f"2: a {word}"]
    assert slug("The step: `x_y`, twice") == "the-step-x_y-twice"
