"""Runs benchmarks by name, or all of them.

    ./run_benchmarks.sh [NAME…] [--flag=value…]

A flag goes to the benchmark that has it. PEERS=DIR in the environment says where the peers are that
the project does not depend on, from `pip install --target=DIR`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence

from benchmarks import report
from cli.errors import InputError
from training import processor

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "balance": ("records",),
    "buckets": ("images",),
    "evaluation": (),
    "file_checks": ("images",),
    "formats": ("trained", "rounds"),
    "input_pipeline": ("images",),
    "labels_beside": ("images",),
    "look_alikes": ("photos", "images"),
    "meta_pseudo_labels": ("rounds",),
    "processor": ("rounds",),
    "pseudo_label": ("images",),
    "relabel": ("records",),
    "rollover": ("requests", "clients", "image_size"),
    "serving": ("model", "requests", "clients", "sweep"),
    "several_devices": ("images",),
    "several_hosts": ("images",),
    "step_memory": ("networks", "batch", "parts"),
    "train_step": ("rounds", "cases"),
    "xla_steps": ("networks", "methods", "batch"),
}
"""Module -> flags, which are arguments of its `main`."""


def main(arguments: Sequence[str], **flags: str | int | None) -> None:
    """Runs the benchmarks `arguments`.

    Raises:
      InputError: a benchmark is unknown, or none of them has a flag.
    """
    unknown = [name for name in arguments if name not in BENCHMARKS]
    if unknown:
        raise InputError(f"there is no benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}")
    names = list(arguments or BENCHMARKS)
    given = {name: value for name, value in flags.items() if value is not None}
    for flag in given:
        if not any(flag in BENCHMARKS[name] for name in names):
            raise InputError(
                f"--{flag} has no effect on {', '.join(names)}; --help says which benchmarks take "
                "it"
            )
    report.find_peers()
    print(json.dumps({"machine": processor.machine()}), flush=True)
    for name in names:
        values = {flag: given[flag] for flag in BENCHMARKS[name] if flag in given}
        importlib.import_module(f"benchmarks.{name}").main(**values)
