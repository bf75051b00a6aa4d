"""Prints what XLA's compiler says of a step's memory, for this CPU or a TPU that is not here.

    python benchmarks/hlo/memory.py STEP.hlo.pb [--topology=v5e:2x2]

It needs JAX, no other file of the project but its neighbor, and no TensorFlow. With --topology
it also needs libtpu, whose compiler needs no TPU. One JSON line, in bytes: `arguments`, `results`,
`shared` (results that take the place of arguments) and `temporary`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import run


def for_topology(program: bytes, topology: str) -> Any:
    """Compiles a serialized HLO module for one device of a TPU topology, such as "v5e:2x2"."""
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies
    from jaxlib import _hlo, _jax

    # Else libtpu asks this machine's surroundings for a TPU. The topology counts, not these.
    here = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", **here}.items():
        os.environ.setdefault(name, value)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:1]
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(_hlo.XlaComputation(program))
    # The compiler of a topology takes no copies of XLA's own dialect.
    text = re.sub(r"mhlo\.copy(?= )", "stablehlo.optimization_barrier", text)
    module = ir.Module.parse(text, context=mlir.make_ir_context())
    options = xla_client.CompileOptions()
    return devices[0].client.compile(module, _jax.DeviceList(tuple(devices)), options)


def main() -> None:
    """Compiles the step and prints the line."""
    import jax

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("--topology")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    program = given.program.read_bytes()
    if given.topology:
        executable = for_topology(program, given.topology)
    else:
        executable, _ = run.compiled(program)
    said = executable.get_compiled_memory_stats()
    row = {
        "arguments": said.argument_size_in_bytes,
        "results": said.output_size_in_bytes,
        "shared": said.alias_size_in_bytes,
        "temporary": said.temp_size_in_bytes,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
