"""Kills one of two hosts in every stage of the loop, and compares with an undisturbed run.

    ./run_tool.sh kill_hosts --workdir=DIR

The loop is the digits' smoke run with one student, `--strategy=multi_worker`, as two processes on
this machine. They take turns in being killed (SIGKILL): in a training at its first logged step,
else when the stage's directory appears. The other one must end by itself in a training, with exit
code 75. Elsewhere it may wait for the first host, and is killed, too. Then both are started again.
Leaves `whole/`, `killed/` and the hosts' output in DIR. Exit code 1 where weights differ in a
single bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from cli import start
from scripts.kill_at_random import environments, finish

STAGES = (
    *("data", "teacher", "predictions_1", "pseudo_labeled_1", "student_1"),
    *("evaluation", "export"),
)
TRAININGS = ("teacher", "student_1")
FLAGS = (
    "--config=configs/noisy_student/digits.py",
    "--config.smoke=True",
    "--config.iterations=1",
    "--strategy=multi_worker",
)
WAIT = 30.0
"""Seconds that a host which was not killed has to end by itself."""


def start_hosts(workdir: Path) -> list[subprocess.Popen[bytes]]:
    """Starts the loop on two hosts; returns their processes, the first host's first."""
    processes = []
    for index, environment in enumerate(environments(2)):
        command = start.script("run_noisy_student.sh", *FLAGS, f"--workdir={workdir}")
        with open(f"{workdir}.host_{index}.log", "ab") as log:
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    start_new_session=True,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def kill_in(stage: Path, processes: list[subprocess.Popen[bytes]], index: int) -> str:
    """Kills a host once a stage is under way; returns how the other one ended."""
    sign = stage / "metrics.jsonl" if stage.name in TRAININGS else stage
    while not sign.exists() and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    other = processes[1 - index]
    _kill(processes[index])
    try:
        return f"ended with {other.wait(WAIT)}"
    except subprocess.TimeoutExpired:
        _kill(other)
        return "waited"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def weights(workdir: Path) -> list[bytes]:
    """Returns the weights' files of the teacher and the student."""
    return [(workdir / name / "model" / "model.weights.h5").read_bytes() for name in TRAININGS]


def main(workdir: str) -> int:
    """Returns the exit code; see the module."""
    root = Path(workdir).resolve()
    root.mkdir(parents=True, exist_ok=True)
    finish(start_hosts(root / "whole"))
    for number, name in enumerate(STAGES):
        index = number % 2
        ended = kill_in(root / "killed" / name, start_hosts(root / "killed"), index)
        print(f"{name}: host {index} killed, the other one {ended}", flush=True)
    finish(start_hosts(root / "killed"))
    same = weights(root / "whole") == weights(root / "killed")
    print(f"{len(STAGES)} kills: weights are {'the same to the bit' if same else 'NOT the same'}")
    return 0 if same else 1
