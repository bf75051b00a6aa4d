"""Memory against time of a training step that keeps only the blocks' inputs, beside the plain step.

    ./run_benchmarks.sh rematerialization [--networks=b0,b4]

Each case is a process of its own: EfficientNet at 128 pixels in float32, gradients of the cross entropy with all noise and an update
by plain SGD. Its memory is the peak of the resident set during the steps less the resident set before them, when network and graph
exist: so activations and gradients, no weights. `ours` and `peer` are images of a step per GiB of that; seconds are medians, wall and
CPU.
"""

from __future__ import annotations

import stages  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

# isort: split

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks import report
from efficientnet import EfficientNet, model_noise
from stages.errors import InputError
from training.rematerialization import training_pass

SIZE, STEPS = 128, 3
BATCHES = {"b0": 16, "b4": 16, "l2": 4}
GOAL = {"b0": 1.5, "b4": 2.0, "l2": 1.5}  # l2's gradients, 1.8 GiB, are in both


def measure(name: str, rematerialize: bool) -> dict[str, float]:
    """Of one case, in this process: `gib`, `seconds`, `cpu_seconds` of a step, `trace_seconds`, images a step."""
    batch = BATCHES[name]
    model = EfficientNet(name, num_classes=1000, seed=0)
    forward = training_pass(model, rematerialize)
    images = tf.random.stateless_uniform([batch, SIZE, SIZE, 3], [1, 2], 0, 255)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            with model_noise(0, 0, tf.range(batch), batch):
                logits = forward(images)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(batch), logits))
        for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables)):
            variable.assign_sub(1e-6 * gradient)
        return loss

    with report.Timer() as trace:
        step.get_concrete_function()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, times = report.memory("self"), []
    for _ in range(STEPS):
        with report.Timer() as timer:
            step().numpy()
        times.append((timer.wall, timer.cpu))
    wall, cpu = (statistics.median(column) for column in zip(*times))
    peak = report.memory("self", "VmHWM") - before
    return {"gib": peak, "seconds": wall, "cpu_seconds": cpu, "trace_seconds": trace.cpu, "batch": batch}


def in_a_process(name: str, rematerialize: bool) -> dict[str, Any]:
    """`measure` in a fresh one."""
    command = [sys.executable, "-m", "benchmarks.rematerialization", name, str(int(rematerialize))]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main(networks: str = "b0,b4,l2") -> None:
    """Prints one JSON line a network. Raises InputError for an unknown one."""
    names = networks.split(",")
    unknown = [name for name in names if name not in BATCHES]
    if unknown:
        raise InputError(f"--networks: no {unknown[0]!r}; there are {', '.join(BATCHES)}")
    for name in names:
        ours, plain = (in_a_process(name, rematerialize) for rematerialize in (True, False))
        notes = {
            f"{side}_{key}": round(values[key], 3)
            for key in ("gib", "seconds", "cpu_seconds", "trace_seconds")
            for side, values in (("ours", ours), ("peer", plain))
        }
        report.line(
            f"rematerialization/{name}",
            ours["batch"] / ours["gib"],
            plain["batch"] / plain["gib"],
            "the plain step",
            goal=GOAL[name],
            unit="images/GiB",
            batch=ours["batch"],
            **notes,
        )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2] == "1")))
