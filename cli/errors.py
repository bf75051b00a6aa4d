"""The error that a user can fix, and messages made of other errors."""

from __future__ import annotations

import errno
import os
import re

_NO_WRITING = {
    errno.ENOSPC: ("no space left", "make room"),
    errno.EDQUOT: ("no disk quota left", "make room or raise the quota"),
    errno.EFBIG: ("file size limit reached", "raise the limit (ulimit -f)"),
    errno.EROFS: ("read-only file system", "make it writable or name a directory elsewhere"),
}
"""Why a disk takes no more bytes -> (what happened, what to do)."""


class InputError(Exception):
    """Wrong usage or unusable input.

    The message is one line that says what is wrong, where, and what to do. A stage prints it as
    ``error: MESSAGE`` and exits with code 2. Any other exception is a bug in this project and keeps
    its traceback.
    """


def one_line(error: Exception) -> str:
    """Formats a third-party exception as one line of at most 200 characters."""
    # TensorFlow's prefix is too long to leave room for the reason.
    text = re.sub(r"\{\{function_node [^}]*\}\} ", "", str(error))
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def write_failure(error: BaseException) -> tuple[str, str] | None:
    """Recognizes an error that says that a disk takes no more bytes.

    Args:
      error: exception of any library. TensorFlow and HDF5 keep the system's text for the error, but
        not its number.

    Returns:
      (what happened, what to do), both without a capital and a full stop; None for another error.
    """
    if isinstance(error, OSError) and error.errno in _NO_WRITING:
        return _NO_WRITING[error.errno]
    text = str(error).lower()  # h5py writes the text in lower case
    return next(
        (words for number, words in _NO_WRITING.items() if os.strerror(number).lower() in text),
        None,
    )
