"""The one form of a result, and how it is measured."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.errors import InputError
from cli.start import python_m


def line(
    benchmark: str,
    ours: float,
    peer: float,
    peer_name: str,
    *,
    goal: float,
    unit: str,
    **notes: Any,
) -> None:
    """Prints a result: rates, so that a ratio above 1 is better for us.

    `notes` are whatever else a reader must know.
    """
    row = {
        "benchmark": benchmark,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "peer_name": peer_name,
        "ratio": round(ours / peer, 3),
    }
    print(json.dumps({**row, "goal": goal, "unit": unit, **notes}), flush=True)


def find_peers() -> None:
    """Lets this process and its children import from the directory in the environment's PEERS."""
    if peers := os.environ.get("PEERS"):
        sys.path.append(peers)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, (os.environ.get("PYTHONPATH"), peers))
        )


def memory(pid: int | str, field: str = "VmRSS") -> float:
    """Returns GiB of a process by /proc/PID/status (Linux); 0 where the process is gone.

    `field`: `VmRSS` is the memory now, `VmHWM` at most.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    found = [line for line in lines if line.startswith(field)]
    return int(found[0].split()[1]) / 2**20 if found else 0.0


class Timer:
    """Wall and CPU seconds of a block, over all threads of this process."""

    def __enter__(self) -> Timer:
        self.wall, self.cpu = -time.monotonic(), -time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.wall += time.monotonic()
        self.cpu += time.process_time()


def interleaved(rounds: int, **work: Callable[[], Any]) -> dict[str, tuple[float, float]]:
    """Returns the median (wall, CPU) seconds of each piece of work.

    Each round does all pieces one after another, so that a noisy machine is noisy for all of them.
    Work that returns a `Timer` counts by it, without its beginning.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            with Timer() as timer:
                measured = function()
            timer = measured if isinstance(measured, Timer) else timer
            times[name].append((timer.wall, timer.cpu))
    return {
        name: (statistics.median(t[0] for t in rows), statistics.median(t[1] for t in rows))
        for name, rows in times.items()
    }


def at_two_sizes(module: str, records: int) -> tuple[dict[str, float], dict[str, float]]:
    """Measures a tenth of `records` and all, each in its own process, so each has its peak.

    Args:
      module: program that measures one size. It gets the size and `records`, and the last line that
        it prints is its figures as JSON.
      records: the larger size.

    Returns:
      The figures of the smaller and of the larger size.

    Raises:
      InputError: `records` is below 1000.
    """
    if records < 1000:
        raise InputError(f"--records is {records}; at least 1000 are needed for a meaningful rate")
    found = []
    for size in (records // 10, records):
        command = python_m(module, str(size), str(records))
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(ran.stdout.splitlines()[-1]))
    return found[0], found[1]


def memory_line(benchmark: str, small: float, large: float, records: int) -> None:
    """Prints the peak memory of `records` records beside that of a tenth of them, both in MB."""
    line(
        f"{benchmark}/memory",
        1 / large,
        1 / small,
        f"{records // 10:,} records",
        goal=1 / 1.15,
        unit="1/MB",
        rss_mb=round(large),
    )
