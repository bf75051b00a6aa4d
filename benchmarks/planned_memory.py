"""The planner's memory of a training step, against what XLA's compiler says of the same step.

    ./run_benchmarks.sh planned_memory [--jax=PYTHON] [--networks=b0,resnet50,wrn_28_2] \
        [--batch=32] [--topology=v5e:2x2]

PYTHON is an interpreter that has JAX; without it only the plan is printed. Without --topology the
step is compiled for this CPU. With it the step is compiled for a TPU that is not here, and PYTHON
needs libtpu, too. No step runs. A line has GiB of supervised learning's whole step, in float32:

    planned        weights, slots, average, gradients, and the maps that `training.estimates` counts
    xla            arguments, results and temporary memory; what is shared counts once
    planned_maps   the maps alone; `xla_maps` is `xla` without weights, slots and the like
    ratio          planned / xla; the goal is 0.85 to 1.15

XLA's CPU compiler copies the input of many convolutions into another order of dimensions, and
keeps both. So `xla` is larger on a CPU than on a TPU.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import xla_steps
from cli.errors import InputError
from training import estimates

GIB = 2**30


def main(
    jax: str = "",
    networks: str = ",".join(xla_steps.NETWORKS),
    batch: int = 32,
    topology: str = "",
) -> None:
    """Prints a line for each network.

    Raises:
      InputError: an unknown network, or the compiler failed.
    """
    for network in networks.split(","):
        if network not in xla_steps.NETWORKS:
            known = ", ".join(xla_steps.NETWORKS)
            raise InputError(f"--networks: no {network!r}; there are {known}")
    for network in networks.split(","):
        fixed, maps = planned(network, batch)
        row: dict[str, Any] = {
            "benchmark": f"planned_memory/{network}",
            "batch": batch,
            "planned": round((fixed + maps) / GIB, 3),
            "planned_maps": round(maps / GIB, 3),
        }
        if jax:
            xla = compiled(network, batch, jax, topology)
            row |= {
                "device": topology or "CPU",
                "xla": round(xla / GIB, 3),
                "xla_maps": round((xla - fixed) / GIB, 3),
                "ratio": round((fixed + maps) / xla, 3),
                "goal": [0.85, 1.15],
            }
        print(json.dumps({**row, "unit": "GiB"}), flush=True)


def planned(network: str, batch: int) -> tuple[int, int]:
    """Returns the planner's bytes of weights and what goes with them, and of maps."""
    size, classes = xla_steps.NETWORKS[network]
    model = {"name": network}
    parameters = estimates.count_parameters(model, classes, size)
    fixed = estimates.of_weights(parameters.trained, True) * GIB
    fixed += 2 * 4 * (parameters.all - parameters.trained)
    maps = estimates.activations(model, size, batch, 4, False, fused=True)
    assert maps is not None, network
    return int(fixed), int(maps * GIB)


def compiled(network: str, batch: int, jax: str, topology: str) -> int:
    """Returns the bytes that XLA's compiler says. Raises InputError where it fails."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "step.hlo.pb"
        program.write_bytes(xla_steps.program(network, batch))
        command = [jax, str(Path(__file__).parent / "hlo" / "memory.py"), str(program)]
        command += [f"--topology={topology}"] if topology else []
        default = {} if topology else {"XLA_FLAGS": xla_steps.NO_LLVM}
        environment = {**default, **os.environ}
        environment.pop("PYTHONPATH", None)
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        except OSError as error:
            raise InputError(f"--jax: {jax} cannot be run ({error.strerror})") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{jax} did not compile the step of {network}: {why}")
    said = json.loads(done.stdout.splitlines()[-1])
    return int(said["arguments"] + said["results"] - said["shared"] + said["temporary"])
