"""Handles SIGTERM, with which machines are taken away: what to do before leaving."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
"""Exit code of a stage that SIGTERM stopped; the same command continues it."""


@contextlib.contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Makes SIGTERM call `act` within the block, instead of ending the process.

    Signals reach the main thread only. In other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_running: set[subprocess.Popen[Any]] = set()


def call(command: Sequence[str], **options: Any) -> int:
    """Runs a command and returns its exit code, 128 + N where signal N ended it.

    Hands SIGTERM on to the command, and waits for its end. Outside the main thread, SIGTERM is
    handed on where the main thread is within `on_sigterm(terminate_running)`.
    """
    with subprocess.Popen(command, **options) as process, on_sigterm(process.terminate):
        _running.add(process)
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        finally:
            _running.discard(process)


def terminate_running() -> None:
    """Sends SIGTERM to all commands that `call` is waiting for, in whichever thread."""
    for process in list(_running):
        process.terminate()
