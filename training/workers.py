"""Runs one training as several processes, one a machine.

The module decides who writes, what all processes must agree on, and how the run ends when one of
them is lost.

Under `tf.distribute.MultiWorkerMirroredStrategy` every process runs the same program. Each replica
may hold a part of a variable (the moving average, a metric). Reading such a variable is an
operation that all processes must reach, in the same order. So all log, evaluate and save at the
same steps. But the files of the run belong to the chief, the first process of TF_CONFIG.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from cli.errors import InputError, one_line
from training.checkpoints import PREFIX, Checkpoints
from training.writes import lost_worker, writing

LOST = os.EX_TEMPFAIL
"""Exit code (75) of a process that lost another one of its run."""


def several(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether the run has more than this process."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this process writes the files."""
    return not several(strategy) or strategy.extended.should_checkpoint


def gather(strategy: tf.distribute.Strategy, number: int) -> list[int]:
    """Returns everybody's number, one for each replica. All processes must call it."""
    if not several(strategy):
        return [number]
    everybodys = _gather(strategy)(tf.constant([int(number)], tf.int64))
    return [int(n) for n in strategy.experimental_local_results(everybodys)[0]]


@functools.lru_cache(maxsize=1)
def _gather(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    """Returns one traced function: `strategy.gather` would trace anew at each call."""

    def own(number: tf.Tensor) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_gather(tf.identity(number), axis=0)

    return tf.function(lambda number: strategy.run(own, (number,)))


def require_same(strategy: tf.distribute.Strategy, number: int, message: str) -> None:
    """Raises InputError with the message, in all processes, if their numbers differ."""
    if len(set(gather(strategy, number))) > 1:
        raise InputError(message)


@contextlib.contextmanager
def kept_by_chief(strategy: tf.distribute.Strategy, directory: Path) -> Iterator[Path]:
    """Yields where to save: `directory` for the chief, a temporary one for the others.

    The others read the variables together with the chief, and their files are thrown away.
    """
    if is_chief(strategy):
        yield directory
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        yield Path(elsewhere)


class Follower(Checkpoints):
    """The checkpoints of a process that is not the chief.

    It restores the chief's checkpoints and takes part in saving, but leaves no files.
    """

    def save(self, *_: Any) -> None:
        """Reads the variables together with the other processes."""
        with tempfile.TemporaryDirectory() as elsewhere, writing("a checkpoint", Path(elsewhere)):
            self.checkpoint.write(os.path.join(elsewhere, PREFIX))

    def _delete(self, step: int) -> None:
        pass


@contextlib.contextmanager
def leaving_with_the_lost() -> Iterator[None]:
    """Ends this process with one line and the code `LOST` if another process of the run is gone.

    TensorFlow cannot go on without that process, nor take it in again. Start all processes anew:
    the run goes on from its last checkpoint.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not lost_worker(error):
            raise
        remedy = "start all workers again: the same commands go on from the last checkpoint"
        print(
            f"another worker of this run is gone ({one_line(error)}); {remedy}",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(LOST) from error
