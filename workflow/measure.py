"""Measures how long a training step, and labeling an image, take on this machine.

A step is one of the run: the method's own trainer and input pipeline, on a few of the user's images
or made-up ones. They are written as shards into a temporary directory, which is deleted at the end.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError, one_line
from cli.json_files import write_json
from data import pipeline, protos, records
from data.preprocessing import Preprocessing
from training import run
from training.method import PSEUDO_LABELED, TEACHER
from training.settings import needing_weights
from training.trainer import Trainer
from weights import published
from workflow import train
from workflow.plans import Planned

STARTED = time.process_time()
"""Seconds that a stage's process takes to start: measured in this process, until this import."""

BUDGET = 60.0
"""Seconds after which no further measurement begins."""

IMAGES = 32
"""Number of images in the temporary shards, and in a batch to label."""

AT_LEAST, AT_MOST, ENOUGH = 2, 20, 3.0
"""Fewest and most timed steps, and the seconds of steps after which they are enough."""


class Rates(NamedTuple):
    """The measured times.

    Attributes:
      first: seconds until the end of the first step: building, tracing, compilation.
      step: seconds a step, the median of the others.
      first_answer: seconds until the first images are labeled: tracing and compilation.
      answer: seconds to label an image.
    """

    first: float
    step: float
    first_answer: float
    answer: float


class Unmeasured(Exception):
    """A step that cannot be measured; its text says why."""


class Bench:
    """A temporary directory with images to measure with; use as a context manager.

    Args:
      config: the recipe.
      counts: what `training.estimates.images` returns.
      sample: image files; empty: made-up ones.
    """

    def __init__(self, config: ConfigDict, counts: dict[str, Any], sample: Sequence[bytes]) -> None:
        self._config, self._counts = config, counts
        self._sample = list(sample[:IMAGES]) or [
            _made_up(counts["median_height"] or 256, counts["median_width"] or 256)
        ]
        self.began = time.perf_counter()

    def __enter__(self) -> Bench:
        """Writes the directory. Raises Unmeasured where that fails."""
        try:
            self._directory = tempfile.TemporaryDirectory(prefix="dry_run_")
            self._write(Path(self._directory.name))
        except OSError as error:
            raise Unmeasured(f"no temporary directory can be written: {one_line(error)}") from error
        return self

    def __exit__(self, *error: object) -> None:
        self._directory.cleanup()

    @property
    def spent(self) -> float:
        """Returns the seconds since the bench was made."""
        return time.perf_counter() - self.began

    def _write(self, directory: Path) -> None:
        """Writes prepared data, and pseudo-labeled shards."""
        classes = self._counts["classes"]
        names = [str(number) for number in range(classes)]
        images = [self._sample[i % len(self._sample)] for i in range(IMAGES)]

        def write(
            name: str, kind: str, labels: bool, probabilities: np.ndarray | None = None
        ) -> None:
            examples = (
                protos.make_example(image, str(i), i % classes if labels else None, probabilities)
                for i, image in enumerate(images)
            )
            known = names if kind != "unlabeled" else ()
            records.write_split(
                directory / name, name, examples, 1, IMAGES, kind=kind, label_names=known
            )

        write("labeled", "labeled", True)
        write("validation", "labeled", True)
        write("unlabeled", "unlabeled", False)
        write(
            "pseudo_labeled", "pseudo_labeled", False, np.full([classes], 1 / classes, np.float32)
        )
        sizes = {
            name: float(self._counts[name] or 256) for name in ("median_height", "median_width")
        }
        write_json(directory / "summary.json", sizes)

    def rates(self, training: Planned, batch_size: int) -> Rates:
        """Measures a training, and labeling by its network.

        Args:
          training: training of the plan; its image size is known.
          batch_size: labeled images of the measured step. The time of a step is scaled to the whole
            batch.

        Raises:
          Unmeasured: the step cannot be measured; the text says why.
        """
        name, size = training.stage.name, training.size
        print(
            f"measuring a step of {name} ({training.model['name']}, {size} px): up to a minute",
            file=sys.stderr,
            flush=True,
        )
        policy = tf.keras.mixed_precision.global_policy()
        try:
            config, init = self._recipe(training, batch_size)
            rates = self._measured(config, training.section, init)
        except InputError as error:
            raise Unmeasured(str(error)) from error
        except tf.errors.ResourceExhaustedError as error:
            raise Unmeasured("the device has too little memory") from error
        finally:
            tf.keras.mixed_precision.set_global_policy(policy)
            tf.keras.backend.clear_session()
        scale = training.values["batch_size"] / batch_size
        return rates._replace(first=rates.first + (scale - 1) * rates.step, step=scale * rates.step)

    def _recipe(self, training: Planned, batch_size: int) -> tuple[ConfigDict, str | None]:
        """Returns the recipe of the measured training, and the weights that it starts from.

        Only what freezes or slows layers needs weights.
        """
        config = self._config.copy_and_resolve_references()
        with config.unlocked():
            section = config[training.section]
            section.update(
                {
                    "steps": 1000,
                    "epochs": None,
                    "batch_size": batch_size,
                    "evaluate_every": 0,
                    "steps_per_execution": 1,
                }
            )
            section.update({"final_weights": "last", "stop_after": 0})
            if section.get("logit_adjustment"):
                section.logit_adjustment = 0.0  # costs nothing, and the bench has no counts
            for network in training.networks:
                part = section[network.name] if network.name else section
                part.model = ConfigDict(training.network(network))
            config.preprocessing.image_size = training.size
            if section.get("preprocessing"):
                section.preprocessing.image_size = training.size
        if not needing_weights(training.values):
            return config, None
        init = config.get("init") or ""
        if not (os.path.exists(init) or os.path.exists(f"{init}.index")):
            row = published.find(init, training.model["name"])
            if not (row and row.is_here):  # a dry run downloads nothing
                raise Unmeasured("the weights are not here")
        return config, init

    def _measured(self, config: ConfigDict, section: str, init: str | None) -> Rates:
        data, method = self._directory.name, train.find(config, section)
        source = method.unlabeled(config[section].to_dict())
        if source == TEACHER:
            raise Unmeasured("its teacher labels within the step")
        began = time.perf_counter()
        resolved = train.resolve_training(config, section, data, init=init)
        pseudo_labeled = str(Path(data) / "pseudo_labeled") if source == PSEUDO_LABELED else None
        inputs = train.open_inputs(method, resolved, data, pseudo_labeled, None, init)
        spec, values = train.spec_of(method, resolved, inputs), ConfigDict(resolved["train"])
        tf.keras.mixed_precision.set_global_policy(values.precision)
        if values.deterministic:
            tf.keras.utils.set_random_seed(0)
            tf.config.experimental.enable_op_determinism()
        trainer = run.build_trainer(
            method, values, spec, IMAGES / values.batch_size, 0, False, inputs
        )
        trainer.build_optimizers()
        batches = run.batches(method, values, spec.preprocessing, inputs, 0, 0, (1, 0), 1)
        clock = _Clock(began)
        trainer.fit(batches, steps_per_epoch=1 + AT_MOST, epochs=1, verbose=0, callbacks=[clock])
        first_answer, answer = _labeling(trainer, inputs.labeled, spec.preprocessing)
        return Rates(clock.first, statistics.median(clock.steps), first_answer, answer)


