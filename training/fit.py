"""The one training loop: `Model.fit` in optimizer steps.

At step multiples it writes logs, evaluates and saves checkpoints. A run continues from its newest
checkpoint.

Data, augmentation and model noise are functions of (seed, step). So the continued run ends with the
weights of an uninterrupted one, bit for bit, on the same kind and number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from cli.errors import InputError
from cli.termination import on_sigterm
from data import records
from data.records import Manifest
from data.verification import raise_refusal
from training import metrics_log, workers
from training.callbacks import Profile, Steps
from training.checkpoints import Checkpoints
from training.trainer import Trainer


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
        `top1` is saved and kept; see `metrics_log.best`.
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
    found = f"the workers found different checkpoints; this worker found step {start}"
    workers.require_same(
        strategy, start, f"{found}; {workdir} must be on a file system that all of them share"
    )
    spent = metrics_log.truncate(workdir / "metrics.jsonl", start) if chief else 0.0
    if start:
        print(f"continuing at step {start} of {steps}", flush=True)
    if start >= steps or any(
        workers.gather(strategy, chief and metrics_log.exhausted(workdir, stop_after))
    ):
        return
    if profile and start >= profile[0]:
        print(f"the profile is left out: step {profile[0]} is done already", flush=True)
    every = (log_every, checkpoint_every, evaluate_every)
    shown = images if chief else None
    callback = Steps(
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
        *([Profile(workdir / "tensorboard", start, *profile)] if profile and chief else []),
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
                f"the data ended between steps {callback.last_step} and {steps}, the last step, "
                f"but none of their files is damaged ({workdir}); run the same command again to "
                "continue from the last checkpoint"
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


_UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
)
