"""The tutorial runs: both methods with a few steps each. The loop on a folder is planned only.

`tests/test_whole_loop.py` and `tests/workflow` run the loop itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

import workflow
from cli import recipes
from data import sources
from workflow import loop
from workflow.settings import of_recipe

DOCS = Path(__file__).resolve().parent.parent / "docs"
CELLS = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
PROGRAMS = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def planned(**arguments: Any) -> dict[str, Any]:
    """Stands in for `workflow.run`: checks what it is given, and answers as a finished run does."""
    flags = [f"--config.{key}={value}" for key, value in arguments["settings"].items()]
    config = recipes.from_flags(f"--config={arguments['recipe']}", *flags, declared=of_recipe)
    loop.check_loop(config)
    labeled, unlabeled = (
        sources.open_collection(str(arguments[role]), role, config.data)
        for role in ("labeled", "unlabeled")
    )
    assert len(labeled.label_names) == 10
    assert (len(labeled.labels), len(unlabeled.labels)) == (200, 400)
    export = arguments["workdir"] / "export" / "classifier" / "1"
    return {"teacher": {"top1": 0.5}, "students": [{"top1": 0.75}], "export": str(export)}


def test_the_cells_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUTORIAL_STEPS", "2")
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(workflow, "run", planned, raising=False)
    monkeypatch.chdir(DOCS)
    matplotlib.use("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    namespace: dict[str, Any] = {}
    for program in PROGRAMS:
        exec(program, namespace)
    results = namespace["results"]
    assert len(results) == 3 and all(0 <= value <= 100 for value in results.values())
    told = capsys.readouterr().out
    assert "50 labeled, 1347 unlabeled, 400 test images" in told
    assert "student: 75.0 % of the test images\nexport: run/export/classifier/1\n" in told


def test_the_stored_outputs_are_of_these_cells() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    pictures = [output for cell in code for output in cell["outputs"] if "data" in output]
    assert sum("image/png" in output["data"] for output in pictures) == 4
    assert not [output for cell in code for output in cell["outputs"] if "ename" in output]
