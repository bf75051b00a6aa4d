"""Reads which of a run's processes this one is, from TensorFlow's `TF_CONFIG`."""

from __future__ import annotations

import dataclasses
import json
import os

from cli.errors import InputError


@dataclasses.dataclass(frozen=True)
class Task:
    """Description of this process among those of a run, one a machine.

    Attributes:
      kind: `worker`, or `chief`.
      index: its number among those of its kind, from 0.
      count: number of processes.
      address: its own, HOST:PORT.
      chief: whether it is the one that writes the files of the run.
    """

    kind: str
    index: int
    count: int
    address: str
    chief: bool


def task() -> Task:
    """Returns what `TF_CONFIG` says. Raises InputError where it names no workers."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text or "{}")
        cluster, kind, index = config["cluster"], config["task"]["type"], config["task"]["index"]
        address = cluster[kind][int(index)]
        count = sum(map(len, cluster.values()))
        # As TensorFlow has it: the first worker, unless the cluster names a chief.
        chief = kind == "chief" or ("chief" not in cluster and int(index) == 0)
        return Task(kind, int(index), count, address, chief)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"--strategy=multi_worker: TF_CONFIG is {text!r}; it must name all workers and which"
            " one this is, as docs/scaling.md shows"
        ) from error
