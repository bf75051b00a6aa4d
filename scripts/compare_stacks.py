"""Compares two stacks: one step of each method, data, random numbers, models and exports.

    ./run_tool.sh compare_stacks --other=PYTHON --workdir=DIR

PYTHON is the interpreter of an environment with the other stack. Each side observes the same things
and stores them in DIR/this and DIR/other; then each reads the other's model and export. Prints one
line for each comparison. Exit code 1: a difference is above its limit.

A gradient is what one step of SGD takes from the weights, divided by the learning rate.
"""

from __future__ import annotations

import cli  # noqa: F401  (first: it makes tf.keras Keras 2)

# isort: split

import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from cli import recipes, stack, start
from cli.errors import InputError
from cli.files import file_digest
from cli.work_dirs import finish
from data import prepare
from serving import export, predict
from training import model_dir
from training.run import batches, build_trainer
from workflow import train

_UDA = ("--config.train.uda.ramp_steps=0", "--config.train.uda.threshold=0.0")
METHODS = {
    "noisy_student": ("student", "configs/noisy_student/digits.py"),
    "uda": ("train", "configs/uda/digits.py", *_UDA),
    "fixmatch": ("train", "configs/fixmatch/digits.py", "--config.train.threshold=0.0"),
    "meta_pseudo_labels": ("train", "configs/meta_pseudo_labels/digits.py", *_UDA),
}
"""Method -> section, recipe and flags; with them every unlabeled image counts in the first step."""

LEARNING_RATE = 0.1
LIMITS = {"loss": 1e-5, "gradient": 1e-3, "model": 1e-5, "export": 1e-5}
"""First word of an observation's name -> largest relative (L2) difference; others must be equal."""


def main(other: str, workdir: str) -> int:
    """Compares this stack with that of the interpreter `other`; returns the exit code."""
    mine, others = Path(workdir) / "this", Path(workdir) / "other"
    for directory in (mine, others):
        directory.mkdir(parents=True, exist_ok=True)
    observe(mine)
    _elsewhere(other, "observe", others)
    read(others, mine / "read.npz")
    _elsewhere(other, "read", mine, others / "read.npz")
    names = [(directory / "stack.txt").read_text(encoding="utf-8") for directory in (mine, others)]
    print(" beside ".join(names))
    observed = [dict(np.load(directory / "observed.npz")) for directory in (mine, others)]
    rows = [(name, value, observed[1][name]) for name, value in observed[0].items()]
    for reader, writer, words in ((0, 1, "theirs, read here"), (1, 0, "ours, read there")):
        found = dict(np.load((mine, others)[reader] / "read.npz"))
        rows += [
            (f"{name} ({words})", value, observed[writer][name]) for name, value in found.items()
        ]
    wrong = [name for name, a, b in rows if not _compared(name, a, b)]
    if wrong:
        print(f"above the limit: {', '.join(wrong)}")
    return 1 if wrong else 0


def _elsewhere(python: str, *words: str | Path) -> None:
    command = [python, *start.python_m("scripts.compare_stacks", *map(str, words))[1:]]
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        why = f"{python} cannot be run ({error.strerror})"
        raise InputError(f"--other: {why}; name the interpreter of an environment") from error
    if done.returncode:
        failed = f"{python} failed with exit code {done.returncode}"
        raise InputError(f"--other: {failed}; the lines above say why")


def _compared(name: str, a: np.ndarray, b: np.ndarray) -> bool:
    """Prints how far two observations are apart; returns whether the limit holds."""
    limit = LIMITS.get(name.partition(" ")[0], 0.0)
    alike = (a.shape, a.dtype) == (b.shape, b.dtype)
    if a.dtype.kind != "f" or not alike:
        same = alike and bool((a == b).all())
        print(f"{name:<44}{'equal' if same else 'DIFFERENT':>12}")
        return same
    scale = float(np.linalg.norm(a.astype(np.float64)))
    difference = float(np.linalg.norm(a.astype(np.float64) - b)) / max(scale, 1e-30)
    print(f"{name:<44}{difference:>12.2g}   limit {limit:g}")
    return difference <= limit


