"""Standard output and standard error: what a terminal cannot show, and what nobody reads any more."""

from __future__ import annotations

import os
import select
import sys

READER_GONE = 128 + 13
"""Exit code of a stage whose output nobody reads any more (`| head -1`): 128 + SIGPIPE, as a shell reports it."""


def prepare() -> None:
    r"""Prints characters that the encoding of the output lacks as escapes (`\xdc`), and replaces streams that were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the caller has closed it: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process lives)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def reader_is_gone() -> bool:
    """Returns whether standard output or error is a pipe without a reader, and sends what is still buffered for it nowhere."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)  # errors and hang-ups are always reported
    gone = [descriptor for descriptor, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in gone:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return bool(gone)
