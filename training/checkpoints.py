"""The checkpoints of a run: the newest whole one counts."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from cli import stack
from cli.errors import InputError, one_line
from cli.files import plain_path
from training.writes import writing

PREFIX = "ckpt"


# A file that is missing or has a wrong checksum, too short a one (TensorFlow makes an IndexError of
# that), a variable that is missing.
_DAMAGE = (tf.errors.OpError, IndexError, AssertionError, ValueError)


class Checkpoints:
    """`ckpt-STEP.index` and `.data-*` in one directory: the last ones, those at certain steps, and one that the caller names.

    A preempted machine may leave the newest one cut off, or with a part missing. It is told,
    deleted, and the one before is used. `ckpt-STEP.stack` names the stack that wrote a checkpoint:
    no other stack continues with it.

    Args:
      directory: made where missing.
      checkpoint: what is saved and restored.
      keep: so many of the newest are kept.
      keep_every: those of steps divisible by it are kept for good; 0: none.
    """

    def __init__(
        self,
        directory: str | Path,
        checkpoint: tf.train.Checkpoint,
        keep: int = 2,
        keep_every: int = 0,
    ):
        self.directory, self.checkpoint, self.keep, self.keep_every = (
            Path(directory),
            checkpoint,
            keep,
            keep_every,
        )

    @property
    def steps(self) -> list[int]:
        """Of the checkpoints there are, whole or not, rising."""
        found = (
            re.fullmatch(rf"{PREFIX}-(\d+)\.(index|data-.+)", path.name)
            for path in self.directory.glob(f"{PREFIX}-*")
        )
        return sorted({int(match[1]) for match in found if match})

    def restore(self) -> int:
        """Restores the newest whole checkpoint and returns its step; 0 without one, or where the first one was not finished.

        Raises:
          InputError: there are checkpoints, but all are damaged, or another stack wrote them.
        """
        steps = self.steps
        self._require_own_stack(steps)
        for step in reversed(steps):
            if not os.path.exists(f"{self._path(step)}.index"):  # which is written last
                print(
                    f"checkpoint {self._path(step)} has no .index file; looking for the one before",
                    flush=True,
                )
                if len(steps) == 1:  # killed while saving it: there was none before
                    print("there is none before; starting at step 0", flush=True)
                    self._delete(step)
                    return 0
                continue
            try:
                self._read(step)
                for later in steps[steps.index(step) + 1 :]:
                    self._delete(later)
                return step
            except _DAMAGE as error:
                print(
                    f"checkpoint {self._path(step)} is damaged ({one_line(error)}); looking for the"
                    " one before",
                    flush=True,
                )
        if steps:
            raise InputError(
                f"all checkpoints in {self.directory} are damaged; delete the work directory to"
                " start anew"
            )
        return 0

    def restore_step(self, step: int) -> None:
        """Restores the checkpoint of `step`. Raises InputError where it is missing or damaged."""
        try:
            self._read(step)
        except _DAMAGE as error:
            raise InputError(
                f"checkpoint {self._path(step)} is damaged or gone ({one_line(error)}); delete the"
                " work directory to start anew"
            ) from error

    def save(self, step: int, best: int | None = None) -> None:
        """Saves under the number `step`, then deletes what is too old, but not the checkpoint of step `best`.

        Raises:
          InputError: it cannot be written; older checkpoints stay as they are.
          tf.errors.OpError: another worker of the run is lost.
        """
        with writing("a checkpoint", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._delete_unfinished()  # of a run that was killed while saving
            try:
                # First: a checkpoint without this file counts as the classic stack's.
                Path(f"{self._path(step)}.stack").write_text(
                    stack.current() + "\n", encoding="utf-8"
                )
                self.checkpoint.write(self._path(step))
            except (OSError, tf.errors.OpError):
                self._delete_unfinished()
                self._delete(step)
                raise
            for other in self.steps[: -self.keep]:
                if other != best and not (self.keep_every and other % self.keep_every == 0):
                    self._delete(other)

    def _require_own_stack(self, steps: Sequence[int]) -> None:
        for step in steps:
            if not os.path.exists(f"{self._path(step)}.index"):
                continue  # unfinished; it counts for nothing
            path = Path(f"{self._path(step)}.stack")
            writer = path.read_text(encoding="utf-8").strip() if path.exists() else stack.CLASSIC
            if writer != stack.current():
                raise InputError(
                    f"{self._path(step)} was written with {writer}, and this is {stack.current()}:"
                    " a run continues on its own stack only; continue with that, or name another"
                    " --workdir"
                )

    def _read(self, step: int) -> None:
        path = plain_path(self.directory) / f"{PREFIX}-{step}"
        self.checkpoint.read(str(path)).assert_existing_objects_matched()

    def _path(self, step: int) -> str:
        return str(self.directory / f"{PREFIX}-{step}")

    def _delete_unfinished(self) -> None:
        for path in self.directory.glob(f"{PREFIX}-*_temp"):
            shutil.rmtree(path)

    def _delete(self, step: int) -> None:
        for path in self.directory.glob(f"{PREFIX}-{step}.*"):
            os.remove(path)
