"""The shard jobs on a second engine: Beam's DaskRunner on a local cluster of two worker processes, one of which is killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import distributed
import pytest

from data.records import write_shard
from noisy_student import shard_jobs

pytestmark = pytest.mark.filterwarnings("ignore")  # what Dask and Beam say about each other

SHARDS = 12


@dataclasses.dataclass
class SlowShards:
    """Writes one file a shard, slowly, and notes which process worked on what."""

    directory: Path
    seconds: float

    def setup(self) -> None:
        """Nothing to load."""

    def outputs(self, shard: int) -> list[str]:
        return [str(self.directory / f"out-{shard:05d}")]

    def run(self, shard: int) -> dict[str, Any]:
        (self.directory / "started").mkdir(parents=True, exist_ok=True)
        (self.directory / "started" / f"{shard}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        count, _ = write_shard(self.outputs(shard)[0], (b"%d %d" % (shard, i) for i in range(5 + shard)))
        return {"images": count}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("out-*")}


def kill_a_worker_in_the_middle(directory: Path, finished: Path, killed: list[int]) -> None:
    """Once two shards are done and another is being worked on, kills the process that works on it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = {path.stem for path in finished.glob("*.json")}
        working = [path.name.split("-") for path in (directory / "started").glob("*")] if (directory / "started").exists() else []
        open_ones = [int(pid) for shard, pid, _ in working if f"{int(shard):05d}" not in done]
        if len(done) >= 2 and open_ones:
            os.kill(open_ones[-1], signal.SIGKILL)
            killed.append(open_ones[-1])
            return
        time.sleep(0.02)


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path) -> None:
    expected = tmp_path / "direct"
    shard_jobs.run(SlowShards(expected, 0.0), SHARDS, tmp_path / "direct_progress")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        job, progress, killed = SlowShards(tmp_path / "dask", 0.4), tmp_path / "progress", []
        killer = threading.Thread(target=kill_a_worker_in_the_middle, args=(job.directory, progress, killed))
        killer.start()
        options = ["--runner=DaskRunner", f"--dask_client_address={cluster.scheduler_address}"]
        results = shard_jobs.run(job, SHARDS, progress, options)
        killer.join()
    assert killed, "no worker was killed: the run ended too soon"
    assert [result["images"] for result in results] == [5 + shard for shard in range(SHARDS)]
    assert contents(tmp_path / "dask") == contents(expected)
    workers = {path.name.split("-")[1] for path in (job.directory / "started").iterdir()}
    assert len(workers) >= 2 and str(os.getpid()) not in workers
