"""Compares a step of Meta Pseudo Labels with its passes, and with the same step in PyTorch.

    ./run_benchmarks.sh meta_pseudo_labels [--rounds=5]
    # with PyTorch: pip install --target=DIR torch==2.13.0
    PEERS=DIR ./run_benchmarks.sh meta_pseudo_labels

The step is the released CIFAR-10 step at an eighth of its batch: Wide ResNet 28-2 at 32 pixels, 16
labeled images and 7 x 16 unlabeled ones in two views. images/s are labeled and unlabeled images
of a step. Lines:

    passes/PRECISION         the step with `finite_difference`: teacher forward and backward on
                             labeled, weak and strong images, student forward and backward on
                             strong ones, student forward on labeled ones twice
    passes_soft/PRECISION    the step with `soft`, the default: instead of the last two, student
                             forward and backward on labeled ones, and the directional derivative
                             of the student's gradient
    pytorch/SETTING          the step with `finite_difference` against the logic of
                             kekmodel/MPL-pytorch (two forwards of the student in training mode,
                             argmax labels, difference of losses, two SGDs, one average), written
                             here for the comparison. float32: as it ships. float32_kept,
                             bfloat16_kept: PyTorch's best, channels last, glibc set to keep its
                             pages (for both sides), bfloat16 by autocast against mixed_bfloat16
    profile/PRECISION        no rates: milliseconds of the `finite_difference` step by kind of
                             operation, on one thread, by TensorFlow's profiler

Each process waits while another one is measured, round by round.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import collections
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.models import torch_peers
from cli.start import python_m

B, RATIO, SIZE, CLASSES = 16, 7, 32, 10
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
PASSES = ("teacher", "student", "labeled_forward", "labeled_forward")
PASSES_SOFT = ("teacher", "student_jvp", "labeled_gradient")

Work = dict[str, Callable[[], Any]]


def ours(precision: str) -> Work:
    """Returns the steps and their passes, compiled, in this process."""
    import tensorflow as tf

    from meta_pseudo_labels.feedback import soft_cross_entropy
    from meta_pseudo_labels.model import MetaPseudoLabels
    from training import models

    tf.keras.mixed_precision.set_global_policy(precision)
    architecture = {"name": "wrn_28_2", "image_size": SIZE}
    teacher, student = (
        models.build(architecture, CLASSES, mean=(127.5,) * 3, std=(64.0,) * 3, seed=i)
        for i in (1, 2)
    )
    x, weak, strong = (
        tf.random.stateless_uniform([n, SIZE, SIZE, 3], [n, i], 0, 255)
        for i, n in enumerate([B, B * RATIO, B * RATIO])
    )
    y = tf.one_hot(tf.range(B) % CLASSES, CLASSES)
    y_u = tf.one_hot(tf.range(B * RATIO) % CLASSES, CLASSES)
    everything, y_all = tf.concat([x, weak, strong], 0), tf.concat([y, y_u, y_u], 0)

    def step(feedback: str) -> Callable[[], Any]:
        pair = MetaPseudoLabels(teacher, student, feedback=feedback, uda_weight=8.0)
        pair.compile(
            *(tf.keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True) for _ in range(2))
        )
        pair.build_optimizers()
        return tf.function(lambda: pair.train_step(((x, y), (weak, strong))))

    def loss(model: tf.keras.Model, images: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(
            soft_cross_entropy(targets, tf.cast(model(images, training=True), tf.float32))
        )

    def gradient(model: tf.keras.Model, images: tf.Tensor, targets: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            value = loss(model, images, targets)
        return tape.gradient(value, model.trainable_variables)

    def directional() -> tuple[list[tf.Tensor], tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            labels = tf.identity(y_u)
            tape.watch(labels)
            gradients = gradient(student, strong, labels)
        slope = tape.gradient(
            gradients,
            labels,
            output_gradients=[tf.identity(v) for v in student.trainable_variables],
        )
        return (
            gradients,
            slope,
        )  # both: for the second alone TensorFlow would leave the backward pass out

    return {
        "step": step("finite_difference"),
        "step_soft": step("soft"),
        "teacher": tf.function(lambda: gradient(teacher, everything, y_all)),
        "student": tf.function(lambda: gradient(student, strong, y_u)),
        "student_jvp": tf.function(directional),
        "labeled_forward": tf.function(lambda: loss(student, x, y)),
        "labeled_gradient": tf.function(lambda: gradient(student, x, y)),
    }


def peer(precision: str, channels_last: bool) -> Work:
    """Returns the step in PyTorch."""
    model = torch_peers.WideResNet(28, 2, CLASSES)
    import torch
    from torch.nn import functional

    layout = torch.channels_last if channels_last else torch.contiguous_format
    teacher, student = (copy.deepcopy(model).to(memory_format=layout).train() for _ in range(2))
    average = copy.deepcopy(student)
    optimizers = []
    for network in (teacher, student):
        decayed = [p for name, p in network.named_parameters() if "bn" not in name]
        others = [p for name, p in network.named_parameters() if "bn" in name]
        groups = [
            {"params": decayed, "weight_decay": 5e-4},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizers.append(torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True))
    generator = torch.Generator().manual_seed(0)
    sizes = (B, B * RATIO, B * RATIO)
    x, weak, strong = (
        torch.randn([n, 3, SIZE, SIZE], generator=generator).to(memory_format=layout) for n in sizes
    )
    y = torch.arange(B) % CLASSES

    def step() -> None:
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")
        with autocast:
            z = teacher(torch.cat([x, weak, strong])).float()
            z_l, z_weak, z_strong = z[:B], *z[B:].chunk(2)
            labeled = functional.cross_entropy(z_l, y, label_smoothing=0.15)
            q = torch.softmax(z_weak.detach() / 0.7, -1)
            confidence, pseudo = q.max(-1)
            uda = -((q * torch.log_softmax(z_strong, -1)).sum(-1) * (confidence >= 0.6)).mean()
            s = student(torch.cat([x, strong])).float()
            old = functional.cross_entropy(s[:B].detach(), y)
            loss = functional.cross_entropy(s[B:], pseudo, label_smoothing=0.15)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1e9)
        optimizers[1].step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), student.parameters()):
                a.mul_(0.995).add_(p, alpha=0.005)
        with autocast, torch.no_grad():
            new = functional.cross_entropy(student(x).float(), y)
        feedback = (new - old) * functional.cross_entropy(z_strong, z_strong.detach().argmax(-1))
        (labeled + 8.0 * uda + feedback).backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1e9)
        optimizers[0].step()
        for network in (teacher, student):
            network.zero_grad()

    return {"step": step}


def serve(side: str, precision: str, channels_last: bool) -> None:
    """Does what each line of the standard input names, and answers with wall and CPU seconds."""
    work = ours(precision) if side == "ours" else peer(precision, channels_last)
    answers = os.dup(1)
    os.dup2(2, 1)  # the process may print other lines, too
    for line in sys.stdin:
        with report.Timer() as timer:
            work[line.strip()]()
        os.write(answers, f"{json.dumps([timer.wall, timer.cpu])}\n".encode())


class Side:
    """A process that measures itself, and its times by piece of work."""

    def __init__(
        self, side: str, precision: str, *, channels_last: bool = False, kept: bool = False
    ):
        command = python_m(
            "benchmarks.meta_pseudo_labels", side, precision, "1" if channels_last else ""
        )
        environment = {**os.environ, **(KEEP if kept else {})}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.times: dict[str, list[tuple[float, float]]] = {}

    def measure(self, name: str) -> None:
        """Measures once more; the first time, in which the work is compiled, does not count."""
        assert self.process.stdin and self.process.stdout
        for _ in range(2 if name not in self.times else 1):
            print(name, file=self.process.stdin, flush=True)
            wall, cpu = json.loads(self.process.stdout.readline())
        self.times.setdefault(name, []).append((wall, cpu))

    def seconds(self, *names: str) -> tuple[float, float]:
        """Returns the median (wall, CPU) of these pieces of work, together."""
        wall, cpu = (
            sum(statistics.median(t[i] for t in self.times[name]) for name in names) for i in (0, 1)
        )
        return wall, cpu

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def against_passes(precision: str, rounds: int) -> None:
    """Prints the lines of one precision."""
    side = Side("ours", precision)
    names = ["step", "step_soft", *dict.fromkeys((*PASSES, *PASSES_SOFT))]
    for _ in range(rounds):
        for name in names:
            side.measure(name)
    side.close()
    for line, step, passes in (
        ("passes", "step", PASSES),
        ("passes_soft", "step_soft", PASSES_SOFT),
    ):
        (wall, cpu), (passes_wall, passes_cpu) = side.seconds(step), side.seconds(*passes)
        seconds = {f"{name}_s": round(side.seconds(name)[0], 3) for name in dict.fromkeys(passes)}
        name = f"meta_pseudo_labels/{line}/{precision}"
        notes = {
            "cpu_ratio": round(passes_cpu / cpu, 3),
            "rounds": rounds,
            "step_s": round(wall, 3),
            **seconds,
        }
        report.line(
            name,
            1 / wall,
            1 / passes_wall,
            "its passes alone",
            goal=round(1 / 1.05, 3),
            unit="steps/s",
            **notes,
        )


def profile(precision: str) -> None:
    """Prints the line of the operations; for its own process, which has one thread."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    step = ours(precision)["step"]
    for _ in range(2):  # compiled, and the memory is there
        step()
    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        step()
        tf.profiler.experimental.stop()
        (file,) = Path(directory).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    spent: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        names = {number: metadata.name for number, metadata in plane.event_metadata.items()}
        for event in (event for line in plane.lines for event in line.events):
            _, colon, operation = (
                names[event.metadata_id].partition("#")[0].rpartition(":")
            )  # model/conv/Conv2D:_MklNativeConv2D
            if (
                colon
                and operation.isidentifier()
                and not operation.startswith("__inference")
                and operation not in ("Process", "Run")
            ):
                spent[operation] += event.duration_ps / 1e9
    most = {name: round(ms) for name, ms in spent.most_common(8)}
    others = round(sum(spent.values())) - sum(most.values())
    print(
        json.dumps(
            {
                "benchmark": f"meta_pseudo_labels/profile/{precision}",
                "unit": "ms",
                **most,
                "others": others,
            }
        ),
        flush=True,
    )


