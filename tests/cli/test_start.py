"""Files in the caller's directory replace no module of the project, its dependencies or Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli import start

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import json, random, sys, data.other; print(json.dumps([sys.argv, sys.path, __name__,"
    " __spec__.name, data.other.__file__]))"
)


def shadow(folder: Path, *names: str) -> Path:
    """Makes a folder of modules that end whatever imports them."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(
            f"raise SystemExit('{name}.py of the current directory')", encoding="utf-8"
        )
    return folder


@pytest.mark.parametrize("safe_path", ["", "1"], ids=["as in Python 3.9", "with -P"])
def test_the_current_directory_is_not_searched(tmp_path: Path, safe_path: str) -> None:
    checkout = tmp_path / "check out"
    for folder in ("cli", "data"):
        (checkout / folder).mkdir(parents=True)
    shutil.copy(start.__file__, checkout / "cli")
    (checkout / "data" / "__init__.py").touch()
    (checkout / "data" / "other.py").touch()
    (checkout / "data" / "program.py").write_text(PROGRAM, encoding="utf-8")
    (checkout / "cli" / "random.py").write_text(
        "raise SystemExit('cli/random.py')", encoding="utf-8"
    )
    project = shadow(
        tmp_path / "project", "data", "json", "random", "runpy", "cli", "sitecustomize"
    )
    command = [
        sys.executable,
        str(checkout / "cli" / "start.py"),
        "-m",
        "data.program",
        "--flag",
        "a word",
    ]
    done = subprocess.run(
        command, cwd=project, env={"PYTHONSAFEPATH": safe_path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    argv, path, name, spec, other = json.loads(done.stdout)
    assert argv == [str(checkout / "data" / "program.py"), "--flag", "a word"]
    assert (name, spec, other) == ("__main__", "data.program", str(checkout / "data" / "other.py"))
    assert path[0] == str(checkout) and not {"", str(project), str(checkout / "cli")} & set(path)


def test_a_script_from_a_project_of_the_same_names(tmp_path: Path) -> None:
    project = shadow(tmp_path / "project", "serving", "cli", "absl", "numpy", "random", "venv")
    environment = {"VENV": sys.prefix, "PATH": os.environ["PATH"], "PYTHONPATH": str(project)}
    done = subprocess.run(
        [ROOT / "run_predict.sh", "--model=m"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        2,
        "error: no images; name one or more files: IMAGE…\n",
    )


def test_the_command_for_a_process_of_its_own(tmp_path: Path) -> None:
    command = start.script("run_predict.sh", "--model=m")
    project = shadow(tmp_path / "project", "serving", "cli", "absl", "numpy", "random")
    environment = {**os.environ, "PYTHONSAFEPATH": ""}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: no images; name one or more files: IMAGE…\n",
    )
