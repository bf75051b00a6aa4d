"""Measures the training step beside Keras's and timm's, its loop, and a command's first step.

    [PEERS=DIR] ./run_benchmarks.sh train_step [--rounds=5] [--cases=start,steps,loops,swish]

- `train_step/keras`, `train_step/timm`: images a second of EfficientNet-B0 at 224, batches of 32,
  trained on one batch in memory. Ours is `Supervised` under `fit` as a recipe builds it: RMSProp,
  moving average, weight decay, gradient norm, stochastic depth and dropout. Keras:
  `tf.keras.applications.EfficientNetB0` under plain `fit` with Keras's RMSprop. timm:
  `tf_efficientnet_b0` where torch and timm are installed, the best of float32 and bfloat16
  autocast, with and without channels-last. timm runs in its own process. A glibc setting
  keeps its pages there.
- `train_step/loop_...`: steps a second of `training.fit.fit` with data, log lines, checkpoints and
  moving average, beside the bare compiled step, which has neither data nor average. Data are one
  batch in memory, so that the loop and not the cores' share of decoding is measured. But
  `loop_digits_data` reads, decodes and augments 250 digits a step on the same cores, and
  `loop_b0_data` 32 photographs (JPEG of 500x375: random crop, flip, RandAugment).
- `train_step/swish_...`: the step beside the same with TensorFlow's swish.
- `train_step/start_...`: from the command to the first line of its log, for the digits' network, B0
  and B4 at 224, beside a script that makes Keras's B0 and takes one step.

All run in turns, in one run. CPU seconds of a step stand beside the rates, since wall time varies
on a shared machine.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from benchmarks import report
from benchmarks.input_pipeline import photographs
from cli import app, recipes
from cli.errors import InputError
from cli.start import python_m
from data import prepare, protos, records
from data.pipeline import untuned
from data.preprocessing import Preprocessing
from nets import layers
from training import model_dir, resolve, run
from training.fit import fit
from training.supervised import SUPERVISED, Supervised

BATCH, SIZE, STEPS = 32, 224, 3
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
DIGITS = ["--config=configs/noisy_student/digits.py", "--config.teacher.batch_size=250"]
B0_ON_DIGITS = [
    "--config=configs/noisy_student/digits.py",
    "--config.preprocessing.image_size=224",
    f"--config.teacher.batch_size={BATCH}",
    *(
        f"--config.teacher.model.{key}"
        for key in ("width=1.0", "depth=1.0", "stem_stride=2", "strides=(1,2,2,2,1,2,1)")
    ),
]
B4_ON_DIGITS = [
    *B0_ON_DIGITS,
    "--config.teacher.model.width=1.4",
    "--config.teacher.model.depth=1.8",
]
STARTS = {"digits": DIGITS, "b0": B0_ON_DIGITS, "b4": B4_ON_DIGITS}
B0 = [
    "--config=configs/noisy_student/imagenet.py:b0",
    f"--config.teacher.batch_size={BATCH}",
    "--config.teacher.precision=float32",
]
CASES = ("start", "steps", "loops", "swish")
KERAS_SCRIPT = f"""
import tensorflow as tf
model = tf.keras.applications.EfficientNetB0(weights=None, classifier_activation=None)
model.compile("rmsprop", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(tf.zeros([{BATCH}, {SIZE}, {SIZE}, 3]), tf.zeros([{BATCH}], tf.int64), \
batch_size={BATCH}, verbose=0)
"""


def build(flags: list[str], classes: int) -> tuple[Supervised, ConfigDict, Preprocessing]:
    """Returns the trainer of a recipe's teacher, its resolved section and its preprocessing."""
    config = recipes.from_flags(*flags)
    values = config.teacher.to_dict()
    preprocessing_values = values.pop("preprocessing", {})
    section = ConfigDict(resolve.section(values, labeled_examples=1000, unlabeled=False))
    preprocessing = Preprocessing.from_dict(
        resolve.preprocessing(
            config.preprocessing.to_dict(), preprocessing_values, median_height=8, median_width=8
        )
    )
    spec = model_dir.ModelSpec(
        section.model.to_dict(), preprocessing, tuple(map(str, range(classes)))
    )
    trainer = run.build_trainer(SUPERVISED, section, spec, 4.0, 0, False)
    trainer.build_optimizers()  # as `fit` does; Keras would trace once more to make the slots
    return trainer, section, preprocessing


def one_batch(size: int, batch: int, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns random images in 0-255 and labels."""
    images = tf.random.stateless_uniform([batch, size, size, 3], [0, 1], 0.0, 255.0)
    return images, tf.random.stateless_uniform([batch], [0, 2], 0, classes, tf.int64)


def in_memory(size: int, batch: int, classes: int) -> tf.data.Dataset:
    """Returns the same batch for ever, without autotuning.

    Autotuning's thread can hold up the end of a `fit`, Keras's like ours, for seconds.
    """
    return untuned(tf.data.Dataset.from_tensors(one_batch(size, batch, classes)).cache().repeat())


def fitted(model: tf.keras.Model, data: tf.data.Dataset) -> Callable[[], None]:
    """Returns a function that takes `STEPS` steps of plain `fit`."""
    return lambda: model.fit(data, steps_per_epoch=STEPS, verbose=0) and None


def keras_b0() -> tf.keras.Model:
    """Returns Keras's own network, compiled as its users do."""
    model = tf.keras.applications.EfficientNetB0(weights=None, classifier_activation=None)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.RMSprop(0.001, momentum=0.9), loss, metrics=["accuracy"])
    return model


class Timm:
    """The peer's process.

    It takes the name of a setting, takes the steps, and answers with its (wall, CPU) seconds.
    """

    def __init__(self) -> None:
        command = python_m("benchmarks.models.torch_peers", str(BATCH), str(SIZE), str(STEPS))
        environment = {**os.environ, **KEEP_PAGES}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.settings = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        return json.loads(
            next(line for line in self.process.stdout if line.startswith("["))
        )  # its libraries have their say there, too

    def __call__(self, setting: str) -> tuple[float, float]:
        """Returns the seconds of the steps."""
        assert self.process.stdin
        print(setting, file=self.process.stdin, flush=True)
        wall, cpu = self._answer()
        return wall, cpu

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def steps(rounds: int, ours: Supervised, data: tf.data.Dataset) -> None:
    """Measures B0's step beside the peers'."""
    work = {"ours": fitted(ours, data), "keras": fitted(keras_b0(), data)}
    timm = Timm() if all(importlib.util.find_spec(name) for name in ("torch", "timm")) else None
    for function in work.values():
        function()  # traces
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, function in work.items():
            with report.Timer() as timer:
                function()
            times.setdefault(name, []).append((timer.wall, timer.cpu))
        for setting in timm.settings if timm else ():
            times.setdefault(setting, []).append(timm(setting))
    best = {name: tuple(map(min, zip(*rows))) for name, rows in times.items()}
    if timm:
        timm.close()
        setting = min(timm.settings, key=lambda name: best[name][0])
        best["timm"] = best[setting]
    else:
        print("torch and timm are not installed, so timm's step is not measured", file=sys.stderr)
    names = {
        "keras": "tf.keras.applications.EfficientNetB0, fit",
        "timm": f"timm tf_efficientnet_b0, {setting if timm else ''}",
    }
    for peer in names.keys() & best.keys():
        rate, other = (BATCH * STEPS / best[name][0] for name in ("ours", peer))
        cpu = {
            f"{who}_cpu_s": round(best[name][1] / STEPS, 3)
            for who, name in (("ours", "ours"), ("peer", peer))
        }
        report.line(
            f"train_step/{peer}",
            rate,
            other,
            names[peer],
            goal=1.1,
            unit="images/s",
            rounds=rounds,
            **cpu,
        )


def bare(trainer: Supervised, element: Any) -> Callable[[int], None]:
    """Returns the compiled step without the average."""
    update, trainer.ema.update = trainer.ema.update, lambda step: None
    step = tf.function(trainer.train_step)
    step(element)
    trainer.ema.update = update

    def run(count: int) -> None:
        for _ in range(count):
            values = step(element)
        values["loss"].numpy()

    return run


def loop(
    name: str,
    rounds: int,
    trainer: Supervised,
    make: Callable[[int], tf.data.Dataset],
    section: ConfigDict,
    count: int,
) -> None:
    """Measures the loop beside the bare step; `count` steps have two log lines and a checkpoint."""
    sizes = {
        "steps": count,
        "images_per_step": section.batch_size,
        "log_every": count // 2,
        "checkpoint_every": count,
    }
    element = next(iter(make(0)))
    step = bare(trainer, element)

    def whole() -> None:
        with (
            tempfile.TemporaryDirectory() as workdir,
            open(os.devnull, "w", encoding="utf-8") as nowhere,
        ):
            out, sys.stdout = sys.stdout, nowhere
            try:
                fit(trainer, make, workdir, **sizes)
            finally:
                sys.stdout = out

    whole()
    times = report.interleaved(rounds, ours=whole, bare=lambda: step(count))
    traces = trainer.train_function.experimental_get_tracing_count()
    cpu = {
        f"{who}_cpu_s": round(times[key][1] / count, 4)
        for who, key in (("ours", "ours"), ("peer", "bare"))
    }
    report.line(
        f"train_step/loop_{name}",
        count / times["ours"][0],
        count / times["bare"][0],
        "bare compiled step",
        goal=0.95,
        unit="steps/s",
        traces=traces,
        **cpu,
    )


def swish(
    name: str, rounds: int, trainer: Supervised, flags: list[str], classes: int, element: Any
) -> None:
    """Measures the step beside the same with TensorFlow's swish."""
    work = {"ours": bare(trainer, element)}
    theirs, _, _ = build(flags, classes)
    ours, layers.swish = layers.swish, tf.nn.silu
    work["peer"] = bare(theirs, element)  # traces, which is when a layer looks it up
    layers.swish = ours
    times = report.interleaved(
        rounds, **{who: functools.partial(step, STEPS) for who, step in work.items()}
    )
    cpu = {f"{who}_cpu_s": round(times[who][1] / STEPS, 4) for who in work}
    rates = (STEPS / times[who][0] for who in work)
    report.line(
        f"train_step/swish_{name}",
        *rates,
        "the step with tf.nn.silu",
        goal=1.03,
        unit="steps/s",
        **cpu,
    )


def until_first_line(command: list[str], log: Path) -> float:
    """Returns the seconds from the start of a training to its first log line, and ends it."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and log.read_text(encoding="utf-8")):
            time.sleep(0.02)
        seconds = time.monotonic() - began
        process.kill()
    return seconds


def start(directory: Path, rounds: int) -> None:
    """Measures the time from the command to the first step."""
    times: dict[str, list[float]] = {name: [] for name in (*STARTS, "keras")}
    for number in range(rounds):
        for name, flags in STARTS.items():
            workdir = directory / f"{name}_{number}"
            command = python_m(
                "cli",
                "teacher",
                *flags,
                "--config.teacher.log_every=1",
                f"--data={directory / 'data'}",
            )
            times[name].append(
                until_first_line([*command, f"--workdir={workdir}"], workdir / "metrics.jsonl")
            )
        began = time.monotonic()
        subprocess.check_call([sys.executable, "-c", KERAS_SCRIPT], cwd=app.ROOT)
        times["keras"].append(time.monotonic() - began)
    for name in STARTS:
        ours, keras = min(times[name]), min(times["keras"])
        report.line(
            f"train_step/start_{name}",
            1 / ours,
            1 / keras,
            "script with Keras's B0",
            goal=0.5,
            unit="starts/s",
            seconds=round(ours, 1),
        )


def main(rounds: int = 3, cases: str = ",".join(CASES)) -> None:
    """Measures `cases` and prints the lines. Raises InputError for an unknown one."""
    chosen = cases.split(",")
    if unknown := set(chosen) - set(CASES):
        raise InputError(f"--cases: there is no case {min(unknown)!r}; known: {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root)
        if "start" in chosen:
            prepare.main(recipes.from_flags(*DIGITS), str(directory / "data"))
            start(directory, rounds)
        digits, section, preprocessing = build(DIGITS, 10)
        if "loops" in chosen:
            prepare.main(recipes.from_flags(*DIGITS), str(directory / "digits"))
            labeled = records.read_manifest(directory / "digits" / "labeled", "labeled")
            loop(
                "digits_data",
                rounds,
                digits,
                reading(labeled, section, preprocessing),
                section,
                100,
            )
            memory = in_memory(16, 250, 10)
            loop("digits", rounds, digits, lambda begin: memory, section, 100)
        if "swish" in chosen:
            swish("digits", rounds, digits, DIGITS, 10, one_batch(16, 250, 10))
        b0, section, preprocessing = build(B0, 1000)
        data = in_memory(SIZE, BATCH, 1000)
        if "steps" in chosen:
            steps(rounds, b0, data)
        if "swish" in chosen:
            swish("b0", rounds, b0, B0, 1000, next(iter(data)))
        if "loops" in chosen:
            loop("b0", rounds, b0, lambda begin: data, section, 10)
            examples = (
                protos.make_example(encoded, str(i), label=i)
                for i, encoded in enumerate(photographs(8 * BATCH))
            )
            names = tuple(map(str, range(1000)))
            labeled = records.write_split(
                directory / "labeled",
                "labeled",
                examples,
                1,
                8 * BATCH,
                kind="labeled",
                label_names=names,
            )
            loop("b0_data", rounds, b0, reading(labeled, section, preprocessing), section, 10)


def reading(
    labeled: records.Manifest, section: ConfigDict, preprocessing: Preprocessing
) -> Callable[[int], tf.data.Dataset]:
    """Returns the recipe's own input from a split."""
    inputs = run.Inputs(Path(), labeled)
    return functools.partial(
        run.batches, SUPERVISED, section, preprocessing, inputs, 0, pipelines=(1, 0), replicas=1
    )