class _Clock(tf.keras.callbacks.Callback):
    """Times the steps, and ends the training when there are enough."""

    def __init__(self, began: float) -> None:
        super().__init__()
        self._supports_tf_logs = True
        self._last, self.first = began, 0.0
        self.steps: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keras's hook."""
        self.model.optimizer.iterations.numpy()  # waits for a GPU
        now = time.perf_counter()
        if batch:
            self.steps.append(now - self._last)
        else:
            self.first = now - self._last
        self._last = now
        self.model.stop_training = len(self.steps) >= AT_LEAST and sum(self.steps) > ENOUGH


def _labeling(
    trainer: Trainer, images: records.Manifest, preprocessing: Preprocessing
) -> tuple[float, float]:
    """Returns the seconds until the first batch is labeled, and then the seconds per image."""
    answers = tf.function(lambda batch: tf.nn.softmax(trainer.model(batch, training=False)))
    began, times = time.perf_counter(), []
    for batch in pipeline.eval_batches(images, IMAGES, preprocessing).repeat().take(1 + AT_MOST):
        answers(batch["image"]).numpy()
        now = time.perf_counter()
        times.append(now - began)
        began = now
        if len(times) > AT_LEAST and sum(times[1:]) > ENOUGH / 2:
            break
    return times[0], statistics.mean(times[1:]) / IMAGES


def _made_up(height: float, width: float) -> bytes:
    """Returns a JPEG of smooth random colors.

    Decoding it takes about as long as decoding a photograph.
    """
    colors = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(colors).resize(
        (round(width), round(height)), PIL.Image.Resampling.BICUBIC
    ).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
