"""The models in numbers: parameters, multiply-additions, memory and speed.

    ./run_tool.sh model_card --workdir=runs/model_card [--models=b0,b7] [--passes=graph] \
        [--memory=12] [--seconds=300]

Measures each model at its own resolution and batch 1, in float32:

- trainable parameters;
- multiply-additions of one image, counted from the graph's convolutions and matrix products;
- peak memory and time of a forward pass and of a training step (gradients of the cross entropy and
  an SGD update), each in its own process.

A measurement that passes --memory GiB or --seconds is stopped, and the table says so. A finished
measurement is not repeated. The next call repeats one that failed. --passes=graph counts and runs
nothing, for models that are too large for the machine. The table goes into docs/models.md.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import report
from benchmarks.models.page import MODELS, markdown_table, replace_section
from cli.errors import InputError
from cli.json_files import read_json, write_json
from cli.start import python_m
from training import architectures, models

SIZES = {
    name: size
    for family in architectures.TABLE
    for name, size in family.sizes.items()
    if "/" not in name
}  # pixels, classes
"""Lists the project's own networks; those of keras-cv have a prefix."""
PASSES = ("graph", "forward", "train")
REPEATS = 3


def main(
    workdir: str, models: str | None, passes: str, memory: float, seconds: float, run: str | None
) -> None:
    """Measures what has no result yet, and writes the table.

    Raises InputError, and SystemExit where a measurement failed.
    """
    directory = Path(workdir)
    if run:
        name, _, what = run.partition(":")
        write_json(
            directory / f"{name}.{what}.json",
            _count(name) if what == "graph" else _measure(name, train=what == "train"),
        )
        return
    wanted = models.split(",") if models else list(SIZES)
    for flag, given, known in (
        ("models", wanted, tuple(SIZES)),
        ("passes", passes.split(","), PASSES),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"--{flag}: there is no {unknown[0]!r}; known: {', '.join(known)}")
    failed = []
    for name in wanted:
        for what in passes.split(","):
            path = directory / f"{name}.{what}.json"
            if path.exists():
                continue
            try:
                stopped = _run(directory, f"{name}:{what}", memory, seconds)
            except subprocess.CalledProcessError as error:
                failed.append(f"{name} {what}: failed ({error.returncode})")
                continue
            if stopped:
                write_json(path, {"stopped": stopped})
            print(f"{name} {what}: {stopped or 'done'}", flush=True)
    replace_section(MODELS, "card", table(directory))
    print(f"the table is in {MODELS}")
    if failed:
        print("\n".join(failed), file=sys.stderr)
        sys.exit(1)


def _run(directory: Path, run: str, memory: float, seconds: float) -> str | None:
    """Runs one measurement; returns why it was stopped, or None.

    Raises:
      CalledProcessError: the measurement failed.
    """
    process = subprocess.Popen(
        python_m("cli", "tool", "model_card", f"--workdir={directory}", f"--run={run}")
    )
    began = time.monotonic()
    while process.poll() is None:
        resident = report.memory(process.pid)
        reason = (
            f"> {memory:g} GiB"
            if resident > memory
            else f"> {seconds:g} s"
            if time.monotonic() - began > seconds
            else None
        )
        if reason:
            process.kill()
            process.wait()
            return reason
        time.sleep(0.1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, run)
    return None


def _build(name: str) -> tf.keras.Model:
    return models.build({"name": name}, SIZES[name][1], mean=(127.5,) * 3, std=(127.5,) * 3, seed=0)


def multiply_additions(model: tf.keras.Model, size: int) -> int:
    """Counts the multiply-additions of one image's forward pass, read from the traced graph.

    They are those of the convolutions and matrix products.
    """
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec([1, size, size, 3])
    )
    total = 0
    for operation in function.graph.get_operations():
        if operation.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
            outputs = operation.outputs[0].shape.num_elements()
            kernel = operation.inputs[1].shape
            # Each output sums over the kernel's entries that meet it: height x width x input
            # channels, 1 channel if depthwise.
            summed = (
                kernel[0]
                if operation.type == "MatMul"
                else kernel[0] * kernel[1] * (kernel[2] if operation.type == "Conv2D" else 1)
            )
            total += outputs * summed
    return total


def _count(name: str) -> dict[str, Any]:
    model = _build(name)
    parameters = sum(weight.shape.num_elements() for weight in model.trainable_weights)
    return {
        "parameters": parameters,
        "multiply_additions": multiply_additions(model, SIZES[name][0]),
    }


def _measure(name: str, *, train: bool) -> dict[str, Any]:
    before = report.memory("self")
    model = _build(name)
    size, classes = SIZES[name]
    images = tf.random.stateless_uniform([1, size, size, 3], [1, 2], 0, 255)

    @tf.function
    def step() -> tf.Tensor:
        if not train:
            return model(images, training=False)
        with tf.GradientTape() as tape:
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
                [classes - 1], model(images, training=True)
            )
        for variable, gradient in zip(
            model.trainable_variables, tape.gradient(loss, model.trainable_variables)
        ):
            variable.assign_sub(1e-6 * gradient)
        return loss

    step()  # traces
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return {
        "peak_gib": report.memory("self", "VmHWM") - before,
        "seconds": float(np.median(seconds)),
    }


def table(directory: Path) -> str:
    """Returns the Markdown table of all results in `directory`."""
    rows = []
    for name, (size, _) in SIZES.items():
        found = {
            what: read_json(path)
            for what in PASSES
            if (path := directory / f"{name}.{what}.json").exists()
        }
        if "multiply_additions" not in found.get("graph", {}):
            continue
        counted = found["graph"]
        cells = [
            name,
            str(size),
            f"{counted['parameters']:,}",
            f"{counted['multiply_additions'] / 1e9:.3g}",
        ]
        for key, text in (("peak_gib", "{:.2f}"), ("rate", "{:.3g}")):
            for what in ("forward", "train"):
                values = found.get(what, {"stopped": "not measured"})
                if "seconds" in values:
                    values["rate"] = 1 / values["seconds"]
                cells.append(text.format(values[key]) if key in values else values["stopped"])
        rows.append(cells)
    head = [
        "model",
        "pixels",
        "parameters",
        "GMAC",
        "GiB forward",
        "GiB train step",
        "images/s forward",
        "images/s train step",
    ]
    return markdown_table(head, rows)
