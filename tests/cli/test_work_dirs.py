"""The life of a work directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import app, files, json_files, work_dirs
from cli.errors import InputError


def test_start_finish_and_again(tmp_path):
    directory = tmp_path / "w"
    assert work_dirs.start(directory, {"seed": 1}) is None
    assert work_dirs.start(directory, {"seed": 1}) is None  # interrupted: goes on
    work_dirs.finish(directory, {"top1": 0.5})
    assert work_dirs.start(directory, {"seed": 1}) == {"top1": 0.5}


def test_another_config_is_named(tmp_path):
    work_dirs.start(tmp_path / "w", {"model": {"width": 1.0}, "seed": 1})
    (tmp_path / "w" / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"model.width: 1.0 -> 2.0"):
        work_dirs.start(tmp_path / "w", {"model": {"width": 2.0}, "seed": 1})


def test_a_start_that_made_nothing_gives_way_to_the_corrected_one(tmp_path):
    work_dirs.start(tmp_path / "w", {"model": "b99"})
    assert work_dirs.start(tmp_path / "w", {"model": "b0"}) is None
    assert json_files.read_json(tmp_path / "w" / "config.json") == {"model": "b0"}


def test_another_input_in_the_same_place_is_noticed(tmp_path):
    teacher = tmp_path / "teacher"
    work_dirs.finish(teacher, {"steps": 1})
    work_dirs.start(tmp_path / "w", {}, {"teacher": teacher})
    (tmp_path / "w" / "metrics.jsonl").write_text("")
    work_dirs.finish(teacher, {"steps": 2})
    with pytest.raises(InputError, match=r"inputs.teacher"):
        work_dirs.start(tmp_path / "w", {}, {"teacher": teacher})


def test_a_directory_belongs_to_one_process_until_it_is_finished_or_ends(tmp_path):
    """Refuses a second process in a directory: it would remove the other's temporary files.

    This could be the same command given twice, or a stage that outlived its killed loop.
    """
    program = (
        f"from cli import work_dirs; work_dirs.start({str(tmp_path / 'w')!r}, {{}});"
        " print('at work', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=app.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "at work\n"
        with pytest.raises(InputError, match="another process is at work in"):
            work_dirs.start(tmp_path / "w", {})
        assert work_dirs.start(tmp_path / "w", {}, shared=True) is None  # one of several workers
        other.kill()
    assert work_dirs.start(tmp_path / "w", {}) is None
    work_dirs.finish(tmp_path / "w", {"top1": 0.5})
    assert subprocess.run(
        [sys.executable, "-c", program],
        cwd=app.ROOT,
        input="\n",
        text=True,
        check=True,
        capture_output=True,
    ).stdout


def test_an_address_is_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gs://bucket/run", Path("gs://bucket/run").resolve()):
        with pytest.raises(InputError, match="is an address; mount it"):
            work_dirs.start(name, {})
    assert not list(tmp_path.iterdir())


def test_a_name_that_tensorflow_cannot_open(tmp_path):
    with pytest.raises(InputError, match="is not UTF-8, which TensorFlow needs"):
        work_dirs.start(tmp_path / "caf\udce9", {})
    assert not list(tmp_path.iterdir())


def test_unfinished_and_missing_directories(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(
        InputError, match=r"not finished \(no summary.json\); finish it with run_teacher.sh"
    ):
        work_dirs.require_finished(tmp_path / "half", "teacher", "run_teacher.sh")
    with pytest.raises(InputError, match="does not exist"):
        work_dirs.require_finished(tmp_path / "none", "teacher", "run_teacher.sh")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        work_dirs.start(tmp_path / "file", {})
    with pytest.raises(InputError, match=r"cannot be written \(NotADirectoryError"):
        work_dirs.start(tmp_path / "file" / "w", {})


def test_an_atomic_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "value.json"
    json_files.write_json(path, {"ä": 1})

    def cut() -> None:
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        cut()
    assert json_files.read_json(path) == {"ä": 1}
    assert os.listdir(path.parent) == ["value.json"]


def test_json_that_is_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(
        InputError, match=r"summary\.json cannot be read \(.*it is not a regular file"
    ):
        json_files.read_json(tmp_path / "summary.json")
