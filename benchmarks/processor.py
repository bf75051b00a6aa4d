"""Measures TensorFlow's operations on oneDNN and without it, on this CPU.

    ./run_benchmarks.sh processor [--rounds=2]
    # nearly as a CPU without AVX-512 would
    ONEDNN_MAX_CPU_ISA=AVX2 ./run_benchmarks.sh processor

`training.processor` chooses by the results. Each line's `ours` is with oneDNN, its `peer` without,
in their own processes, in turns; each is the best of its rounds. Cases:

    digits      a step of the digits' teacher, 250 images of 16 px: depthwise convolutions on maps
                of 4 px
    lite0       a step of EfficientNet-Lite0 with 10 frozen blocks, 32 images of 160 px
    b0          a step of EfficientNet-B0, 32 images of 224 px
    b0_64       the same at 64 px: maps of 2 px
    b0_32       the same at 32 px: maps of 1 px
    wrn         a step of Meta Pseudo Labels, Wide ResNet 28-2, 16 + 2 x 112 images of 32 px
    labeling   B0's forward pass, 64 images of 224 px
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)
from benchmarks import report
from cli.start import python_m
from training import processor

IMAGES = {
    "digits": 250,
    "lite0": 32,
    "b0": 32,
    "b0_64": 32,
    "b0_32": 32,
    "wrn": 16 + 2 * 112,
    "labeling": 64,
}
"""Case -> images of a step."""
LITE0 = [
    "--config=configs/noisy_student/image_folder.py:lite0",
    "--config.init=None",
    "--config.teacher.batch_size=32",
]
STEPS, ROUNDS = 3, 3


def main(rounds: int = 2) -> None:
    """Measures each case `rounds` times on either side and prints the lines."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for _ in range(rounds):
        for case in IMAGES:
            for value in ("1", "0"):
                environment = {**os.environ, processor.VARIABLE: value}
                command = python_m("benchmarks.processor", case)
                output = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                ).stdout
                wall, cpu = json.loads(output.splitlines()[-1])
                before = best.get((case, value), (wall, cpu))
                best[case, value] = min(wall, before[0]), min(cpu, before[1])
    for case, images in IMAGES.items():
        (ours, ours_cpu), (peer, peer_cpu) = best[case, "1"], best[case, "0"]
        cpu = {"ours_cpu_s": round(ours_cpu, 3), "peer_cpu_s": round(peer_cpu, 3)}
        conditions = {"instructions": processor.instructions(), "rounds": rounds}
        report.line(
            f"processor/{case}",
            images / ours,
            images / peer,
            "without oneDNN",
            goal=1.0,
            unit="images/s",
            **cpu,
            **conditions,
        )


def _measure(case: str) -> tuple[float, float]:
    """Returns the best (wall, CPU) seconds of a step in this process."""
    work = _work(case)
    work()
    times = []
    for _ in range(ROUNDS):
        with report.Timer() as timer:
            for _ in range(STEPS):
                work()
        times.append((timer.wall / STEPS, timer.cpu / STEPS))
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def _work(case: str) -> Callable[[], Any]:
    import tensorflow as tf

    from benchmarks import meta_pseudo_labels, train_step
    from training import models

    tf.keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()  # as trainings have it by default
    if case == "wrn":
        step = meta_pseudo_labels.ours("float32")["step_soft"]
        return lambda: [value.numpy() for value in tf.nest.flatten(step())]
    if case == "labeling":
        network = models.build({"name": "b0"}, 1000, mean=(127.5,) * 3, std=(64.0,) * 3, seed=0)
        images = tf.random.stateless_uniform([IMAGES[case], 224, 224, 3], [1, 2], maxval=255.0)
        forward = tf.function(lambda: network(images, training=False))
        return lambda: forward().numpy()
    flags, size, classes = {
        "digits": (train_step.DIGITS, 16, 10),
        "lite0": (LITE0, 160, 6),
        "b0": (train_step.B0, 224, 1000),
        "b0_64": (train_step.B0, 64, 1000),
        "b0_32": (train_step.B0, 32, 1000),
    }[case]
    trainer = train_step.build(flags, classes)[0]
    batch = train_step.one_batch(size, IMAGES[case], classes)
    update = tf.function(trainer.train_step)
    return lambda: update(batch)["loss"].numpy()


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