def against_pytorch(rounds: int) -> None:
    """Prints the lines with PyTorch."""
    images = B * (1 + RATIO)
    for name, policy, precision, kept, goal in (
        ("float32", "float32", "float32", False, 1.2),
        ("float32_kept", "float32", "float32", True, 1.0),
        ("bfloat16_kept", "mixed_bfloat16", "bfloat16", True, 1.0),
    ):
        sides = (
            Side("ours", policy, kept=kept),
            Side("peer", precision, channels_last=kept, kept=kept),
        )
        for _ in range(rounds):
            for side in sides:
                side.measure("step")
        for side in sides:
            side.close()
        (wall, cpu), (peer_wall, peer_cpu) = (side.seconds("step") for side in sides)
        what = "MPL-pytorch's step, channels last" if kept else "MPL-pytorch's step"
        notes = {"cpu_ratio": round(peer_cpu / cpu, 3), "rounds": rounds, "images": images}
        report.line(
            f"meta_pseudo_labels/pytorch/{name}",
            images / wall,
            images / peer_wall,
            what,
            goal=goal,
            unit="images/s",
            **notes,
        )


def main(rounds: int = 5) -> None:
    """Prints all lines; without PyTorch the lines with it are left out."""
    for precision in ("float32", "mixed_bfloat16"):
        against_passes(precision, rounds)
        subprocess.run(python_m("benchmarks.meta_pseudo_labels", "profile", precision), check=True)
    if importlib.util.find_spec("torch"):
        against_pytorch(rounds)
    else:
        print(
            "PyTorch is not installed: no comparison with it (see"
            " benchmarks/meta_pseudo_labels.py)",
            file=sys.stderr,
        )


if __name__ == "__main__":
    if sys.argv[1] == "profile":
        profile(sys.argv[2])
    else:
        serve(sys.argv[1], sys.argv[2], bool(sys.argv[3]))
