"""Reports failed writes of a training as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from cli.errors import InputError, one_line, write_failure


@contextlib.contextmanager
def writing(what: str, directory: Path) -> Iterator[None]:
    """Turns the errors of a write within it into one line.

    Keras takes TensorFlow's OutOfRangeError, which a file size limit raises, for the end of the
    data.

    Args:
      what: what is written, such as "a checkpoint".
      directory: where it is written.

    Raises:
      InputError: it cannot be written.
      tf.errors.OpError: another worker of the run is lost.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if lost_worker(error):
            raise
        failure = write_failure(error)
        if failure:
            happened, remedy = f"{failure[0]} for {what} in {directory}", failure[1]
        else:
            happened, remedy = (
                f"cannot write {what} in {directory} ({one_line(error)})",
                "mend that",
            )
        raise InputError(f"{happened}; {remedy}, and the same command goes on") from error


def lost_worker(error: BaseException) -> bool:
    """Tells whether an error says that another process of the run is gone."""
    return isinstance(error, tf.errors.UnavailableError) or "Collective ops is aborted" in str(
        error
    )
