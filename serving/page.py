"""The page at `GET /` of the development server.

A person chooses an image and sees its most probable classes, what the answer depends on, and the
nearest labeled images (`serving.explain`).
"""

from __future__ import annotations

import json
from pathlib import Path

from serving.answers import REASONS

POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; script-src 'unsafe-inline';"
    " style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the page asks its own server and nobody else."""

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def html(names: list[str]) -> str:
    """Returns the page for the models `names`."""
    facts = json.dumps({"names": names, "reasons": REASONS})
    # "</script>" in a name would end the element that holds the facts
    return _PAGE.replace("$FACTS", facts.replace("<", "\\u003c"))
