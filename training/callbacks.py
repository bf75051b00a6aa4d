"""Keras callbacks of the training loop: what happens at step multiples, and the profile."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from cli import buckets
from cli.errors import InputError
from cli.json_files import to_json
from cli.termination import EXIT_CODE
from training import workers
from training.checkpoints import Checkpoints
from training.metrics_log import best, exhausted
from training.writes import writing

EVENTS = "TensorBoard's events"


COMPILING = "compiling"
"""Progress text until the end of the first step."""


class Steps(tf.keras.callbacks.Callback):
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

    def _leave(self, moment: str) -> None:
        print(
            f"stopped by SIGTERM {moment}; the same command continues from the last checkpoint",
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
                f"{', '.join(bad)} is not finite between steps {self.last_step} and {step} "
                f"({self.workdir}); {self._kept}. Lower the learning rate (schedule.base) or set "
                "optimizer.clip_norm"
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


class Profile(tf.keras.callbacks.Callback):
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
