"""The training step of every method, compiled whole by XLA: size, shapes and time to compile.

    ./run_benchmarks.sh xla_steps [--networks=b0,resnet50,wrn_28_2] [--methods=supervised,...] \
        [--batch=4]

One JSON line for each network and method, each in its own process:

    hlo_instructions, hlo_mb   of the module before XLA's own passes, and megabytes of its text
    static                     every shape in it is known
    trace_seconds              TensorFlow's graph and the module
    compile_seconds            the first step, which compiles; one step's own seconds are in it
    loss                       of that step; finite

EfficientNet-B0 and ResNet-50 at 224 pixels and 1,000 classes, Wide ResNet 28-2 at 32 pixels and 10.
`batch` labeled images, twice as many unlabeled ones. Meta Pseudo Labels with its defaults.
LLVM's optimization is turned off, unless `XLA_FLAGS` is set. It takes ten times as long as XLA's
own passes, and a TPU has none of it. So nothing here is a speed.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

from cli.errors import InputError
from cli.start import python_m

NETWORKS = {"b0": (224, 1000), "resnet50": (224, 1000), "wrn_28_2": (32, 10)}
"""Name -> pixels, classes."""
METHODS = ("supervised", "noisy_student", "uda", "fixmatch", "meta_pseudo_labels")
NO_LLVM = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA_FLAGS that leave out LLVM's passes for the CPU; XLA's own passes stay."""


def main(
    networks: str = ",".join(NETWORKS), methods: str = ",".join(METHODS), batch: int = 4
) -> None:
    """Prints a line for each network and method. Raises InputError for unknown ones."""
    wanted = {
        "networks": (networks.split(","), tuple(NETWORKS)),
        "methods": (methods.split(","), METHODS),
    }
    for flag, (names, known) in wanted.items():
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"--{flag}: there is no {unknown[0]!r}; known: {', '.join(known)}")
    for network in wanted["networks"][0]:
        for method in wanted["methods"][0]:
            command = python_m("benchmarks.xla_steps", network, method, str(batch))
            code = subprocess.run(command, env={"XLA_FLAGS": NO_LLVM, **os.environ}).returncode
            if code:  # the child's own message stands above
                print(f"xla_steps/{network}/{method} failed with exit code {code}", file=sys.stderr)
                sys.exit(code if code > 0 else 128 - code)


def trainer(network: str, method: str, pixels: int | None = None) -> Any:
    """Builds the method's compiled trainer around the network, with the optimizers of the papers.

    `pixels`: side of the images; None: the network's of `NETWORKS`.
    """
    import tensorflow as tf

    from fixmatch.method import FixMatch
    from meta_pseudo_labels.model import MetaPseudoLabels
    from noisy_student.model import NoisyStudent
    from training import models
    from training.optimizers import RMSProp
    from training.supervised import Supervised
    from training.uda import UDA

    usual, classes = NETWORKS.get(network, NETWORKS["wrn_28_2"])
    size = pixels or usual
    architecture = {"name": network, "image_size": size}
    one, other = (
        models.build(architecture, classes, mean=(127.5,) * 3, std=(64.0,) * 3, seed=seed)
        for seed in (1, 2)
    )
    if method == "meta_pseudo_labels":
        made: Any = MetaPseudoLabels(other, one, uda_weight=8.0)
        made.compile(
            *(tf.keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True) for _ in range(2))
        )
    else:
        made = {
            "supervised": Supervised,
            "noisy_student": NoisyStudent,
            "uda": UDA,
            "fixmatch": FixMatch,
        }[method](one)
        made.compile(RMSProp(0.016))
    made.build_optimizers()
    return made


def batch_of(network: str, method: str, batch: int, pixels: int | None = None) -> Any:
    """Makes a batch for the method's step: random images in 0-255, labels, probabilities."""
    import tensorflow as tf

    usual, classes = NETWORKS.get(network, NETWORKS["wrn_28_2"])
    size = pixels or usual
    shapes = (batch, 2 * batch, 2 * batch)
    x, first, second = (
        tf.random.stateless_uniform([n, size, size, 3], [n, i], 0.0, 255.0)
        for i, n in enumerate(shapes)
    )
    y = tf.random.stateless_uniform([batch], [0, 2], 0, classes, tf.int64)
    q = tf.nn.softmax(tf.random.stateless_normal([2 * batch, classes], [0, 3]))
    if method == "supervised":
        return x, y
    return (x, y), (first, q if method == "noisy_student" else second)


def measure(network: str, method: str, batch: int) -> dict[str, Any]:
    """Traces and compiles the step, and takes it once."""
    import tensorflow as tf

    made, data = trainer(network, method), batch_of(network, method, batch)
    step = tf.function(made.train_step, jit_compile=True, autograph=False)
    began = time.monotonic()
    module = step.experimental_get_compiler_ir(data)(stage="hlo")
    traced = time.monotonic()
    values = step(data)
    loss = float(values["loss"])
    compiled = time.monotonic()
    assert math.isfinite(loss), loss
    return {
        "benchmark": f"xla_steps/{network}/{method}",
        "hlo_instructions": len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", module, re.MULTILINE)),
        "hlo_mb": round(len(module) / 1e6, 1),
        "static": "<=" not in module,  # how HLO writes a bounded, dynamic dimension
        "trace_seconds": round(traced - began, 1),
        "compile_seconds": round(compiled - traced, 1),
        "images": [batch, 0 if method == "supervised" else 2 * batch],
        "loss": round(loss, 4),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))), flush=True)
