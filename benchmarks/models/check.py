"""Checks every architecture against an independent implementation with the same numbers.

    ./run_tool.sh check_models --workdir=runs/check_models [--only=timm:b0,keras:b7]

The numbers go through the importers where there is one. Needs PyTorch, timm and torchvision, which
the project does not (see docs/models.md). Each check runs in its own process and leaves
WORKDIR/<check>.json; a finished one is not repeated. At the end the table in docs/models.md is
written from all results. Exit code 1, after a line each on stderr, where a number passes its bound
(`BOUNDS`) or a check that was asked for has no result.

The peers get random weights, scales and shifts, and moving averages that fit the activations, so
that no layer is an identity. Checks: timm:<variant> and keras:<variant>, logits; gradients:b0, of a
training step; torchvision:resnet50 and torch:wrn_28_2, logits; files:<variant>, `.keras` and
SavedModel written and loaded; noise:b0, how often each layer of noise drops.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.models import torch_peers
from benchmarks.models.page import MODELS, markdown_table, replace_section
from cli.errors import InputError
from cli.json_files import read_json, write_json
from cli.start import python_m
from data.preprocessing import Preprocessing
from efficientnet.architectures import ARCHITECTURES
from nets.noise import StochasticDepth, model_noise
from training import models
from training.model_dir import ModelSpec
from weights import export_weights, import_weights, names, weight_files

EFFICIENTNETS = tuple(f"b{i}" for i in range(9))
CHECKS = (
    *(f"timm:{name}" for name in (*EFFICIENTNETS, "l2")),
    *(f"keras:{name}" for name in EFFICIENTNETS[:8]),
    "gradients:b0",
    "torchvision:resnet50",
    "torch:wrn_28_2",
    "noise:b0",
    *(f"files:{name}" for name in (*EFFICIENTNETS, "l2", "resnet50", "wrn_28_2")),
)
BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "timm": {"deviation": (0.0, 1e-4), "spread": (0.1, math.inf), "agreement_lost": (-1.0, 0.1)},
    "timm:b0": {"back_in_timm": (0.0, 0.0)},
    "keras": {"deviation": (0.0, 1e-5), "spread": (0.1, math.inf)},
    "gradients": {"deviation": (0.0, 1e-3)},
    "torchvision": {"deviation": (0.0, 1e-4), "spread": (0.1, math.inf)},
    "torch": {"deviation": (0.0, 1e-4), "spread": (0.1, math.inf)},
    "noise": {"standard_errors": (0.0, 4.0)},
    "files": {"keras_deviation": (0.0, 0.0), "saved_model_deviation": (0.0, 0.0)},
}
"""Least and largest value of a result's numbers, by kind of check or check.

`agreement_lost`: the peer's top-1 in bfloat16 minus ours."""

SECONDS = 900  # at most, of a check; then it counts as not done

CLASSES = 1000


def main(workdir: str, only: str | None, run: str | None) -> None:
    """Runs the checks that have no result yet, and writes the table.

    Raises:
      InputError: `only` names an unknown check.
      SystemExit: the models fail.
    """
    if run:
        kind, _, name = run.partition(":")
        write_json(Path(workdir) / f"{run}.json", _KINDS[kind](name, Path(workdir)))
        return
    wanted = only.split(",") if only else list(CHECKS)
    unknown = [check for check in wanted if check not in CHECKS]
    if unknown:
        raise InputError(f"--only: there is no check {unknown[0]!r}; known: {', '.join(CHECKS)}")
    for check in wanted:
        if (Path(workdir) / f"{check}.json").exists():
            continue
        began = time.time()
        try:
            command = python_m(
                "cli", "tool", "check_models", f"--workdir={workdir}", f"--run={check}"
            )
            process = subprocess.run(command, timeout=SECONDS, check=False)
            done = "done" if process.returncode == 0 else f"FAILED ({process.returncode})"
        except subprocess.TimeoutExpired:
            done = f"NOT DONE in {SECONDS} s"
        print(f"{check}: {done}, {time.time() - began:.0f} s", flush=True)
    results = {
        check: read_json(path)
        for check in CHECKS
        if (path := Path(workdir) / f"{check}.json").exists()
    }
    replace_section(MODELS, "checks", _tables(results))
    print(f"{len(results)} of {len(CHECKS)} checks have a result; the table is in {MODELS}")
    failed = [f"{check}: no result" for check in wanted if check not in results] + _over_bounds(
        results
    )
    if failed:
        print("\n".join(f"FAILED {line}" for line in failed), file=sys.stderr)
        sys.exit(1)


