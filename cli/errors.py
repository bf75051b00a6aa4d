"""The one error that is the user's to mend, and what it says of other errors."""

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
    ``error: MESSAGE`` and exits with code 2; any other exception is a bug in this project and keeps
    its traceback.
    """


def one_line(error: Exception) -> str:
    """An exception of somebody else's, for a one-line message."""
    text = re.sub(
        r"\{\{function_node [^}]*\}\} ", "", str(error)
    )  # TensorFlow's, too long to leave room for the reason
    return " ".join(f"{type(error).__name__}: {text}".split())[:200]


def write_failure(error: BaseException) -> tuple[str, str] | None:
    """Tells a disk that takes no more bytes from all other errors.

    Args:
      error: of any library. TensorFlow and HDF5 keep the system's words for it, and not its number.

    Returns:
      (what happened, what to do), both without a capital and a full stop; None for another error.
    """
    if isinstance(error, OSError) and error.errno in _NO_WRITING:
        return _NO_WRITING[error.errno]
    text = str(error).lower()  # h5py has them in lower case
    return next(
        (words for number, words in _NO_WRITING.items() if os.strerror(number).lower() in text),
        None,
    )
