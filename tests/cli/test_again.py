"""A finished work directory answers the same command at once, and no other command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from ml_collections import ConfigDict

from cli import again, app, work_dirs
from cli.files import file_digest
from cli.flags import Command, Flag
from cli.json_files import write_json
from data import fingerprint

FLAGS = (
    Flag("workdir", ""),
    Flag("data", "", finished=True),
    Flag("teacher", "", finished=True),
    Flag("models", "", default=None, finished=True),
    Flag("steps", "", int, 1),
)
COMMAND = Command("stage", "no:thing", "", "", FLAGS, ("",), recipes=("x",), kept=("*/*-of-*",))


class Work:
    """Data, a teacher, and a stage that is finished."""

    def __init__(self, root: Path) -> None:
        self.root, self.w, self.data, self.teacher = (
            root,
            root / "w",
            root / "data",
            root / "teacher",
        )
        write_json(self.data / "labeled" / "manifest.json", {"records": [1]})
        (self.data / "labeled" / "labeled-00000-of-00001").write_bytes(b"records")
        work_dirs.finish(self.data, {})
        (self.teacher / "model").mkdir(parents=True)
        (self.teacher / "model" / work_dirs.WEIGHTS).write_bytes(b"weights")
        digest = file_digest(self.teacher / "model" / work_dirs.WEIGHTS)
        write_json(self.teacher / "model" / work_dirs.MODEL, {work_dirs.WEIGHTS_DIGEST: digest})
        work_dirs.finish(self.teacher, {"steps": 1})
        self.values: dict[str, Any] = {
            **{"workdir": str(self.w), "data": str(self.data), "teacher": str(self.teacher)},
            **{"models": f"{self.teacher},{self.teacher / 'model'}", "steps": 1},
            "config": ConfigDict({"seed": 1, "rate": 0.5, "sizes": (1, 2)}),
        }

    def ask(self, **changed: Any) -> again.Request:
        return again.Request(COMMAND, {**self.values, **changed})

    def finish(self) -> None:
        request = self.ask()
        assert request.answer() is None
        write_json(self.w / "config.json", {"seed": 1})
        (self.w / "part").mkdir()
        (self.w / "part" / "x-00000-of-00001").write_bytes(b"part")
        work_dirs.finish(self.w, {"steps": 1, "loss": 0.25}, "w is done: 1 steps")
        request.keep()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    made = Work(tmp_path)
    made.finish()
    return made


def test_the_same_request_is_answered(work: Work) -> None:
    assert work.ask().answer() == "w is done: 1 steps"
    # And again, where the copy has the teacher's place.
    shutil.copytree(work.teacher, work.root / "moved")
    shutil.rmtree(work.teacher)
    (work.root / "moved").rename(work.teacher)
    assert work.ask().answer() == "w is done: 1 steps"


def rewrite(name: str, content: bytes) -> Callable[[Work], None]:
    return lambda work: (work.root / name).write_bytes(content) and None


CHANGES: dict[str, Callable[[Work], Any]] = {
    "another teacher in its place": lambda work: work_dirs.finish(work.teacher, {"steps": 2}),
    "flipped bits in weights": rewrite(f"teacher/model/{work_dirs.WEIGHTS}", b"wEights"),
    "another description of weights": rewrite(f"teacher/model/{work_dirs.MODEL}", b"{}"),
    "an unfinished teacher": lambda work: (work.teacher / "summary.json").unlink(),
    "no teacher": lambda work: shutil.rmtree(work.teacher),
    "another manifest": rewrite("data/labeled/manifest.json", b"{}"),
    "a cut shard": rewrite("data/labeled/labeled-00000-of-00001", b"rec"),
    "a missing shard": lambda work: (work.data / "labeled" / "labeled-00000-of-00001").unlink(),
    "one shard more": rewrite("data/labeled/labeled-00001-of-00002", b""),
    "a damaged summary": rewrite("w/summary.json", b'{"steps": 1'),
    "another summary": rewrite("w/summary.json", b'{"steps": 2}'),
    "no summary": lambda work: (work.w / "summary.json").unlink(),
    "another config": rewrite("w/config.json", b"{}"),
    "a missing part": lambda work: (work.w / "part" / "x-00000-of-00001").unlink(),
    "a damaged answer": rewrite(f"w/{again.FILE}", b'{"asked": {}, "own'),
    "an empty answer": rewrite(f"w/{again.FILE}", b""),
    "no answer": lambda work: (work.w / again.FILE).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_starts_the_stage(work: Work, change: str) -> None:
    CHANGES[change](work)
    assert work.ask().answer() is None


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 2},
        {"config": ConfigDict({"seed": 2, "rate": 0.5, "sizes": (1, 2)})},
        {"config": ConfigDict({"seed": 1, "rate": 0.5, "sizes": (1, 2), "more": None})},
        {"models": None},
        {"beam_options": ["--runner=DirectRunner"]},
    ],
    ids=str,
)
def test_another_request_starts_the_stage(work: Work, changed: dict[str, Any]) -> None:
    assert work.ask(**changed).answer() is None


def test_another_directory_or_version_starts_the_stage(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(work.root)  # relative locations would name other places
        assert work.ask().answer() is None
    (work.root / "code" / "room").mkdir(parents=True)
    (work.root / "code" / "room" / "module.py").touch()
    monkeypatch.setattr(again, "ROOT", work.root / "code")
    assert work.ask().answer() is None


def test_inputs_count_as_they_were_at_the_start(tmp_path: Path) -> None:
    """Tests that a teacher that was replaced while the stage ran was not the one that it read."""
    work = Work(tmp_path)
    request = work.ask()
    work_dirs.finish(work.teacher, {"steps": 2})
    work_dirs.finish(work.w, {}, "w is done")
    request.keep()
    assert work.ask().answer() is None


def test_a_stage_that_says_nothing_is_not_answered_for(tmp_path: Path) -> None:
    work = Work(tmp_path)
    request = work.ask()
    work_dirs.finish(work.w, {})
    request.keep()
    assert not (work.w / again.FILE).exists()


def test_a_directory_that_cannot_be_written_is_no_error(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(again, "write_json", fail)
    work.ask().keep()


def test_the_answer_comes_before_the_stage_is_imported(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def load(target: str) -> Callable[..., None]:
        return lambda **values: called.append(values["steps"])

    monkeypatch.setattr(app, "load", load)
    monkeypatch.setattr(app, "_values", lambda *_: work.values)
    app.run(COMMAND, [])
    assert capsys.readouterr().out == "w is done: 1 steps\n" and not called
    work.values["steps"] = 3
    app.run(COMMAND, [])
    assert called == [3]


@pytest.mark.parametrize("change", ["nothing", "touched", "one more", "gone", "as prepared"])
def test_the_images_of_prepared_data(tmp_path: Path, change: str) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / "1.png")
    settings = {
        "labeled": str(tmp_path / "images"),
        "source": "image_folder",
        "label_offset": 0,
        "on_error": "fail",
    }
    config, w = ConfigDict({"data": settings}), tmp_path / "w"
    values = {"workdir": str(w), "config": config}
    command = Command("p", "no:thing", "", "", FLAGS[:1], ("",), recipes=("x",), prepared=".")
    request = again.Request(command, values)
    write_json(w / "config.json", {"seed": 0, "data": settings})
    fingerprint.write(
        w, {"labeled": {**(fingerprint.listed("labeled", config.data) or {}), "content": ""}}
    )
    if change == "as prepared":
        config.data.use_as_prepared = True
        request = again.Request(command, values)
    work_dirs.finish(w, {}, "done before")
    request.keep()
    if change == "one more":
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a" / "2.png")
    elif change == "gone":
        (tmp_path / "images" / "a" / "1.png").unlink()
    elif change != "nothing":
        os.utime(tmp_path / "images" / "a" / "1.png", (1, 1))
    same = change in ("nothing", "as prepared")
    assert again.Request(command, values).answer() == ("done before" if same else None)
    assert json.loads((w / again.FILE).read_text())["says"] == "done before"


def test_an_input_with_a_name_is_a_name_a_file_or_a_directory(work: Work) -> None:
    assert again._named("imagenet") == "imagenet"
    file = work.root / "w.pth"
    file.write_bytes(b"weights")
    before = again._named(str(file)), again._named(str(work.teacher))
    assert len(set(before)) == 2
    assert before == (again._named(str(file)), again._named(str(work.teacher)))
    file.write_bytes(b"other weights")
    work_dirs.finish(work.teacher, {"steps": 2})
    assert not set(before) & {again._named(str(file)), again._named(str(work.teacher))}
