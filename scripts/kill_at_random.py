"""Kills a training again and again, at random moments, and compares what it ends with to an undisturbed run.

    python scripts/kill_at_random.py DIR [KILLS [SEED]]

The training is the quick start's teacher on the digits, 800 steps with a log line, an evaluation and a checkpoint every 10, so that the
kills (20 by default, SIGKILL, after each start uniformly over a quarter of the undisturbed run's time) fall into start-up, steps,
evaluations and the writing of checkpoints.
Leaves `whole/` and `killed/` in DIR. Exit code 1 where weights or losses differ in a single bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--config=configs/noisy_student/digits.py",
    "--config.data.validation_size=100",
    "--config.teacher.steps=800",
    *(f"--config.teacher.{name}_every=10" for name in ("log", "checkpoint", "evaluate")),
]


def command(script: str, workdir: Path, *flags: str) -> list[str]:
    """Of a stage."""
    return [str(ROOT / script), *FLAGS, f"--workdir={workdir}", *flags]


def outcome(workdir: Path) -> tuple[bytes, list[dict[str, float]]]:
    """The weights' file, and the log without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    timed = ("seconds", "images_per_second")
    return (workdir / "model" / "model.weights.h5").read_bytes(), [
        {key: value for key, value in json.loads(line).items() if key not in timed} for line in lines
    ]


def main(directory: str, kills: int = 20, seed: int = 0) -> int:
    """Exit code."""
    root, rng = Path(directory).resolve(), random.Random(seed)
    subprocess.check_call(command("run_prepare_data.sh", root / "data"))
    data = f"--data={root / 'data'}"
    began = time.monotonic()
    subprocess.check_call(command("run_teacher.sh", root / "whole", data))
    whole = time.monotonic() - began
    done = 0
    while done < kills:
        process = subprocess.Popen(command("run_teacher.sh", root / "killed", data), start_new_session=True)
        moment = rng.uniform(0, whole / 4)
        try:
            process.wait(moment)
            break  # it came to its end
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            print(f"kill {done} of {kills}, {moment:.1f} s after the start", flush=True)
    subprocess.check_call(command("run_teacher.sh", root / "killed", data))
    same = outcome(root / "whole") == outcome(root / "killed")
    print(f"{done} kills: weights and log are {'the same to the bit' if same else 'NOT the same'}")
    return 0 if same else 1


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit((__doc__ or "").strip())
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
