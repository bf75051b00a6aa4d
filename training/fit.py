"""The one training loop: `Model.fit` in optimizer steps.

At step multiples it writes logs, evaluates and saves checkpoints. A run continues from its newest
checkpoint.

Data, augmentation and model noise are functions of (seed, step). So the continued run ends with the
weights of an uninterrupted one, bit for bit, on the same kind and number of devices.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from cli import buckets
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json_lines, to_json
from cli.termination import EXIT_CODE, on_sigterm
from data import records
from data.records import Manifest
from data.verification import raise_refusal
from training import workers
from training.checkpoints import Checkpoints
from training.trainer import Trainer
from training.writes import writing

METRICS = {"step": int, "seconds": float, "eval_top1?": (float, None)}
"""Fields that a line of `metrics.jsonl` has at least."""


def fit(
    trainer: Trainer,
    make_dataset: Callable[[int], tf.data.Dataset],
    workdir: str | Path,
    *,
    steps: int,
    images_per_step: int,
    log_every: int,
    checkpoint_every: int,
    evaluate_every: int = 0,
    evaluate: Callable[[], dict[str, float]] | None = None,
    stop_after: int = 0,
    keep: int = 2,
    keep_every: int = 0,
    manifests: Sequence[Manifest] = (),
    profile: tuple[int, int] | None = None,
    images: Callable[[int], Mapping[str, tf.Tensor]] | None = None,
) -> None:
    """Trains to step `steps` or to an early stop.

    Continues from the newest checkpoint in `workdir`.

    On SIGTERM, finishes the current step, saves a checkpoint and exits. During an evaluation, and
    during the first step, which is traced and compiled, exits at once without a checkpoint. A run
    in several processes exits at its next log line, in all processes.

    Args:
      trainer: compiled trainer; everything trackable in it is checkpointed.
      make_dataset: finished steps -> endless data from there on.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/`.
      steps: total number of optimizer steps.
      images_per_step: images of a step over all streams and replicas, for the images/s.
      log_every: steps between lines of `metrics.jsonl`; divides `checkpoint_every`.
      checkpoint_every: steps between checkpoints.
      evaluate_every: steps between calls of `evaluate`, a multiple of `log_every`; 0 for none.
      evaluate: returns metrics by name, logged as `eval_NAME`. The checkpoint with the largest
        `top1` is saved and kept; see `best`.
      stop_after: evaluations without a larger `top1` after which the training ends, with a
        checkpoint; 0: it never does. The log remembers the evaluations, so a restarted run ends at
        the same step.
      keep: number of newest checkpoints that are kept.
      keep_every: checkpoints of steps divisible by it are kept for good; 0: none.
      manifests: manifests of the data, to name the broken shard if reading fails.
      profile: first and last step of a profile for TensorBoard.
      images: step -> images by name, uint8 (n, S, S, 3), for TensorBoard. They are written at the
        start and with the evaluations.

    Raises:
      InputError: intervals of steps do not fit together, a loss is not finite, a record is corrupt,
        the data end, or a write fails.
      SystemExit: after SIGTERM.
    """
    if checkpoint_every % log_every or evaluate_every % log_every:
        raise InputError(
            f"log_every={log_every} must divide checkpoint_every={checkpoint_every} and"
            f" evaluate_every={evaluate_every}"
        )
    workdir = Path(workdir)
    strategy = trainer.distribute_strategy
    chief = workers.is_chief(strategy)
    with strategy.scope():
        trainer.build_optimizers()  # before restoring: the slots must exist
        kind = Checkpoints if chief else workers.Follower
        checkpoints = kind(
            workdir / "checkpoints", tf.train.Checkpoint(trainer=trainer), keep, keep_every
        )
        start = checkpoints.restore()
    found = f"the workers found different checkpoints, this one that of step {start}"
    workers.require_same(
        strategy, start, f"{found}; {workdir} must be on a file system that all of them share"
    )
    spent = _truncate_metrics(workdir / "metrics.jsonl", start) if chief else 0.0
    if start:
        print(f"continuing at step {start} of {steps}", flush=True)
    if start >= steps or any(workers.gather(strategy, chief and exhausted(workdir, stop_after))):
        return
    if profile and start >= profile[0]:
        print(f"no profile: step {profile[0]} is done already", flush=True)
    every = (log_every, checkpoint_every, evaluate_every)
    shown = images if chief else None
    callback = _Steps(
        strategy,
        workdir,
        checkpoints,
        start,
        steps,
        images_per_step,
        *every,
        evaluate,
        stop_after,
        shown,
        spent,
    )
    callbacks = [
        callback,
        *([_Profile(workdir / "tensorboard", start, *profile)] if profile and chief else []),
    ]
    # A checkpoint between two log lines holds metrics that the next line reports. Keras resets
    # them before the first step, so the callback puts them back.
    callback.carried = (
        [metric.get_weights() for metric in trainer.metrics] if start % log_every else []
    )
    try:
        with on_sigterm(callback.terminate):
            trainer.fit(
                make_dataset(start),
                steps_per_epoch=steps - start,
                epochs=1,
                verbose=0,
                callbacks=callbacks,
            )
        # Keras takes some exceptions for the end of the data, and returns.
        if callback.last_step < steps and not callback.stopped:
            for manifest in manifests:
                records.verify_split(manifest)
            raise InputError(
                f"the data ended between steps {callback.last_step} and {steps}, the last, and no"
                f" file of them is damaged ({workdir}); run the same command again to go on from"
                " the last checkpoint"
            )
    except _UNREADABLE as error:
        raise_refusal(error)
        of_data = isinstance(
            error, (tf.errors.DataLossError, tf.errors.InvalidArgumentError)
        ) and "Collective" not in str(error)
        # TensorFlow does not say which record is broken, and not always which file.
        for manifest in manifests:
            paths = (*manifest.paths, *(manifest.beside.images.paths if manifest.beside else ()))
            if of_data or any(path in str(error) for path in paths):
                records.verify_split(manifest)
        raise error
    finally:
        callback.close()


def _truncate_metrics(path: Path, step: int) -> float:
    """Drops the lines after `step`, which the continued run writes again.

    Returns the seconds that the run had taken until `step`.
    """
    if not path.exists():
        return 0.0
    rows = [(line, row) for line, row in read_json_lines(path, METRICS) if row["step"] <= step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line, _ in rows), encoding="utf-8")
    return float(rows[-1][1]["seconds"]) if rows else 0.0


def best(workdir: str | Path) -> dict[str, float] | None:
    """Returns the line of `metrics.jsonl` with the largest top-1 on the validation split.

    If several lines have the largest top-1, returns the first. Without evaluations, returns None.

    Only the log remembers the evaluations. So a restarted run forgets what came after its
    checkpoint.
    """
    path = Path(workdir) / "metrics.jsonl"
    rows = [row for _, row in read_json_lines(path, METRICS)] if path.exists() else []
    rows = [row for row in rows if row.get("eval_top1") is not None]
    return max(rows, key=lambda row: row["eval_top1"], default=None)


def exhausted(workdir: str | Path, stop_after: int) -> bool:
    """Tells whether the last `stop_after` evaluations in `metrics.jsonl` brought no larger top-1.

    With `stop_after` = 0 the answer is always no.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not stop_after or not path.exists():
        return False
    scores = [
        row["eval_top1"]
        for _, row in read_json_lines(path, METRICS)
        if row.get("eval_top1") is not None
    ]
    return len(scores) > stop_after and max(scores[-stop_after:]) <= max(scores[:-stop_after])


_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
)


EVENTS = "TensorBoard's events"

COMPILING = "compiling"
"""Progress text until the end of the first step."""


class _Steps(tf.keras.callbacks.Callback):
    """Callback that acts at step multiples.

    Its order: log, stop on a non-finite loss, evaluate, append the log, save a checkpoint.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        workdir: Path,
        checkpoints: Checkpoints,
        start: int,
        steps: int,
        images_per_step: int,
        log_every: int,
        checkpoint_every: int,
        evaluate_every: int,
        evaluate: Callable[[], dict[str, float]] | None,
        stop_after: int,
        images: Callable[[int], Mapping[str, tf.Tensor]] | None,
        spent: float,
    ):
        super().__init__()
        self._supports_tf_logs = True  # Keras then leaves the step's outputs on the device
        self.workdir, self.checkpoints = workdir, checkpoints
        self.start, self.steps, self.images_per_step = start, steps, images_per_step
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.evaluate_every, self.evaluate, self.images = evaluate_every, evaluate, images
        self.stop_after, self.stopped = stop_after, False
        self.strategy, self.chief = strategy, workers.is_chief(strategy)
        shown = self.chief and sys.stderr.isatty()
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not shown,
            desc=COMPILING,
        )
        with writing(EVENTS, workdir):
            self.writer = (
                tf.summary.create_file_writer(str(workdir / "tensorboard"))
                if self.chief
                else tf.summary.create_noop_writer()
            )
        self.spent, self.last_step, self.last_line = spent, start, 0.0
        self.carried: list[Any] = []
        best_row = best(workdir) if self.chief else None
        self.best_step, self.best_top1 = (
            (int(best_row["step"]), best_row["eval_top1"]) if best_row else (0, -math.inf)
        )
        self.terminated = self.ending = self.evaluating = self.stepped = False
        self.began = self.last_time = time.perf_counter()
        # Number of this start's first step, which is compiled, and the time when it ended.
        self.first_step, self.first_time = start, self.began

    def terminate(self) -> None:
        """Asks the training to end as soon as there is nothing to lose."""
        self.terminated = True
        if self.evaluating:
            self._leave("during an evaluation")
        # Tracing a large network takes minutes.
        if not self.stepped and not workers.several(self.strategy):
            self._leave("before its first step")

    def _leave(self, where: str) -> None:
        print(
            f"stopped by SIGTERM {where}; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(EXIT_CODE)

    def on_train_begin(self, logs: Any = None) -> None:
        """Writes the first images and the first progress line (Keras's hook)."""
        self._write_images(self.start)
        if self.chief and self.bar.disable:
            print(f"step {self.start}/{self.steps} {COMPILING}", flush=True)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Puts carried values into the metrics that Keras has just reset (Keras's hook)."""
        for metric, values in zip(self.model.metrics, self.carried):
            metric.set_weights(values)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Logs, saves and exits where this step asks for it (Keras's hook).

        `batch` counts from 0 in this call of fit.
        """
        step, first = self.start + batch + 1, not self.stepped
        self.stepped = True
        if first:
            self._begin_timing(step)
        else:
            self.bar.update(step - self.bar.n)
        line = step % self.log_every == 0 or step == self.steps
        # SIGTERM may have come to one process only, and saving takes all processes.
        if line or not workers.several(self.strategy):
            self.ending = any(workers.gather(self.strategy, self.terminated))
        if line:
            self._log(step)
        elif self.ending:
            self._save(step)
        if self.ending and step != self.steps and not self.stopped:
            self._leave(f"after step {step}")

    def _begin_timing(self, step: int) -> None:
        """Starts the clock of the remaining steps, after the first one.

        Most of the first step's time is compilation.
        """
        self.first_step, self.first_time = step, time.perf_counter()
        if not self.bar.disable:
            self.bar.n = self.bar.initial = self.bar.last_print_n = step
            self.bar.unpause()  # from here on the bar's rate is that of the other steps
            self.bar.set_description("")

    def _log(self, step: int) -> None:
        # Skips metrics that this training does not update: the mean of nothing is not 0.
        values = {
            metric.name: float(metric.result())
            for metric in self.model.logged.values()
            if float(metric.count.read_value())
        }
        self._stop_if_not_finite(step, values)
        now = time.perf_counter()
        rate = (step - self.last_step) * self.images_per_step / (now - self.last_time)
        row = {
            "step": step,
            "seconds": round(self.spent + now - self.began, 3),
            "images_per_second": round(rate, 1),
        }
        row.update(self.model.optimizer_settings)
        self._stop_if_overflowing(step, row)
        row.update(values)
        if self.evaluate and (
            step == self.steps or (self.evaluate_every and step % self.evaluate_every == 0)
        ):
            self.evaluating = True
            row.update({f"eval_{name}": value for name, value in self.evaluate().items()})
            self.evaluating = False
            self._write_images(step)
        if self.chief:
            self._write(row)
            self._show(row)
        better = self.chief and row.get("eval_top1", -math.inf) > self.best_top1
        if any(workers.gather(self.strategy, better)):  # all processes save at the same steps
            self.best_step, self.best_top1 = step, row["eval_top1"]
        if "eval_top1" in row and self.stop_after and step != self.steps:
            enough = self.chief and exhausted(self.workdir, self.stop_after)
            self.stopped = self.model.stop_training = any(workers.gather(self.strategy, enough))
        if (
            step % self.checkpoint_every == 0
            or step in (self.steps, self.best_step)
            or self.ending
            or self.stopped
        ):
            self._save(step)
        self.model.reset_metrics()
        self.last_step, self.last_time = step, time.perf_counter()

    def _save(self, step: int) -> None:
        if self.chief and buckets.holds(self.workdir):  # the log first: a checkpoint counts on it
            with writing(EVENTS, self.workdir):
                self.writer.flush()
            buckets.publish_tree(self.workdir)
        self.checkpoints.save(step, self.best_step)

    def _stop_if_not_finite(self, step: int, values: dict[str, float]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise InputError(
                f"{', '.join(bad)} is not finite between steps {self.last_step} and"
                f" {step} ({self.workdir}); {self._kept}. Lower the learning rate (schedule.base)"
                " or set optimizer.clip_norm"
            )

    def _stop_if_overflowing(self, step: int, row: dict[str, float]) -> None:
        bad = [name for name, value in row.items() if name.endswith("loss_scale") and value <= 1]
        if bad:
            raise InputError(
                f"{', '.join(bad)} has fallen to 1 at step {step} ({self.workdir}): the gradients"
                f" overflow float16 at any scale; {self._kept}. Lower the learning rate"
                " (schedule.base) or train in mixed_bfloat16 (precision)"
            )

    @property
    def _kept(self) -> str:
        saved = self.checkpoints.steps
        return (
            f"the last good checkpoint is of step {saved[-1]}"
            if saved
            else "there is no checkpoint yet"
        )

    def _write(self, row: dict[str, float]) -> None:
        with (
            writing("metrics.jsonl", self.workdir),
            open(self.workdir / "metrics.jsonl", "a", encoding="utf-8") as f,
        ):
            f.write(to_json(row) + "\n")
        with writing(EVENTS, self.workdir), self.writer.as_default(step=int(row["step"])):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)

    def _write_images(self, step: int) -> None:
        shown = self.images(step) if self.images else {}
        with writing(EVENTS, self.workdir), self.writer.as_default(step=step):
            for name, images in shown.items():
                tf.summary.image(f"images/{name}", images, max_outputs=len(images))

    def _show(self, row: dict[str, float]) -> None:
        shown = {
            key: f"{row[key]:.4g}"
            for key in ("loss", "top1", "eval_top1", "images_per_second")
            if key in row
        }
        self.bar.set_postfix(shown)
        now = time.perf_counter()
        if self.bar.disable and (now - self.last_line > 10 or row["step"] == self.steps):
            step = int(row["step"])
            done = step - self.first_step
            left = f"{(now - self.first_time) / done * (self.steps - step):.0f}s" if done else "?"
            text = " ".join(f"{key}={value}" for key, value in shown.items())
            print(f"step {step}/{self.steps} {text} left={left}", flush=True)
            self.last_line = now

    def close(self) -> None:
        """Closes the progress bar and the summary file."""
        self.bar.close()
        with writing(EVENTS, self.workdir):
            self.writer.close()


class _Profile(tf.keras.callbacks.Callback):
    """Writes TensorBoard's profile of the steps from `first` to `last`."""

    def __init__(self, directory: Path, start: int, first: int, last: int):
        super().__init__()
        self._supports_tf_logs = True
        self.directory, self.start, self.first, self.last = directory, start, first, last
        self.running = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the profile before its first step (Keras's hook)."""
        if self.start + batch + 1 == self.first:
            with writing("a profile", self.directory):
                tf.profiler.experimental.start(str(self.directory))
            self.running = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stops the profile after its last step (Keras's hook)."""
        if self.start + batch + 1 == self.last:
            self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Stops the profile if an early stop (`stop_after`) came before `last` (Keras's hook)."""
        self._stop()

    def _stop(self) -> None:
        if self.running:
            self.running = False
            with writing("a profile", self.directory):
                tf.profiler.experimental.stop()
