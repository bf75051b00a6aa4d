"""The building blocks of the report: one HTML file that needs nothing but itself, and may load nothing else."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.files import atomic_path
from evaluation.pictures import RIGHT, WRONG, Picture

LARGEST = 5_000_000
"""Bytes up to which a report opens and travels with ease."""
MOST_CLASSES = 20
"""With a confusion matrix and a row of pictures each."""

# The page may show what it holds and nothing else: no script, no font, no image from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def text(value: object) -> str:
    """Escaped for HTML."""
    return html.escape(str(value), quote=True)


def write(path: str | os.PathLike[str], title: str, body: Iterable[str]) -> None:
    """Writes the page, atomically; says where it is larger than `LARGEST`."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    page = "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )
    encoded = page.encode("utf-8")
    if len(encoded) > LARGEST:
        print(f"{path} has {len(encoded):,} bytes; with fewer models or classes it is smaller")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str) -> str:
    """A table that scrolls by itself where the screen is narrow; `caption` names it for screen readers."""
    cells = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{text(row[0])}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f"<table><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The confusion matrix: rows are the true classes; the deeper the colour, the larger the share of its row (square root)."""
    rows = []
    for name, row in zip(names, counts):
        total = max(sum(row), 1)
        cells = "".join(f'<td style="--p:{(count / total) ** 0.5:.2f}">{count or ""}</td>' for count in row)
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def charts(drawn: Sequence[tuple[str, str, str]]) -> str:
    """Charts side by side where there is room: (title, SVG, caption)."""
    figures = [
        f"<figure><h3>{text(title)}</h3>{svg}" + (f"<figcaption>{text(caption)}</figcaption>" if caption else "") + "</figure>"
        for title, svg, caption in drawn
        if svg
    ]
    return f'<div class="charts">{"".join(figures)}</div>'


def sheet(pictures: Sequence[Picture]) -> str:
    """Pictures in a row that wraps, each with its caption."""
    shown = [
        f'<div><img src="{picture.data}" alt="{text(picture.text)}">{_caption(picture.caption) if picture.caption else ""}</div>'
        for picture in pictures
    ]
    return f'<div class="sheet">{"".join(shown)}</div>'


def _caption(caption: str) -> str:
    lines = text(caption).replace("\n", "<br>")
    # The marks stay, so that right and wrong differ by more than colour.
    lines = re.sub(f"{RIGHT}([^{RIGHT}]*){RIGHT}", r'<span class="right">✓&nbsp;\1</span>', lines)
    return re.sub(f"{WRONG}([^{WRONG}]*){WRONG}", r'<span class="wrong">✗&nbsp;\1</span>', lines)


def rows(sheets: Mapping[str, Sequence[Picture]]) -> str:
    """Named rows of pictures."""
    return (
        '<div class="rows">' + "".join(f"<div><b>{text(name)}</b>{sheet(pictures)}</div>" for name, pictures in sheets.items()) + "</div>"
    )


def folded(title: str, value: Any) -> str:
    """JSON or text behind its title."""
    content = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>"
