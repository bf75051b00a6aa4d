"""Starts training stages as commands for their tests, reads their logs, and kills them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def start(
    name: str, *arguments: str, stderr: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Starts the command NAME of `cli.commands`, with its standard output in a pipe."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "cli", name, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a run's `metrics.jsonl` so far."""
    path = Path(workdir) / "metrics.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )


def kill_after(lines: int, process: subprocess.Popen[str], workdir: str | Path) -> None:
    """Sends SIGKILL when that many lines are logged; asserts that the run was still under way."""
    while process.poll() is None and len(metrics(workdir)) < lines:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (Path(workdir) / "summary.json").exists()
