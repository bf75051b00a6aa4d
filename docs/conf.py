"""Settings of the site, which `sphinx-build -W -c docs . build/site` builds: CONTRIBUTING.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser

ROOT = Path(__file__).resolve().parent.parent

project = "Noisy Student and Meta Pseudo Labels"
html_title = project
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]
myst_heading_anchors = 4
html_theme = "furo"
html_copy_source = False
html_use_index = False
html_show_copyright = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

CONTENTS = {
    "Begin": {
        "Overview": "/README",
        "Tutorial": "tutorial",
        "Quick start": "quickstart",
        "Own images": "own_images",
        "Installation": "installation",
        "Glossary": "glossary",
    },
    "Manuals": {
        "The stages": "stages",
        "Data": "data",
        "Noisy Student": "noisy_student",
        "Meta Pseudo Labels": "meta_pseudo_labels",
        "Models": "models",
        "Evaluation": "evaluation",
        "Serving": "serving",
        "Scaling": "scaling",
        "As a library": "library",
        "Settings": "settings",
    },
    "Results and papers": {
        "Results of Noisy Student": "results",
        "Results of Meta Pseudo Labels": "meta_pseudo_labels_results",
        "The derivation": "derivation",
        "The map of the papers": "paper_map",
        "Differences": "differences",
    },
    "Changing the project": {
        "Architecture": "architecture",
        "Extending": "extending",
        "Contributing": "/CONTRIBUTING",
        "Security": "/SECURITY",
        "Changelog": "/CHANGELOG",
    },
}
"""Caption -> title in the sidebar -> page, in this order."""


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """Adds the sidebar's pages to the index, which lists them in tables for readers on GitHub."""
    if name == root_doc:
        for caption, pages in CONTENTS.items():
            entries = "\n".join(f"{title} <{page}>" for title, page in pages.items())
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


class NotebookParser(MystParser):
    """Parser of a notebook's cells and stored outputs as Markdown."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        """Parses a notebook into `document`."""
        super().parse("\n\n".join(map(_markdown, json.loads(inputstring)["cells"])), document)


def _markdown(cell: dict[str, Any]) -> str:
    """Returns a cell as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([f"```python\n{source}\n```", *map(_output, cell["outputs"])])


def _output(output: dict[str, Any]) -> str:
    """Returns a cell's output as Markdown: a picture, or text."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f"![Output of the cell above](data:image/png;base64,{picture})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text}\n```"


def add_front_page(app: Any, exception: Exception | None) -> None:
    """Writes index.html, which leads to the index of the pages."""
    if exception is None:
        target = f"{root_doc}.html"
        page = (
            f'<!doctype html><meta charset="utf-8"><title>{project}</title>'
            f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{project}</a>'
        )
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    """Connects the functions above to Sphinx."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_front_page)
