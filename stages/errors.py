"""The one error that is the user's to mend, and what it says of other errors."""


class InputError(Exception):
    """Wrong usage or unusable input.

    The message is one line that says what is wrong, where, and what to do. A stage prints it as ``error: MESSAGE`` and
    exits with code 2; any other exception is a bug in this project and keeps its traceback.
    """


def one_line(error: Exception) -> str:
    """An exception of somebody else's, for a one-line message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
