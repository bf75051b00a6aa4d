"""Lets several hosts go through the loop together: all train, and the first does the rest.

Each host runs the same command and comes through the same stages. A stage that trains runs on all
of them at once. Any other stage is done by the first host, the chief, and the others wait for its
`summary.json`. So finished directories are the only barriers. A host that was lost finds its place
when the same command starts it again.

A chief that fails leaves its exit code in the work directory, so that the others end, too.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cli import termination
from cli.errors import InputError
from cli.json_files import read_json, write_json
from training import cluster
from workflow.stages import Stage

STRATEGY = "multi_worker"
FAILED = ".failed.json"
"""File in the work directory with the exit code of a chief that failed."""
SECONDS = 1.0
"""Seconds between two looks at the file system."""
PATIENCE = 60.0
"""Seconds for which another config in the work directory may be that of an earlier start."""


class Chief:
    """The host that does everything: the first one of several, or the only one."""

    follows = False

    def __init__(self, workdir: Path, several: bool = False) -> None:
        self._mark, self._several = workdir / FAILED, several
        if several:
            self._mark.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # nothing else was left there
                workdir.rmdir()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Leaves the exit code for the other hosts where the block fails."""
        try:
            yield
        except BaseException as error:
            if self._several:
                write_json(self._mark, {"code": _code(error)})
            raise


class Follower:
    """A host that trains together with the chief, and waits for it otherwise."""

    follows = True

    def __init__(self, workdir: Path) -> None:
        self._workdir, self._mark = workdir, workdir / FAILED
        self._before = self._failure()
        self._began = False

    def begin(self, config: Mapping[str, Any]) -> None:
        """Waits until the chief works with this config.

        Raises:
          InputError: the work directory holds another config for longer than `PATIENCE`.
        """
        path = self._workdir / "config.json"
        self.wait_for(path, "the loop")
        self._began, until = True, time.monotonic() + PATIENCE
        while read_json(path, dict) != config:
            if time.monotonic() > until:
                raise InputError(
                    f"{self._workdir} holds a run of another config; start all hosts with the same"
                    " flags"
                )
            self._look()

    def wait_for(self, path: Path, what: str) -> None:
        """Waits until the chief has made a file. Raises SystemExit where the chief has failed."""
        if not path.exists():
            print(f"== {what}: waiting for the first host", flush=True)
        while not path.exists():
            self._look()

    def take_part(self, stage: Stage, command: list[str]) -> None:
        """Runs a training together with the chief, or waits for any other stage.

        Raises:
          SystemExit: the training fails, or the chief has failed.
        """
        summary = stage.directory / "summary.json"
        if stage.arguments.get("strategy") == STRATEGY and not summary.exists():
            print(f"== {stage.name}: training together with the first host", flush=True)
            if code := termination.call(command):
                raise SystemExit(code)
        self.wait_for(summary, stage.name)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Does nothing: only the chief reports."""
        yield

    def _look(self) -> None:
        """Waits a moment. Raises SystemExit where the chief has failed meanwhile."""
        time.sleep(SECONDS)
        failure = self._failure()
        gone = self._began and not (self._workdir / "config.json").exists()
        if gone or (failure and failure != self._before):
            code = failure[1] if failure else 2
            print(
                f"the first host has ended with exit code {code}; its output says why. Start all"
                " hosts again",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(code)

    def _failure(self) -> tuple[int, int] | None:
        """Returns when the chief has failed, and its exit code."""
        with contextlib.suppress(FileNotFoundError):
            return self._mark.stat().st_mtime_ns, read_json(self._mark, {"code": int})["code"]
        return None


def join(strategy: str, workdir: Path) -> Chief | Follower:
    """Returns this host's part in the loop. Raises InputError for an unusable `TF_CONFIG`."""
    if strategy != STRATEGY:
        return Chief(workdir)
    task = cluster.task()
    return Chief(workdir, several=True) if task.chief else Follower(workdir)


def _code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, InputError) else 1
