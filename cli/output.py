"""Standard output and standard error: characters that they lack, and readers that leave."""

from __future__ import annotations

import os
import select
import sys

READER_GONE = 128 + 13
"""Exit code when the reader of the output is gone (`| head -1`): 128 + SIGPIPE, as in a shell."""


def prepare() -> None:
    r"""Makes both streams print escapes (`\xdc`) where their encoding lacks a character.

    A stream that the caller has closed is replaced by one that goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # >&-
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open for good)
            setattr(sys, name, nowhere)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def reader_is_gone() -> bool:
    """Returns whether standard output or error is a pipe without a reader.

    What is still buffered for such a pipe goes nowhere, so that Python can end without an error.
    """
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)  # errors and hang-ups are always reported
    gone = [
        descriptor
        for descriptor, event in poll.poll(0)
        if event & (select.POLLERR | select.POLLHUP)
    ]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in gone:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return bool(gone)