def _bounds(check: str) -> dict[str, tuple[float, float]]:
    return {**BOUNDS[check.partition(":")[0]], **BOUNDS.get(check, {})}


def _over_bounds(results: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a line for each number that is missing, not a number, or not within its bounds."""
    lines = []
    for check, found in results.items():
        numbers = {
            "agreement_lost": (
                found.get("agreement_peer", math.nan) - found.get("agreement", math.nan)
            ),
            **found,
        }
        for key, (least, largest) in _bounds(check).items():
            value = numbers.get(key, math.nan)
            if not least <= value <= largest:
                lines.append(f"{check}: {key} is {value:.3g}, not from {least:g} to {largest:g}")
    return lines


def _images(count: int, size: int) -> np.ndarray:
    """Returns coarse colored patches, float32 (count, size, size, 3) in 0-255.

    Fine noise would look the same to a network in every image.
    """
    patches = tf.random.stateless_uniform([count, 4, 4, 3], [1, 2], 0.0, 255.0)
    return tf.image.resize(patches, [size, size]).numpy()


def _compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Returns largest deviation and spread over the images, both as parts of the largest logit."""
    scale = float(np.abs(theirs).max())
    return {
        "deviation": float(np.abs(ours - theirs).max()) / scale,
        "spread": float(np.ptp(theirs, axis=0).max()) / scale,
    }


def _size_of(name: str) -> tuple[int, int, int]:
    """Returns pixels, images of the float32 comparison, images of the bfloat16 comparison."""
    return (64, 4, 16) if name == "l2" else (64, 16, 128)


def _spec(name: str, size: int) -> ModelSpec:
    return ModelSpec(
        {"name": name},
        Preprocessing(image_size=size, style="imagenet"),
        tuple(map(str, range(CLASSES))),
    )


def check_timm(name: str, workdir: Path) -> dict[str, Any]:
    """Compares the logits of timm's tf_efficientnet_* with ours, its safetensors imported.

    Compares top-1 in bfloat16, and the way back to timm, too.
    """
    size, count, many = _size_of(name)
    images = _images(many, size)
    spec = _spec(name, size)
    normalized = (images - np.array(spec.preprocessing.mean)) / np.array(spec.preprocessing.std)
    peer = torch_peers.efficientnet(export_weights.TIMM[name], CLASSES)
    torch_peers.settle(peer, normalized[: max(8, count)])
    theirs = torch_peers.logits(peer, normalized)
    directory = workdir / f"timm_{name}"
    torch_peers.save(peer, directory / f"{export_weights.TIMM[name]}.safetensors")
    theirs_bfloat16 = torch_peers.logits(peer, normalized, bfloat16=True)
    del peer

    source = weight_files.open_weights(
        directory / f"{export_weights.TIMM[name]}.safetensors", average=True
    )
    model = import_weights.convert(source, spec)
    ours = model.predict(images, batch_size=count, verbose=0)
    result: dict[str, Any] = {"size": size, "images": len(images), **_compare(ours, theirs)}
    if name == "b0":
        export_weights.to_timm(directory / "back" / "model.safetensors", model, spec)
        again = torch_peers.efficientnet(export_weights.TIMM[name], CLASSES)
        torch_peers.load(again, directory / "back" / "model.safetensors")
        result["back_in_timm"] = float(np.abs(torch_peers.logits(again, normalized) - theirs).max())
    weights = model.get_weights()
    del model
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    half = spec.build()
    half.set_weights(weights)
    ours_bfloat16 = half.predict(images, batch_size=count, verbose=0)
    agreement = {"agreement": ours_bfloat16, "agreement_peer": theirs_bfloat16}
    for path in sorted(directory.rglob("*.*")):
        path.unlink()
    return {
        **result,
        **{
            key: float((np.argmax(value, -1) == np.argmax(theirs, -1)).mean())
            for key, value in agreement.items()
        },
    }


def check_keras(name: str, workdir: Path) -> dict[str, Any]:
    """Compares the logits of keras.applications' model with ours, its .h5 imported."""
    size, count, _ = _size_of(name)
    images = _images(count, size)
    build = getattr(tf.keras.applications, export_weights.KERAS[name])
    peer = build(
        weights=None, classes=CLASSES, input_shape=(size, size, 3), classifier_activation=None
    )
    generator = np.random.Generator(np.random.PCG64(0))
    norms = [
        layer for layer in peer.layers if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    for layer in norms:
        layer.gamma.assign(generator.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(generator.normal(0, 0.2, layer.beta.shape))
        layer.momentum = 0.0
    peer(images, training=True)
    for layer in norms:
        variance = layer.moving_variance.numpy()
        layer.moving_variance.assign(np.maximum(variance, 0.3 * variance.mean()))
    path = workdir / f"keras_{name}.h5"
    peer.save_weights(path)
    opened = weight_files.open_weights(path, average=True)
    spec = import_weights.describe(opened, {"name": name}, image_size=size)
    ours = import_weights.convert(opened, spec)(images, training=False).numpy()
    path.unlink()
    return {"size": size, "images": count, **_compare(ours, peer(images, training=False).numpy())}


def check_gradients(name: str, workdir: Path) -> dict[str, Any]:
    """Compares the gradients of the cross entropy of a training step in all variables.

    The step has batch statistics and no dropout.
    """
    size, count = 64, 16
    images, labels = _images(count, size), np.arange(count) * 7
    spec = _spec(name, size)
    normalized = (images - np.array(spec.preprocessing.mean)) / np.array(spec.preprocessing.std)
    peer = torch_peers.efficientnet(export_weights.TIMM[name], CLASSES)
    torch_peers.settle(peer, normalized)
    path = workdir / "gradients" / f"{export_weights.TIMM[name]}.safetensors"
    torch_peers.save(peer, path)
    source = weight_files.open_weights(path, average=True)
    quiet = ModelSpec(
        {"name": name, "dropout": 0.0, "survival_probability": 1.0},
        spec.preprocessing,
        spec.label_names,
    )
    model = import_weights.convert(source, quiet)
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, model(images, training=True)
        )
        loss = tf.reduce_mean(losses)
    ours = dict(
        zip(
            [v.name.partition(":")[0] for v in model.trainable_variables],
            tape.gradient(loss, model.trainable_variables),
        )
    )
    single = torch_peers.gradients(peer, normalized, labels)
    exact = torch_peers.gradients(peer, normalized, labels, double=True)
    largest = max(float(np.abs(value).max()) for value in exact.values())

    def deviations(found: dict[str, np.ndarray]) -> dict[str, float]:
        # A gradient that is zero but for rounding (a shift before batch normalization has one) is
        # compared with the largest of all.
        scales = {
            key: max(float(np.abs(value).max()), 1e-3 * largest) for key, value in exact.items()
        }
        return {
            key: float(np.abs(found[key] - exact[key]).max()) / scale
            for key, scale in scales.items()
        }

    table = {weight.keras: weight for weight in names.of_architecture({"name": name}, CLASSES)}
    worst = deviations(
        {table[key].timm: table[key].to_timm(gradient.numpy()) for key, gradient in ours.items()}
    )
    path.unlink()
    return {
        "size": size,
        "images": count,
        "deviation": max(worst.values()),
        "variable": max(worst, key=lambda key: worst[key]),
        "deviation_peer": max(deviations(single).values()),
    }


def check_torch(name: str, workdir: Path) -> dict[str, Any]:
    """Compares the logits of a PyTorch residual network with ours with its numbers."""
    size = 64 if name == "resnet50" else 32
    images = _images(16, size)
    spec = _spec(name, size)
    normalized = (images - np.array(spec.preprocessing.mean)) / np.array(spec.preprocessing.std)
    peer = (
        torch_peers.resnet50(CLASSES)
        if name == "resnet50"
        else torch_peers.WideResNet(28, 2, CLASSES)
    )
    torch_peers.settle(peer, normalized)
    arguments = {"name": name, "batch_norm_epsilon": 1e-5}
    model = models.build(
        arguments, CLASSES, mean=spec.preprocessing.mean, std=spec.preprocessing.std, seed=0
    )
    state = torch_peers.residual_state(peer, name)
    variables = {variable.name.partition(":")[0]: variable for variable in model.weights}
    assert set(state) == set(variables), sorted(set(state) ^ set(variables))
    for key, value in state.items():
        variables[key].assign(value)
    return {
        "size": size,
        "images": 16,
        **_compare(model(images, training=False).numpy(), torch_peers.logits(peer, normalized)),
    }


def check_files(name: str, workdir: Path) -> dict[str, Any]:
    """Writes and loads the full model as .keras and SavedModel; logits must be the same bits."""
    size = 64
    arguments = {"name": name}
    model = models.build(
        arguments, CLASSES, mean=(127.5,) * 3, std=(127.5,) * 3, seed=1, sync_batch_norm=True
    )
    images = _images(2, size)
    expected = model.predict(images, verbose=0)
    result: dict[str, Any] = {"size": size}
    for form, ending in (("keras", ".keras"), ("saved_model", "")):
        path = workdir / f"files_{name}{ending}"
        began = time.time()
        if form == "keras":
            model.save(path)
            again = tf.keras.models.load_model(path)
            norms = [
                layer
                for layer in again.layers
                if isinstance(layer, tf.keras.layers.BatchNormalization)
            ]
            assert norms and all(layer.synchronized for layer in norms)
            actual = again.predict(images, verbose=0)
        else:
            model.export(str(path))
            served = tf.saved_model.load(str(path))  # its variables live as long as it does
            actual = served.serve(images).numpy()
        result[f"{form}_deviation"] = float(
            np.abs(actual - expected).max() / np.abs(expected).max()
        )
        result[f"{form}_seconds"] = time.time() - began
        _remove(path)
    return result


def check_noise(name: str, workdir: Path) -> dict[str, Any]:
    """Counts how often each layer drops an example in 100,000 draws.

    The result is the difference from its probability, in standard errors.
    """
    draws = 100_000
    model = _spec(name, 64).build()
    layers = [layer for layer in model.layers if isinstance(layer, StochasticDepth)]
    deviations = {}
    with model_noise(1, 2, tf.range(draws), draws):
        for layer in layers:
            kept = float(np.mean(layer(tf.ones([draws, 1, 1, 1]), training=True).numpy() > 0))
            p = layer.survival_probability
            deviations[layer.name] = (kept - p) / np.sqrt(p * (1 - p) / draws)
        dropout = model.get_layer("top_dropout")
        kept = float(np.mean(dropout(tf.ones([draws, 1]), training=True).numpy() > 0))
        deviations["top_dropout"] = (kept - (1 - dropout.rate)) / np.sqrt(
            dropout.rate * (1 - dropout.rate) / draws
        )
    return {
        "draws": draws,
        "layers": len(deviations),
        "standard_errors": max(map(abs, deviations.values())),
    }


def _remove(path: Path) -> None:
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


_KINDS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "timm": check_timm,
    "keras": check_keras,
    "gradients": check_gradients,
    "torchvision": check_torch,
    "torch": check_torch,
    "files": check_files,
    "noise": check_noise,
}
assert set(EFFICIENTNETS) < set(ARCHITECTURES)


def _tables(results: dict[str, dict[str, Any]]) -> str:
    """Returns the page's section."""
    logits = []
    for check, found in results.items():
        kind, name = check.split(":")
        if kind in ("timm", "keras", "torchvision", "torch"):
            agreement = [
                f"{100 * found[key]:.1f} %" if key in found else ""
                for key in ("agreement", "agreement_peer")
            ]
            logits.append(
                [
                    name,
                    kind,
                    str(found["size"]),
                    str(found["images"]),
                    f"{found['deviation']:.1e}",
                    f"{found['spread']:.2f}",
                    *agreement,
                ]
            )
    parts = [
        markdown_table(
            [
                "model",
                "peer",
                "pixels",
                "images",
                "largest deviation",
                "spread",
                "top-1 in bfloat16: ours",
                "the peer's own",
            ],
            sorted(logits, key=lambda row: row[1]),
        )
    ]
    if "back_in_timm" in results.get("timm:b0", {}):
        parts.append(
            "B0 exported and loaded into timm again: logits differ by"
            f" {results['timm:b0']['back_in_timm']:.0e}."
        )
    if found := results.get("gradients:b0"):
        parts.append(
            "Gradients of a training step of B0, every variable against timm's in float64: within"
            f" {found['deviation']:.1e} of the variable's largest; timm's own in float32 within"
            f" {found['deviation_peer']:.1e}."
        )
    if found := results.get("noise:b0"):
        parts.append(
            f"Noise of B0: over {found['draws']:,} draws the keep rates of its"
            f" {found['layers']} layers lie within {found['standard_errors']:.1f} standard errors"
            " of their probabilities."
        )
    files = [
        [
            check.split(":")[1],
            *(
                f"{found[f'{form}_{key}']:{spec}}"
                for form in ("keras", "saved_model")
                for key, spec in (("deviation", ".0e"), ("seconds", ".0f"))
            ),
        ]
        for check, found in results.items()
        if check.startswith("files:")
    ]
    if files:
        parts.append(
            markdown_table(
                ["model", ".keras: deviation", "seconds", "SavedModel: deviation", "seconds"], files
            )
        )
    bounds = [
        [check, key, f"{least:g}", f"{largest:g}"]
        for check, numbers in BOUNDS.items()
        for key, (least, largest) in numbers.items()
    ]
    parts += [
        "The bounds, past which the command fails:",
        markdown_table(["checks", "number", "least", "largest"], bounds),
    ]
    if over := _over_bounds(results):
        parts.append(f"**Past its bound:** {'; '.join(over)}.")
    missing = [check for check in CHECKS if check not in results]
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join(parts)
