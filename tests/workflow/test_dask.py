"""The data jobs on other engines: Beam's DaskRunner, and processes of this machine.

The DaskRunner has two worker processes. One of them is killed.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest

from cli.errors import InputError
from data.preprocessing import Preprocessing
from data.records import read_manifest
from tests.workflow import test_balance, test_pseudo_label
from training import model_dir
from training.model_dir import ModelSpec
from workflow import balance, pseudo_label, shard_jobs

pytestmark = pytest.mark.filterwarnings("ignore")  # what Dask and Beam say about each other

SHARDS = 12


@pytest.fixture(name="options", scope="module")
def _options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Returns Beam's options for a cluster of two worker processes in their own folder."""
    if not shard_jobs.dask_works():
        with pytest.raises(InputError, match="last one for Python 3"):
            shard_jobs.unknown_options(["--runner=DaskRunner"])
        pytest.skip("this Beam's DaskRunner does not start")
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster:
            os.chdir(here)
            yield ["--runner=DaskRunner", f"--dask_client_address={cluster.scheduler_address}"]
    finally:
        os.chdir(here)


def _shards(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if "-of-" in path.name or path.suffix == ".json"
    }


def test_pseudo_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]) -> None:
    test_pseudo_label._write_images(tmp_path, test_pseudo_label._images())
    for name in ("data", "teacher"):
        test_pseudo_label.write_json(tmp_path / name / "summary.json", {})
    spec = ModelSpec(
        {"name": "wrn_10_1"}, Preprocessing(image_size=8), test_pseudo_label.LABEL_NAMES
    )
    model_dir.save(tmp_path / "teacher" / "model", spec.build(), spec)
    monkeypatch.chdir(tmp_path)
    for workdir, runner in (("direct", []), ("dask", options)):
        pseudo_label.main(
            test_pseudo_label.config(), workdir, "data", "teacher", beam_options=runner
        )
    direct, dask = _shards(tmp_path / "direct"), _shards(tmp_path / "dask")
    summaries = [files.pop("summary.json") for files in (direct, dask)]
    assert len(direct) == test_pseudo_label.SHARDS + 2 and direct == dask
    assert summaries[0] != summaries[1]  # seconds


def _slow_down(started: Path) -> None:
    """Makes writing a shard of training records slow in a worker, and says who does it."""
    write_shard = balance.write_shard

    def slow(path: str, *arguments: Any, **options: Any) -> Any:
        (started / f"{path.rpartition('pseudo_labeled-')[2][:5]}-{os.getpid()}").touch()
        time.sleep(0.4)
        return write_shard(path, *arguments, **options)

    balance.write_shard = slow


def _kill_in_the_middle(started: Path, notes: Path, killed: list[int]) -> None:
    """Kills a process that is working on a shard of training records.

    It waits until two other shards are done.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = {path.stem for path in notes.glob("?????.json")}
        working = [path.name.split("-") for path in started.iterdir()]
        pids = [int(pid) for shard, pid in working if shard not in done]
        if len(done) >= 2 and pids:
            os.kill(pids[-1], signal.SIGKILL)
            killed.append(pids[-1])
            return
        time.sleep(0.02)


def test_a_killed_worker_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    test_balance._make_inputs(tmp_path, shards=SHARDS)
    (tmp_path / "started").mkdir()
    monkeypatch.chdir(tmp_path)
    balance.main(test_balance._config(), "direct", "data", "predictions")
    with distributed.Client(options[1].partition("=")[2]) as client:
        client.run(_slow_down, tmp_path / "started")
    killed: list[int] = []
    killer = threading.Thread(
        target=_kill_in_the_middle,
        args=(tmp_path / "started", tmp_path / "dask" / "progress" / "records", killed),
    )
    killer.start()
    balance.main(test_balance._config(), "dask", "data", "predictions", options)
    killer.join()
    assert killed and killed[0] != os.getpid(), "no worker was killed: the run ended too soon"
    direct = _shards(tmp_path / "direct")
    # Each shard has its index.
    assert len(direct) == 2 * SHARDS + 3 and direct == _shards(tmp_path / "dask")


def test_options_that_beam_does_not_know(capfd: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--runner=DirectRunner",
        "--direct_num_workers=2",
        "--worker_machine_type=n1",
        "--init=x",
        "--confg",
    ]
    assert shard_jobs.unknown_options(flags) == ["--init", "--confg"]
    with pytest.raises(
        InputError,
        match=(
            r"^Beam does not take --direct_num_workers=x \(argument --direct_num_workers:"
            r" invalid int"
        ),
    ):
        shard_jobs.unknown_options(["--direct_num_workers=x"])
    assert capfd.readouterr() == ("", "")


PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def test_processes_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that they import nothing of the current directory."""
    test_balance._make_inputs(tmp_path)
    project = tmp_path / "project"
    project.mkdir()
    for name in ("data", "noisy_student", "apache_beam", "numpy", "random", "socket"):
        (project / f"{name}.py").write_text(
            "raise SystemExit('the module of the current directory')", encoding="utf-8"
        )
    monkeypatch.chdir(project)
    found = []
    for name, runner in (("one", []), ("two", PROCESSES)):
        job = balance.ScoreShards(read_manifest(tmp_path / "predictions"), tmp_path / name, 0.5, 3)
        results = shard_jobs.run(job, 4, tmp_path / f"{name}_progress", runner)
        found.append(
            (results, {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
        )
    assert len(found[0][1]) == 8 and found[0] == found[1]


@dataclasses.dataclass
class _Killed:
    """A job with a worker that is killed when it has written shard 1, before its note.

    If the file `mended` is there, the worker is not killed.
    """

    directory: Path

    def setup(self) -> None:
        """Loads nothing."""

    def outputs(self, shard: int) -> list[str]:
        return [str(self.directory / f"out-{shard}")]

    def run(self, shard: int) -> dict[str, Any]:
        Path(self.outputs(shard)[0]).write_text(str(os.getpid()))
        if shard == 1 and not (self.directory / "mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return {"images": 1, "shard": shard}


def test_a_killed_process_ends_the_job_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tests that the job ends with one line and exit code 75, and no process is left.

    The next start does what is missing, and nothing else.
    """
    before = {process.pid for process in multiprocessing.active_children()}
    with pytest.raises(SystemExit) as ended:
        shard_jobs.run(_Killed(tmp_path), 4, tmp_path / "progress", PROCESSES)
    assert ended.value.code == 75
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "worker" in line]
    assert (
        line.startswith("a worker process of this job is gone")
        and "run the same command again" in line
    )
    assert {process.pid for process in multiprocessing.active_children()} <= before
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "progress").iterdir()}
    assert tmp_path / "progress" / "00001.json" not in done
    (tmp_path / "mended").touch()
    results = shard_jobs.run(_Killed(tmp_path), 4, tmp_path / "progress")
    assert [result["shard"] for result in results] == [0, 1, 2, 3]
    assert {path: path.stat().st_mtime_ns for path in done} == done
