"""The loop on several hosts: who does what, who waits, and what a failure of the first one does."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cli import recipes, termination
from cli.errors import InputError
from cli.json_files import read_json, write_json
from training import cluster
from workflow import cost, hosts, loop

CONFIG = recipes.from_flags("--config=configs/noisy_student/digits.py", "--config.iterations=1")
TRAININGS = ["teacher", "student_1"]
STAGES = ["data", "teacher", "predictions_1", "pseudo_labeled_1", "student_1"]
ENDING = ["evaluation", "export"]


@pytest.fixture(name="calls")
def _calls(monkeypatch):
    """Makes two threads two hosts, and stages scripts that leave their summaries.

    Returns (host, name of the stage's directory) of each start, and the codes that stages end with.
    """
    calls, codes = [], {}
    trained = threading.Barrier(2, timeout=20)

    def task():
        index = int(threading.current_thread().name[-1])
        return cluster.Task("worker", index, 2, f"host{index}:1", index == 0)

    def call(command):
        flags = dict(flag[2:].split("=", 1) for flag in command[1:] if flag.startswith("--"))
        directory, index = Path(flags["workdir"]), task().index
        calls.append((index, directory.name))
        assert (flags.get("strategy") == "multi_worker") == (directory.name in TRAININGS)
        if (directory / "summary.json").exists():
            return 0
        if directory.name in TRAININGS:
            trained.wait()
        if directory.name in codes:
            time.sleep(0.5)  # the other host has started, too
            return codes[directory.name]
        if directory.name == "data":
            (directory / "unlabeled").mkdir(parents=True, exist_ok=True)
        if index == 0:
            names = [Path(path).name for path in flags.get("model", "").split(",")]
            models = {name: {"top1": 0.5, "ece": 0.0} for name in names}
            figures = {"figures": {"summary": "f.png"}, "report": "r.html", "export": "e"}
            write_json(directory / "summary.json", {"models": models, **figures})
        return 0

    monkeypatch.setattr(hosts.cluster, "task", task)
    monkeypatch.setattr(hosts, "SECONDS", 0.01)
    monkeypatch.setattr(termination, "call", call)
    monkeypatch.setattr(loop, "require_weights", lambda *_: None)
    monkeypatch.setattr(cost, "announce", lambda *_: None)
    monkeypatch.setattr(loop.app, "recipe_flags", lambda: [])
    return calls, codes


def run(workdir: Path, which=(0, 1), configs=(CONFIG, CONFIG)):
    """Runs the loop on the hosts `which`; returns what each raised, or None."""

    def one(index):
        threading.current_thread().name = f"host{index}"
        try:
            loop.main(
                config=configs[index],
                workdir=str(workdir),
                labeled=None,
                unlabeled=None,
                test=None,
                strategy="multi_worker",
                tpu="",
                iterations=None,
                dry_run=False,
                beam_options=[],
            )
        except (InputError, SystemExit) as error:
            return error
        return None

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, which))


def test_all_train_and_the_first_does_the_rest(tmp_path, calls):
    started, _ = calls
    assert run(tmp_path / "w") == [None, None]
    assert [name for index, name in started if index == 0] == [*STAGES, *ENDING]
    assert [name for index, name in started if index == 1] == TRAININGS
    assert read_json(tmp_path / "w" / "summary.json")["served"] == "student_1"
    assert not (tmp_path / "w" / hosts.FAILED).exists()
    started.clear()
    assert run(tmp_path / "w") == [None, None] and not started  # it is done


def test_the_first_host_s_failure_ends_the_others_and_both_go_on(tmp_path, calls):
    started, codes = calls
    codes["predictions_1"] = 75
    errors = run(tmp_path / "w")
    assert [error.code for error in errors] == [75, 75]
    codes.clear()
    started.clear()
    assert run(tmp_path / "w") == [None, None]
    assert [name for index, name in started if index == 1] == ["student_1"]


def test_a_training_that_fails_on_the_other_host_ends_it_with_its_code(tmp_path, calls):
    started, codes = calls
    codes["student_1"] = 75
    assert [error.code for error in run(tmp_path / "w")] == [75, 75]
    assert started.count((1, "student_1")) == 1


def test_bad_images_end_both_and_leave_the_mark_alone(tmp_path, calls):
    _, codes = calls
    codes["data"] = 2
    assert [error.code for error in run(tmp_path / "w")] == [2, 2]
    assert [path.name for path in (tmp_path / "w").iterdir()] == [hosts.FAILED]
    codes.clear()
    assert run(tmp_path / "w") == [None, None]


def test_a_run_that_cannot_fit_ends_both_before_anything_is_there(tmp_path, calls, monkeypatch):
    def refuse(*_):
        raise InputError("it cannot fit")

    monkeypatch.setattr(cost, "announce", refuse)
    assert [str(error) for error in run(tmp_path / "w")] == ["it cannot fit"] * 2
    assert [path.name for path in (tmp_path / "w").iterdir()] == [hosts.FAILED]


def test_hosts_with_other_flags_are_told(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", 0.05)
    other = CONFIG.copy_and_resolve_references()
    with other.unlocked():
        other.seed = 7
    write_json(tmp_path / "w" / "config.json", loop.resolved(CONFIG, {}))
    (error,) = run(tmp_path / "w", which=(1,), configs=(CONFIG, other))
    assert "holds a run of another config; start all hosts with the same flags" in str(error)


def test_an_old_failure_does_not_end_a_new_start(tmp_path):
    write_json(tmp_path / hosts.FAILED, {"code": 75})
    follower = hosts.Follower(tmp_path)
    write_json(tmp_path / "config.json", {"a": 1})
    follower.begin({"a": 1})
    with pytest.raises(RuntimeError), hosts.Chief(tmp_path, several=True).reporting():
        raise RuntimeError
    with pytest.raises(SystemExit) as stop:
        follower.wait_for(tmp_path / "never", "it")
    assert stop.value.code == 1


def test_one_host_leaves_no_mark(tmp_path):
    with pytest.raises(InputError), hosts.join("auto", tmp_path).reporting():
        raise InputError("no")
    assert np.size(list(tmp_path.iterdir())) == 0
