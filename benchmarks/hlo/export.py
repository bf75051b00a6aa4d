"""Writes compiled training steps as HLO, for a machine that has an accelerator but no TensorFlow.

    python -m benchmarks.hlo.export DIR [NETWORK/METHOD ...] [--batch=4] [--pixels=N]
                                        [--precision=float32|mixed_bfloat16]

Without names: supervised learning, Noisy Student, FixMatch and UDA of EfficientNet-B0 and of
ResNet-50, and Meta Pseudo Labels of WRN-28-2, as `benchmarks.xla_steps` compiles them.
NETWORK may also be a smaller Wide ResNet, such as wrn_10_1, to try it.
DIR/NETWORK-METHOD-PRECISION/ holds the module (`step.hlo.pb`), what its arguments are (`step.json`
and `arrays.npz`; weights are drawn, not stored) and the loss that TensorFlow computed on
this machine's CPU. Then, on the other machine: `python benchmarks/hlo/run.py DIR`.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import xla_steps
from benchmarks.hlo import run

STEPS = (
    *(f"{network}/{method}" for network in ("b0", "resnet50") for method in xla_steps.METHODS[:-1]),
    "wrn_28_2/meta_pseudo_labels",
)
STORED_AT_MOST = 4096
"""Largest number of elements of a stored array; larger arrays are drawn."""


def export(
    directory: Path,
    network: str,
    method: str,
    batch: int,
    pixels: int | None,
    precision: str = "float32",
) -> dict[str, Any]:
    """Writes one step.

    Args:
      directory: folder for the step's three files; made where it is missing.
      network: a name in `xla_steps.NETWORKS`.
      method: a name in `xla_steps.METHODS`.
      batch: labeled images a step.
      pixels: side of the images; None: the network's usual one.
      precision: Keras's policy.

    Returns:
      What `step.json` holds.
    """
    tf.keras.mixed_precision.set_global_policy(precision)
    made, data = (
        xla_steps.trainer(network, method, pixels),
        xla_steps.batch_of(network, method, batch, pixels),
    )
    step = tf.function(made.train_step, jit_compile=True, autograph=False)
    concrete = step.get_concrete_function(data)
    stored: dict[str, np.ndarray] = {}
    seeds: dict[bytes, int] = {}  # an array's bytes -> the seed that it is drawn with
    images = [tensor for tensor in tf.nest.flatten(data) if tensor.shape.rank == 4]
    arguments = []
    fed = []
    for tensor in tf.nest.flatten(data):
        is_image = tensor.shape.rank == 4
        kind = _uniform(tensor, seeds) if is_image else _kind(tensor.numpy(), stored, seeds)
        arguments.append(kind)
        fed.append(tf.constant(run.draw(kind, stored)))
    # XLA takes the values of the variables after all other arguments.
    for captured in sorted(
        concrete.captured_inputs, key=lambda tensor: tensor.dtype == tf.resource
    ):
        arguments.append(_captured(captured, stored, seeds))
    data = tf.nest.pack_sequence_as(data, fed)
    directory.mkdir(parents=True, exist_ok=True)
    program = step.experimental_get_compiler_ir(data)(stage="hlo_serialized")
    (directory / run.PROGRAM).write_bytes(program)
    np.savez(directory / run.STORED, **stored)
    values = step(data)
    description = {
        "network": network,
        "method": method,
        "precision": precision,
        "pixels": int(images[0].shape[1]),
        "classes": int(made.model.output_shape[-1]),
        "images": [int(tensor.shape[0]) for tensor in images],
        "arguments": arguments,
        "loss_output": sorted(values).index("loss"),
        "loss": float(values["loss"]),
    }
    (directory / run.STEP).write_text(json.dumps(description), encoding="utf-8")
    return description


def _uniform(tensor: tf.Tensor, seeds: dict[bytes, int]) -> dict[str, Any]:
    """Describes images: uniform in 0-255, each batch with its own seed."""
    seed = seeds.setdefault(b"images %d" % len(seeds), len(seeds))
    return {"shape": list(tensor.shape), "dtype": "float32", "uniform": [seed, 0.0, 255.0]}


def _kind(
    value: np.ndarray, stored: dict[str, np.ndarray], seeds: dict[bytes, int]
) -> dict[str, Any]:
    """Describes an array as `run.draw` takes it; equal large arrays become equal again."""
    described: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype)}
    if value.size and (value == value.flat[0]).all():
        return {**described, "constant": value.flat[0].item()}
    if value.size <= STORED_AT_MOST:
        name = f"a{len(stored)}"
        stored[name] = value
        return {**described, "stored": name}
    seed = seeds.setdefault(value.tobytes(), len(seeds))
    return {**described, "normal": [seed, float(value.mean()), float(value.std())]}


def _captured(
    tensor: tf.Tensor, stored: dict[str, np.ndarray], seeds: dict[bytes, int]
) -> dict[str, Any]:
    """Describes a captured tensor or variable; a variable takes the values of its description."""
    if tensor.dtype != tf.resource:
        return _kind(tensor.numpy(), stored, seeds)
    dtype = tf.as_dtype(tensor._handle_data.shape_and_type[0].dtype)
    value = tf.raw_ops.ReadVariableOp(resource=tensor, dtype=dtype).numpy()
    kind = _kind(value, stored, seeds)
    tf.raw_ops.AssignVariableOp(resource=tensor, value=tf.constant(run.draw(kind, stored), dtype))
    return kind


def main() -> None:
    """Writes the steps that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("steps", nargs="*", default=STEPS, metavar="NETWORK/METHOD")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--precision", default="float32", choices=tuple(run.TOLERANCE))
    given = parser.parse_args()
    for name in given.steps:
        network, _, method = name.partition("/")
        if method not in xla_steps.METHODS:
            parser.error(f"there is no step {name!r}; known: {', '.join(STEPS)}")
        directory = given.directory / f"{network}-{method}-{given.precision}"
        row = export(directory, network, method, given.batch, given.pixels, given.precision)
        print(f"{directory}: loss {row['loss']:.6f}", flush=True)


if __name__ == "__main__":
    main()
