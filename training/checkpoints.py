"""The checkpoints of a run, which continues from the newest complete one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from cli import buckets, stack
from cli.errors import InputError, one_line
from cli.files import plain_path
from training.writes import writing

PREFIX = "ckpt"


# Errors of a damaged checkpoint: a file is missing, has a wrong checksum or is too short (an
# IndexError in TensorFlow), or a variable is missing.
_DAMAGE = (tf.errors.OpError, IndexError, AssertionError, ValueError)


class Checkpoints:
    """Checkpoints `ckpt-STEP.index` and `ckpt-STEP.data-*` in one directory.

    The directory keeps the newest checkpoints, the checkpoints of certain steps (`keep_every`), and
    one that the caller of `save` names (`best`).

    A preempted machine may leave the newest checkpoint cut off, or with a part missing. `restore`
    reports it, deletes it, and falls back to the previous checkpoint.

    `ckpt-STEP.stack` names the stack that wrote a checkpoint. No other stack continues from it.

    Args:
      directory: where the checkpoints are; made if it is missing.
      checkpoint: what is saved and restored.
      keep: number of newest checkpoints that are kept.
      keep_every: checkpoints of steps divisible by it are kept for good; 0: none.
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
        """Returns the steps of all checkpoints in the directory, complete or not, in order."""
        found = (
            re.fullmatch(rf"{PREFIX}-(\d+)\.(index|data-.+)", path.name)
            for path in self.directory.glob(f"{PREFIX}-*")
        )
        return sorted({int(match[1]) for match in found if match})

    def restore(self) -> int:
        """Restores the newest complete checkpoint and returns its step.

        Returns 0 if there is no checkpoint, or if the run was killed while saving its first one.

        Raises:
          InputError: there are checkpoints, but all are damaged, or another stack wrote them.
        """
        steps = self.steps
        self._require_own_stack(steps)
        for step in reversed(steps):
            if not os.path.exists(f"{self._path(step)}.index"):  # the file that is written last
                print(
                    f"checkpoint {self._path(step)} has no .index file; trying the checkpoint "
                    "before it",
                    flush=True,
                )
                if len(steps) == 1:  # the run was killed while saving its first checkpoint
                    print("there is no earlier checkpoint; starting at step 0", flush=True)
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
                    f"checkpoint {self._path(step)} is damaged ({one_line(error)}); trying the "
                    "checkpoint before it",
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
        """Saves the checkpoint of `step`, then deletes old checkpoints except that of step `best`.

        Raises:
          InputError: the checkpoint cannot be written; older checkpoints stay as they are.
          tf.errors.OpError: another worker of the run is lost.
        """
        with writing("a checkpoint", self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._delete_unfinished()  # left by a run that was killed while saving
            try:
                # First: a checkpoint without this file counts as the classic stack's.
                Path(f"{self._path(step)}.stack").write_text(
                    stack.current() + "\n", encoding="utf-8"
                )
                self.checkpoint.write(self._path(step))
                self._publish(step)
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
                continue  # unfinished, so `restore` ignores it
            path = Path(f"{self._path(step)}.stack")
            writer = path.read_text(encoding="utf-8").strip() if path.exists() else stack.CLASSIC
            if writer != stack.current():
                raise InputError(
                    f"{self._path(step)} was written with {writer}, but this is {stack.current()}. "
                    "A run continues only on its own stack: use that stack, or name another "
                    "--workdir"
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
        for path in reversed(self._files(step)):
            buckets.remove(path)

    def _files(self, step: int) -> list[Path]:
        """Lists the files of a checkpoint; `.index`, which makes the others count, is the last."""
        found = self.directory.glob(f"{PREFIX}-{step}.*")
        return sorted(found, key=lambda path: path.suffix == ".index")

    def _publish(self, step: int) -> None:
        for path in self._files(step):
            buckets.publish(path)
