"""Kills a training again and again, at random moments, and compares it with an undisturbed run.

    ./run_tool.sh kill_at_random --workdir=DIR [--kills=20] [--seed=0] [--workers=1] [--steps=800]

The training is the quick start's teacher on the digits, 800 steps or --steps. It has a log line, an
evaluation and a checkpoint every 10 steps. The kills (20 by default, SIGKILL) come after each
start, uniformly over a quarter of the undisturbed run's time. So they fall into start-up, steps,
evaluations and the writing of checkpoints.

With --workers above 1 each training has that many processes on this machine
(`--strategy=multi_worker`). One of them is killed. The others must end by themselves within two
minutes, and all are started again. Leaves `whole/` and `killed/` in DIR. Exit code 1 where weights
or losses differ in a single bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from cli import start

FLAGS = [
    "--config=configs/noisy_student/digits.py",
    "--config.data.validation_size=100",
    *(f"--config.teacher.{name}_every=10" for name in ("log", "checkpoint", "evaluate")),
]


def command(script: str, workdir: Path, *flags: str) -> list[str]:
    """Returns a stage's command."""
    return start.script(script, *FLAGS, f"--workdir={workdir}", *flags)


def start_training(
    workdir: Path, data: Path, steps: int, workers: int
) -> list[subprocess.Popen[bytes]]:
    """Starts the processes of a training; returns them, the chief first."""
    flags = [f"--data={data}", f"--config.teacher.steps={steps}"]
    if workers == 1:
        return [
            subprocess.Popen(command("run_teacher.sh", workdir, *flags), start_new_session=True)
        ]
    all_flags = command("run_teacher.sh", workdir, *flags, "--strategy=multi_worker")
    return [
        subprocess.Popen(all_flags, start_new_session=True, env=environment)
        for environment in environments(workers)
    ]


def environments(workers: int) -> list[dict[str, str]]:
    """Returns the environment of each worker on this machine, with free ports in `TF_CONFIG`."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(workers)
        ]
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    configs = [
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        for index in range(workers)
    ]
    return [{**os.environ, "TF_CONFIG": json.dumps(config)} for config in configs]


def finish(processes: list[subprocess.Popen[bytes]]) -> None:
    """Waits for the end of a training. Raises CalledProcessError where one of them fails."""
    for process in processes:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)


def kill(
    processes: list[subprocess.Popen[bytes]], index: int, log: Path, started: float
) -> list[int]:
    """Kills one of the processes and returns the exit codes of all.

    The others end by themselves, or TimeoutExpired is raised. Before a run is under way, though,
    they wait for the missing one, and are killed.
    """
    os.killpg(processes[index].pid, signal.SIGKILL)
    under_way = log.exists() and log.stat().st_mtime > started
    for process in processes:
        if not under_way and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return [process.wait(120) for process in processes]


def outcome(workdir: Path) -> tuple[bytes, list[dict[str, float]]]:
    """Returns the weights' file, and the log without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("seconds", "images_per_second")
    return (workdir / "model" / "model.weights.h5").read_bytes(), [
        {key: value for key, value in json.loads(line).items() if key not in timed}
        for line in lines
    ]


def main(workdir: str, kills: int = 20, seed: int = 0, workers: int = 1, steps: int = 800) -> int:
    """Returns the exit code; see the module."""
    root, rng = Path(workdir).resolve(), random.Random(seed)
    subprocess.check_call(command("run_prepare_data.sh", root / "data"))
    data = root / "data"
    began = time.monotonic()
    finish(start_training(root / "whole", data, steps, workers))
    undisturbed = time.monotonic() - began
    done = 0
    while done < kills:
        started = time.time()
        processes = start_training(root / "killed", data, steps, workers)
        index, moment = rng.randrange(workers), rng.uniform(0, undisturbed / 4)
        try:
            processes[index].wait(moment)
            finish(processes)
            break  # it came to its end
        except subprocess.TimeoutExpired:
            codes = kill(processes, index, root / "killed" / "metrics.jsonl", started)
            done += 1
            print(
                f"kill {done} of {kills}, {moment:.1f} s after the start; exit codes {codes}",
                flush=True,
            )
    finish(start_training(root / "killed", data, steps, workers))
    same = outcome(root / "whole") == outcome(root / "killed")
    print(f"{done} kills: weights and log are {'the same to the bit' if same else 'NOT the same'}")
    return 0 if same else 1
