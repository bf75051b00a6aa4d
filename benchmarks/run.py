"""Runs benchmarks by name, or all of them: `./run_benchmarks.sh [NAME…] [--flag=value…]`; a flag goes to the benchmark that has it.

PEERS=DIR in the environment: where peers are that are no dependencies of the project, from `pip install --target=DIR`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from benchmarks import report
from cli import app
from cli.errors import InputError

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "balance": ("records",),
    "evaluation": (),
    "file_checks": ("images",),
    "input_pipeline": ("images",),
    "look_alikes": ("photos", "images"),
    "meta_pseudo_labels": ("rounds",),
    "pseudo_label": ("images",),
    "serving": ("model", "requests", "clients"),
    "step_memory": ("networks", "batch", "parts"),
    "train_step": ("rounds", "cases"),
}
"""Module -> flags, which are arguments of its `main`."""

FLAGS = {
    "records": "balance: prediction records.",
    "images": "look_alikes: photographs; file_checks, input_pipeline, pseudo_label: JPEG files.",
    "photos": "look_alikes: a folder or a tar archive of photographs; parts of scikit-learn's two if not given.",
    "rounds": "meta_pseudo_labels, train_step: times that everything is measured, in turn.",
    "model": "serving: SERVING_DIR of run_export.sh; an untrained model if not given.",
    "requests": "serving: requests of one image each, to each server.",
    "clients": "serving: connections at the same time.",
    "networks": "step_memory: some of b0, b4, l2, separated by commas.",
    "batch": "step_memory: images a step; 16, and 4 of l2, if not given.",
    "cases": "train_step: some of start, steps, loops, swish, separated by commas.",
    "parts": "step_memory: parts of such a batch; 4 if not given.",
}


TEXTS = ("model", "networks", "cases", "photos")
"""The flags that are no numbers."""


def main(arguments: Sequence[str], **flags: str | None) -> None:
    """Runs the benchmarks `arguments`. Raises InputError for an unknown one, and for flags that are no numbers or nobody's."""
    unknown = [name for name in arguments if name not in BENCHMARKS]
    if unknown:
        raise InputError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    names = list(arguments or BENCHMARKS)
    given = {name: text if name in TEXTS else report.positive(name, text) for name, text in flags.items() if text is not None}
    for flag in given:
        if not any(flag in BENCHMARKS[name] for name in names):
            raise InputError(f"--{flag} is for another benchmark than {', '.join(names)}; --help lists whose it is")
    if peers := os.environ.get("PEERS"):
        sys.path.append(peers)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), peers)))  # for processes of the peers
    for name in names:
        values = {flag: given[flag] for flag in BENCHMARKS[name] if flag in given}
        importlib.import_module(f"benchmarks.{name}").main(**values)


if __name__ == "__main__":
    app.run(main, FLAGS, dict.fromkeys(FLAGS), config=False, positional=True)
