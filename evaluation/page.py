"""The pages of a report: templates filled in, each one HTML file that needs nothing but itself.

`templates/base.html` forbids the page to load anything. Everything that a template is given is
text and is escaped, except the drawings of `charts`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from cli.files import atomic_path
from evaluation.pictures import RIGHT, WRONG

LARGEST = 5_000_000
"""Largest size, in bytes, of a report that opens and travels with ease."""
MOST_CLASSES = 20
"""Largest number of classes that get a confusion matrix and a row of pictures each."""


def write(path: str | os.PathLike[str], template: str, **values: Any) -> None:
    """Writes a page atomically; prints a line if it is larger than `LARGEST`."""
    encoded = render(template, **values).encode("utf-8")
    if len(encoded) > LARGEST:
        print(f"{path} has {len(encoded):,} bytes; with fewer models or classes it is smaller")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)


def render(template: str, **values: Any) -> str:
    """Fills in a file of `templates/`. Raises jinja2.UndefinedError where it wants more values."""
    return TEMPLATES.get_template(template).render(values)


def part(name: str, *arguments: Any) -> str:
    """Returns one piece of a page: the macro `name` of `templates/parts.html` with `arguments`."""
    return str(getattr(TEMPLATES.get_template("parts.html").module, name)(*arguments))


def _caption(caption: str) -> Markup:
    """Returns a caption with its marks, so that right and wrong differ by more than color."""
    lines = str(escape(caption)).replace("\n", "<br>")
    lines = re.sub(f"{RIGHT}([^{RIGHT}]*){RIGHT}", r'<span class="right">✓&nbsp;\1</span>', lines)
    return Markup(
        re.sub(f"{WRONG}([^{WRONG}]*){WRONG}", r'<span class="wrong">✗&nbsp;\1</span>', lines)
    )


def _anchor(title: str) -> str:
    """Returns the id of a section."""
    return title.lower().replace(" ", "-")


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters.update(anchor=_anchor, caption=_caption, pretty=_pretty)