def observe(directory: Path) -> None:
    """Writes what this stack computes: `observed.npz`, a model and an export of it, `stack.txt`."""
    found: dict[str, np.ndarray] = {}
    data = directory / "data"
    prepare.main(recipes.from_flags("--config=configs/noisy_student/digits.py"), str(data))
    shards = sorted(data.glob("*/*-of-*"))
    found["shards of the digits"] = np.array([file_digest(path) for path in shards])
    found["random uniform"] = tf.random.stateless_uniform([1000], [1, 2]).numpy()
    found["random normal"] = tf.random.stateless_normal([1000], [1, 2]).numpy()
    for method, (section, recipe, *flags) in METHODS.items():
        config = recipes.from_flags(f"--config={recipe}", *flags)
        found.update(_step(method, config, section, data, directory))
    found.update(_answers(directory))
    np.savez(directory / "observed.npz", **found)
    (directory / "stack.txt").write_text(stack.current(), encoding="utf-8")


def _step(
    name: str, config: ConfigDict, section: str, data: Path, directory: Path
) -> dict[str, np.ndarray]:
    """Takes one step of a method's recipe; saves the model of Noisy Student after it."""
    resolved = train.resolve_training(config, section, str(data))
    method = train.find(config, section)
    values = ConfigDict(resolved["train"])
    if name == "noisy_student":  # the images of two views, and labels for them
        part, uda = METHODS["uda"][:2]
        method_of_batches = train.find(recipes.from_flags(f"--config={uda}"), part)
    else:
        method_of_batches = method
    inputs = train.open_inputs(method_of_batches, resolved, str(data))
    spec = train.spec_of(method, resolved, inputs)
    tf.keras.utils.set_random_seed(resolved["seed"])
    trainer = build_trainer(method, values, spec, 10.0, resolved["seed"], False)
    optimizers = [
        tf.keras.optimizers.SGD(LEARNING_RATE) for _ in method.networks(resolved["train"])
    ]
    trainer.compile(*optimizers)
    trainer.build_optimizers()
    batch = next(
        iter(
            batches(
                method_of_batches,
                values,
                spec.preprocessing,
                inputs,
                resolved["seed"],
                0,
                (1, 0),
                1,
            )
        )
    )
    (images, labels), (weak, strong) = batch
    if name == "noisy_student":
        logits = 3.0 * tf.random.stateless_normal([len(strong), spec.num_classes], [3, 4])
        batch = (images, labels), (strong, tf.nn.softmax(logits))
    before = [variable.numpy() for variable in trainer.trainable_variables]
    logged = tf.function(trainer.train_step, autograph=False)(batch)
    gradient = [
        (old - new.numpy()) / np.float32(LEARNING_RATE)
        for old, new in zip(before, trainer.trainable_variables)
    ]
    if name == "noisy_student":
        model_dir.save(directory / "model", trainer.model, spec)
    return {
        f"batch of {name}": np.concatenate([np.ravel(part) for part in (images, weak, strong)]),
        f"order of {name}": labels.numpy(),
        f"initial weights of {name}": np.concatenate([np.ravel(value) for value in before]),
        f"loss of {name}": np.array(logged["loss"]),
        f"gradient of {name}": np.concatenate([np.ravel(value) for value in gradient]),
    }


def _answers(directory: Path) -> dict[str, np.ndarray]:
    """Exports the model and returns what both answer for the same images."""
    finish(directory, {})
    export.main(str(directory / "serving"), str(directory / "model"))
    return _ask(directory)


def read(directory: Path, output: Path) -> None:
    """Writes to `output` what the model and the export of `directory` answer on this stack."""
    np.savez(output, **_ask(directory))


def _ask(directory: Path) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, [16, 32, 32, 3], np.uint8)
    model, spec = model_dir.load(directory / "model")
    pixels = tf.image.resize(tf.cast(images, tf.float32), [spec.preprocessing.image_size] * 2)
    serve = predict.load(directory / "serving" / export.NAME)
    return {
        "model": tf.nn.softmax(model(pixels)).numpy(),
        "export": serve([tf.io.encode_png(image).numpy() for image in images])["probabilities"],
    }


if __name__ == "__main__":
    action, directory, *output = sys.argv[1:]
    if action == "observe":
        observe(Path(directory))
    else:
        read(Path(directory), Path(output[0]))
