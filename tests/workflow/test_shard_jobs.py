"""The workers on the shards of a job.

These are threads of this process, or processes that share its GPUs out.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.test_dask import PROCESSES
from workflow import shard_jobs


@dataclasses.dataclass
class _Job:
    """A job that writes each shard's number."""

    directory: Path

    def setup(self) -> None:
        """Loads nothing."""

    def outputs(self, shard: int) -> list[str]:
        return [str(self.directory / f"out-{shard}")]

    def run(self, shard: int) -> dict[str, Any]:
        Path(self.outputs(shard)[0]).write_text(str(shard))
        return {"images": 1, "share": list(shard_jobs.share())}


class _Together(_Job):
    """A job of processes that each take a shard, and wait until the other one has one, too."""

    def run(self, shard: int) -> dict[str, Any]:
        result = super().run(shard)
        deadline = time.monotonic() + 60
        while len(list(self.directory.glob("out-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return result


def test_processes_know_their_share(tmp_path: Path) -> None:
    results = shard_jobs.run(_Together(tmp_path), 2, tmp_path / "progress", PROCESSES)
    assert sorted(result["share"] for result in results) == [[2, 0], [2, 1]]
    assert shard_jobs.share() == (1, 0)


class _Meeting(_Job):
    """A job in which two shards meet, or both fail."""

    def setup(self) -> None:
        self.barrier, self.closed = threading.Barrier(2), threading.Event()

    def run(self, shard: int) -> dict[str, Any]:
        self.barrier.wait(timeout=30)
        return super().run(shard)

    def close(self) -> None:
        self.closed.set()


def test_threads_work_on_two_shards_with_one_job(tmp_path: Path) -> None:
    job = _Meeting(tmp_path)
    results = shard_jobs.run(job, 4, tmp_path / "progress", at_once=2)
    assert [result["share"] for result in results] == [[1, 0]] * 4
    assert sorted(path.name for path in tmp_path.glob("out-*")) == [f"out-{i}" for i in range(4)]
    assert not job.closed.is_set()


class _Failing(_Meeting):
    """A job in which shard 0 fails; shard 1 goes on until the job is closed."""

    def run(self, shard: int) -> dict[str, Any]:
        self.barrier.wait(timeout=30)
        if shard == 0:
            raise ZeroDivisionError
        assert self.closed.wait(timeout=30)
        return super(_Meeting, self).run(shard)


def test_a_failure_closes_what_other_threads_do(tmp_path: Path) -> None:
    job = _Failing(tmp_path)
    with pytest.raises(ZeroDivisionError):
        shard_jobs.run(job, 2, tmp_path / "progress", at_once=2)
    assert job.closed.is_set()
