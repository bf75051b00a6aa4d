"""Two processes as one run: one of them is killed; and what is refused.

`./run_tool.sh kill_at_random` compares the weights, too.
"""

import json
import signal
import socket
import subprocess
import time

import pytest

from cli import recipes
from cli.errors import InputError
from cli.termination import EXIT_CODE
from data import prepare
from tests import networks, training_runs
from training import strategy, workers

RECIPE = [
    "--config=configs/noisy_student/digits.py",
    "--config.data.out_of_domain=20",
    "--config.data.validation_size=13",
    *networks.flags("teacher"),
    "--config.teacher.steps=100000",
    "--config.teacher.batch_size=4",
    "--config.teacher.log_every=2",
    "--config.teacher.checkpoint_every=2",
    "--config.teacher.evaluate_every=2",
]


def start(workdir, data, *more):
    """Yields the two processes, chief first."""
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    for index in (0, 1):
        tf_config = json.dumps(
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        )
        flags = [
            *RECIPE,
            *more,
            f"--workdir={workdir}",
            f"--data={data}",
            "--strategy=multi_worker",
        ]
        yield training_runs.start("teacher", *flags, stderr=subprocess.PIPE, TF_CONFIG=tf_config)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("workers") / "data"
    prepare.main(recipes.from_flags(*RECIPE), str(directory))
    return directory


def signalled(workdir, data, number, *more):
    """Sends the second process a signal once there is a checkpoint.

    Returns the log's lines at that time, and the code, output and errors of each process.
    """
    processes = list(start(workdir, data, *more))
    try:
        while not any((workdir / "checkpoints").glob("*.index")) and processes[0].poll() is None:
            time.sleep(0.05)
        rows = training_runs.metrics(workdir)
        processes[1].send_signal(number)
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return rows, [(process.returncode, *texts) for process, texts in zip(processes, said)]


def test_a_killed_worker_ends_the_other_and_the_files_are_the_chiefs(tmp_path, data):
    workdir = tmp_path / "teacher"
    rows, [(code, output, errors), _] = signalled(workdir, data, signal.SIGKILL)
    assert code == workers.LOST, errors
    assert "another worker of this run is gone" in errors and "Traceback" not in errors
    assert "2 replicas" in output
    # The evaluation counts each of 13 images once, or it would have failed.
    assert rows[0]["step"] == 2 and 0 <= rows[0]["eval_top1"] <= 1
    assert {path.name for path in workdir.iterdir()} == {
        "config.json",
        "checkpoints",
        "metrics.jsonl",
        "tensorboard",
    }
    assert len(list((workdir / "tensorboard").glob("events*"))) == 1
    assert not list((workdir / "checkpoints").glob("*_temp"))


def test_a_terminated_worker_ends_both_with_a_checkpoint(tmp_path, data):
    workdir = tmp_path / "teacher"
    # During an evaluation SIGTERM ends a worker at once, so this run has no evaluations.
    _, processes = signalled(workdir, data, signal.SIGTERM, "--config.teacher.evaluate_every=0")
    for code, _, errors in processes:
        assert code == EXIT_CODE, errors
        assert errors.count("stopped by SIGTERM after step") == 1 and "Traceback" not in errors
    steps = [
        int(path.stem.rpartition("-")[2]) for path in (workdir / "checkpoints").glob("*.index")
    ]
    assert max(steps) == training_runs.metrics(workdir)[-1]["step"]


@pytest.mark.parametrize(
    "text",
    [None, "{", "[]", '{"task": {"type": "worker", "index": 1}, "cluster": {"worker": ["a:1"]}}'],
)
def test_a_TF_CONFIG_that_names_no_workers(monkeypatch, text):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=r"multi_worker: TF_CONFIG is .*must name all workers"):
        strategy.create("multi_worker")


def test_workers_that_differ(monkeypatch):
    monkeypatch.setattr(workers, "gather", lambda strategy, number: [number, 3])
    workers.require_same(None, 3, "the same")
    with pytest.raises(InputError, match="they differ"):
        workers.require_same(None, 4, "they differ")
