"""Runs training steps that `benchmarks.hlo.export` wrote through JAX's runtime: loss, time, memory.

    python benchmarks/hlo/run.py DIR [--rounds=20]

For a machine with an accelerator and no TensorFlow. It needs NumPy and JAX, no other file of the
project. For each step in DIR one JSON line:

    loss, expected, agrees   loss of the step, what TensorFlow had, and whether they differ by at
                             most 1e-3 of it (float32) or 2e-2 (bfloat16)
    compile_seconds          of the whole step
    milliseconds             of one step, the median of the rounds; its inputs are on the device
    peak_mib                 of the device's memory; where it is not counted, the compiler's sum of
                             arguments, results and temporaries
    peer, peer_milliseconds, peer_peak_mib
                             timm's network in PyTorch, as many images, in bfloat16, where both are
                             installed and timm has the network

So far it has run on a CPU only (JAX 0.10.2), with a small Wide ResNet. It uses parts of JAX that
are not public: another version may need other lines in `compiled`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

STEP, STORED, PROGRAM = "step.json", "arrays.npz", "step.hlo.pb"
TOLERANCE = {"float32": 1e-3, "mixed_bfloat16": 2e-2}
"""Largest difference of the losses, as a part of the expected one."""

TIMM = {"b0": "efficientnet_b0", "resnet50": "resnet50"}
"""Network -> timm's name of it."""


def draw(kind: dict[str, Any], stored: Any) -> np.ndarray:
    """Returns one argument of the step, on every machine the same.

    Args:
      kind: `shape`, `dtype`, and one of `constant` (its value), `normal` (seed, mean, std),
        `uniform` (seed, low, high) and `stored` (its name).
      stored: name -> array.
    """
    shape, dtype = tuple(kind["shape"]), np.dtype(kind["dtype"])
    if "stored" in kind:
        return np.asarray(stored[kind["stored"]], dtype)
    if "constant" in kind:
        return np.full(shape, kind["constant"], dtype)
    if "normal" in kind:
        seed, mean, std = kind["normal"]
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return np.asarray(mean + std * values, dtype)
    seed, low, high = kind["uniform"]
    values = np.random.default_rng(seed).random(shape, np.float32)
    return np.asarray(low + (high - low) * values, dtype)


def compiled(program: bytes) -> tuple[Any, Callable[[list[Any]], list[Any]]]:
    """Compiles a serialized HLO module for the first device.

    Returns:
      The executable, and a function from its arguments to its results, both on the device.
    """
    from jax._src import xla_bridge
    from jax._src.lib import xla_client
    from jaxlib import _hlo, _jax

    client = xla_bridge.get_backend()
    to_mlir = xla_client._xla.mlir.xla_computation_to_mlir_module
    module = to_mlir(_hlo.XlaComputation(program))
    devices = _jax.DeviceList(tuple(client.local_devices()[:1]))
    executable = client.compile_and_load(module, devices, xla_client.CompileOptions())

    def call(arguments: list[Any]) -> list[Any]:
        results = executable.execute_sharded(arguments).disassemble_into_single_device_arrays()
        return [result[0] for result in results]

    return executable, call


def measure(directory: Path, rounds: int) -> dict[str, Any]:
    """Compiles and times the step in `directory`."""
    import jax

    # Counters are int64, and JAX would make int32 of them.
    jax.config.update("jax_enable_x64", True)
    step = json.loads((directory / STEP).read_text(encoding="utf-8"))
    with np.load(directory / STORED) as stored:
        arguments = [draw(kind, stored) for kind in step["arguments"]]
    began = time.monotonic()
    executable, call = compiled((directory / PROGRAM).read_bytes())
    seconds = time.monotonic() - began

    def placed() -> list[Any]:
        # Anew for each call, since the step's variables take the place of the arguments.
        copies = [jax.device_put(array, may_alias=False) for array in arguments]
        return list(jax.block_until_ready(copies))

    loss = float(np.asarray(call(placed())[step["loss_output"]]))
    tolerance = TOLERANCE[step["precision"]]
    agrees = abs(loss - step["loss"]) <= tolerance * abs(step["loss"])
    times = timed(placed, lambda given: jax.block_until_ready(call(given)), rounds)
    device = jax.local_devices()[0]
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    planned = executable.get_compiled_memory_stats()
    said = planned.argument_size_in_bytes + planned.output_size_in_bytes
    said += planned.temp_size_in_bytes
    names = ("network", "method", "pixels", "images", "precision")
    return {
        "benchmark": f"hlo/{directory.name}",
        **{name: step[name] for name in names},
        "device": device.device_kind,
        "loss": loss,
        "expected": step["loss"],
        "agrees": agrees,
        "compile_seconds": round(seconds, 1),
        "milliseconds": times,
        "peak_mib": round((counted or said) / 2**20, 1),
        **peer(step, rounds),
    }


def timed(prepare: Callable[[], Any], run: Callable[[Any], Any], rounds: int) -> float:
    """Returns the median of `rounds` calls after a first one, in milliseconds.

    `run` gets what `prepare` returns. The time of `prepare` does not count.
    """
    spent = []
    for _ in range(rounds + 1):
        given = prepare()
        began = time.perf_counter()
        run(given)
        spent.append(time.perf_counter() - began)
    spent = spent[1:]
    return round(1000 * statistics.median(spent), 2)


def peer(step: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times timm's network on as many images, by SGD in bfloat16; returns {} where it cannot."""
    name = TIMM.get(step["network"])
    try:
        import timm
        import torch
    except ImportError:
        return {}
    if name is None or step["method"] == "meta_pseudo_labels":
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = timm.create_model(name, num_classes=step["classes"]).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    size, count = step["pixels"], sum(step["images"])
    images = torch.rand(count, 3, size, size, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device)

    def run(_: None) -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    times = timed(lambda: None, run, rounds)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    row = {"peer": f"timm {timm.__version__} {name}, PyTorch {torch.__version__}, bfloat16"}
    return {**row, "peer_milliseconds": times, "peer_peak_mib": peak and round(peak, 1)}


def main() -> None:
    """Prints a line for each step; exits with 1 where a loss differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="Directory that benchmarks.hlo.export wrote.")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    alone = (given.directory / STEP).exists()
    found = (
        [given.directory]
        if alone
        else sorted(path.parent for path in given.directory.glob(f"*/{STEP}"))
    )
    if not found:
        sys.exit(f"error: {given.directory} holds no steps; make some with benchmarks.hlo.export")
    if not alone:  # the peaks of memory are a process's: each step gets its own
        command = [sys.executable, __file__, f"--rounds={given.rounds}"]
        codes = [
            subprocess.run([*command, str(directory)], check=False).returncode
            for directory in found
        ]
        sys.exit(1 if any(codes) else 0)
    row = measure(found[0], given.rounds)
    print(json.dumps(row), flush=True)
    sys.exit(0 if row["agrees"] else 1)


if __name__ == "__main__":
    main()
