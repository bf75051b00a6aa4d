"""Measures memory against time of a training step: plain, rematerialized, or in parts.

    ./run_benchmarks.sh step_memory [--networks=b0,b4] [--batch=64] [--parts=4]

Each case runs in its own process: EfficientNet at 128 pixels in float32, gradients of the cross
entropy with all noise and an update by plain SGD. Rematerialized, it keeps only the blocks' inputs.
In parts (gradient accumulation), it takes a quarter of the batch at a time, or another part. l2 is
not run in parts: its graph would be four times itself.

The lines `feedback` are of Meta Pseudo Labels' student with a calibrator for its teacher, and a
quarter as many labeled images: `cosine`, `soft` rematerialized and `soft` in parts, beside the
plain step of `soft`.

The memory of a case is the peak of the resident set during the steps, minus the resident set before
them. Network and graph exist before. So it has activations, and gradients until their weights have
moved, but no weights. `ours` and `peer` are images of a step per GiB of that; seconds are medians,
wall and CPU.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks import report
from cli.errors import InputError
from cli.start import python_m
from efficientnet import EfficientNet
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from nets.noise import model_noise
from training.parts import accumulated
from training.rematerialization import training_pass

SIZE, STEPS = 128, 3
BATCHES = {"b0": 16, "b4": 16, "l2": 4}
WAYS = ("plain", "rematerialized", "in_parts")
FEEDBACK: dict[str, dict[str, Any]] = {
    "soft": {},
    "cosine": {"feedback": "cosine"},
    "soft_rematerialized": {"rematerialize": True},
    "soft_in_parts": {},
}
"""Ways of the student's step in Meta Pseudo Labels, with their options."""
GOAL = {"rematerialized": 1.5, "in_parts": 1.3}
GOAL |= {"cosine": 1.3, "soft_rematerialized": 1.5, "soft_in_parts": 1.3}
# Gradients, and what an operation needs while it runs, are in all of them.


def measure(name: str, way: str, batch: int, parts: int) -> dict[str, float]:
    """Measures one case in this process.

    Returns:
      `gib`, `seconds`, `cpu_seconds` of a step, and `trace_seconds`.
    """
    labeled = parts * -(-batch // (4 * parts))
    parts = parts if way.endswith("in_parts") else 1
    if way in FEEDBACK:
        step = student_step(name, FEEDBACK[way], batch, labeled, parts)
    else:
        step = plain_step(name, way, batch, parts)
    with report.Timer() as trace:
        step.get_concrete_function()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    before, times = report.memory("self"), []
    for _ in range(STEPS):
        with report.Timer() as timer:
            step().numpy()
        times.append((timer.wall, timer.cpu))
    wall, cpu = (statistics.median(column) for column in zip(*times))
    peak = report.memory("self", "VmHWM") - before
    return {"gib": peak, "seconds": wall, "cpu_seconds": cpu, "trace_seconds": trace.cpu}


def student_step(name: str, options: dict[str, Any], batch: int, labeled: int, parts: int) -> Any:
    """Returns the compiled step of a student.

    It has `batch` unlabeled and `labeled` labeled images.
    """
    student = EfficientNet(name, num_classes=1000, seed=0)
    calibrator = Calibrator(1000, hidden=8)
    pair = ReducedMetaPseudoLabels(calibrator, student, accumulation=parts, **options)
    pair.compile(*(tf.keras.optimizers.SGD(1e-6) for _ in range(2)))
    pair.build_optimizers()
    x, x_u = (
        tf.random.stateless_uniform([n, SIZE, SIZE, 3], [1, n], 0, 255) for n in (labeled, batch)
    )
    labels, q = tf.range(labeled), tf.fill([batch, 1000], 1e-3)
    return tf.function(lambda: pair.train_step(((x, labels), (x_u, q)))["loss"])


def plain_step(name: str, way: str, batch: int, parts: int) -> Any:
    """Returns the compiled step of a classifier."""
    model = EfficientNet(name, num_classes=1000, seed=0)
    forward, variables = training_pass(model, way == "rematerialized"), model.trainable_variables
    images = tf.random.stateless_uniform([batch, SIZE, SIZE, 3], [1, 2], 0, 255)

    def gradients(part: tuple[tf.Tensor, tf.Tensor], _: int) -> list[tf.Tensor]:
        x, rows = part  # the row of an image in the batch is its label, too
        with tf.GradientTape() as tape:
            with model_noise(0, 0, rows, batch):
                logits = forward(x)
            loss = (
                tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(rows, logits)) / parts
            )
        return tape.gradient(loss, variables)

    @tf.function
    def step() -> tf.Tensor:
        total = accumulated(gradients, (images, tf.range(batch)), parts)
        for variable, gradient in zip(variables, total):
            variable.assign_sub(1e-6 * gradient)
        return tf.reduce_sum(total[-1])

    return step


def in_a_process(*case: str | int) -> dict[str, Any]:
    """Runs `measure` in a fresh process."""
    command = python_m("benchmarks.step_memory", *map(str, case))
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main(networks: str = "b0,b4,l2", batch: int = 0, parts: int = 4) -> None:
    """Prints JSON lines of each network. Raises InputError for an unknown one.

    `batch`: images a step; 0: as `BATCHES` says.
    """
    names = networks.split(",")
    unknown = [name for name in names if name not in BATCHES]
    if unknown:
        raise InputError(
            f"--networks: there is no network {unknown[0]!r}; known: {', '.join(BATCHES)}"
        )
    for name in names:
        images = batch or BATCHES[name]
        if images % parts:
            raise InputError(
                f"--parts is {parts}, which does not divide the {images} images of a step; set "
                "--batch, too"
            )
        for ways in (WAYS[:2] if name == "l2" else WAYS, () if name == "l2" else tuple(FEEDBACK)):
            _lines(name, ways, images, parts)


def _lines(name: str, ways: Sequence[str], images: int, parts: int) -> None:
    """Prints a line for each way but the first, beside the first."""
    measured = [in_a_process(name, way, images, parts) for way in ways]
    for way, ours in zip(ways[1:], measured[1:]):
        notes = {
            f"{side}_{key}": round(values[key], 3)
            for key in ("gib", "seconds", "cpu_seconds", "trace_seconds")
            for side, values in (("ours", ours), ("peer", measured[0]))
        }
        if way.endswith("in_parts"):
            notes["parts"] = parts
        rates = (images / values["gib"] for values in (ours, measured[0]))
        line = f"step_memory/{name}/{'feedback/' if way in FEEDBACK else ''}{way}"
        peer = f"the step of {ways[0]}" if way in FEEDBACK else "the plain step"
        report.line(line, *rates, peer, goal=GOAL[way], unit="images/GiB", batch=images, **notes)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
