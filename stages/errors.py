"""The one error that is the user's to mend."""


class InputError(Exception):
    """Wrong usage or unusable input.

    The message is one line that says what is wrong, where, and what to do. A stage prints it as ``error: MESSAGE`` and
    exits with code 2; any other exception is a bug in this project and keeps its traceback.
    """
