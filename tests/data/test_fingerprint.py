"""Images that change after they were prepared are noticed; changed times alone are not a change."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from cli.errors import InputError
from data import fingerprint, prepare
from tests.data import recipes
from tests.data.recipes import encode, pixels, save
from workflow import loop


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Writes two classes of 4 images, 6 unlabeled images, and the data directory `w`."""
    root = tmp_path_factory.mktemp("made")
    for name, first in (("labeled/cat", 10), ("labeled/dog", 30), ("unlabeled", 50)):
        for i in range(4):
            save(root / name / f"{i}.png", first + i)
    start(root)
    return root


@pytest.fixture
def folders(made, tmp_path):
    """Returns a copy, prepared again in its own place: locations are part of the config."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "w")
    start(tmp_path)
    return tmp_path


def start(root: Path, labeled: str = "labeled", **data) -> None:
    config = recipes.config(
        "image_folder", use_as_prepared=data.pop("use_as_prepared", False), **data
    )
    prepare.main(
        config, str(root / "w"), labeled=prefixed(root, labeled), unlabeled=str(root / "unlabeled")
    )


def prefixed(root: Path, location: str) -> str:
    format_, colon, name = location.rpartition(":")
    return f"{format_}{colon}{root / name}"


def add(root: Path) -> None:
    for i in range(4, 7):
        save(root / "labeled" / "cat" / f"{i}.png", 10 + i)
    save(root / "labeled" / "cow" / "0.png", 90)


def replace(root: Path) -> None:
    path = root / "labeled" / "cat" / "0.png"
    size = path.stat().st_size
    other = encode(pixels(99))
    path.write_bytes((other + b"\0" * size)[:size])  # of the same name and size


CHANGES = {
    "added": (add, r"--labeled: 8 -> 12 files, class cow is new"),
    "removed": (
        lambda root: (root / "unlabeled" / "0.png").unlink(),
        r"--unlabeled: 4 -> 3 files;? ?.*name another",
    ),
    "a class removed": (
        lambda root: shutil.rmtree(root / "labeled" / "dog"),
        r"--labeled: 8 -> 4 files, class dog is gone",
    ),
    "renamed": (
        lambda root: (root / "unlabeled" / "0.png").rename(root / "unlabeled" / "x.png"),
        r"--unlabeled: 4 files as before, but with other names or sizes",
    ),
    "replaced": (
        replace,
        r"--labeled: the files have the same names and sizes as before, but other contents",
    ),
    "deleted": (lambda root: shutil.rmtree(root / "labeled"), r"--labeled: there is no folder"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_told(folders, case, capsys):
    change, message = CHANGES[case]
    change(folders)
    with pytest.raises(InputError, match=message) as caught:
        start(folders)
    assert "name another --workdir" in str(
        caught.value
    ) and "--config.data.use_as_prepared=True" in str(caught.value)
    start(folders, use_as_prepared=True)
    assert "done before" in capsys.readouterr().out


def test_changed_times_alone_are_no_change(folders, monkeypatch):
    os.utime(folders / "labeled" / "cat" / "0.png", (1, 1))
    summary = (folders / "w" / "summary.json").read_bytes()
    read: list[str] = []
    again = fingerprint._content
    monkeypatch.setattr(
        fingerprint, "_content", lambda role, data: read.append(role) or again(role, data)
    )
    start(folders)
    start(folders)  # the new times are known now
    assert read == ["labeled"]
    assert (folders / "w" / "summary.json").read_bytes() == summary


def test_an_archive_that_changes(folders):
    shutil.rmtree(folders / "w")
    archive = folders / "labeled.tar"

    def pack() -> None:
        with tarfile.open(archive, "w") as tar:
            tar.add(folders / "labeled", "labeled")

    pack()
    start(folders, "tar:labeled.tar")
    os.utime(archive, (1, 1))
    start(folders, "tar:labeled.tar")
    replace(folders)
    pack()
    with pytest.raises(
        InputError,
        match="--labeled: the files have the same names and sizes as before, but other contents",
    ):
        start(folders, "tar:labeled.tar")


def test_a_directory_from_before_there_was_a_fingerprint(folders):
    (folders / "w" / fingerprint.FILE).unlink()
    add(folders)
    start(folders)


def test_digits_have_no_files(tmp_path):
    prepare.main(recipes.config("digits", labeled_per_class=5), str(tmp_path))
    assert not (tmp_path / fingerprint.FILE).exists()
    prepare.main(recipes.config("digits", labeled_per_class=5), str(tmp_path))


def test_a_finished_loop_notices(folders):
    config = loop_config()
    (folders / "run").mkdir()
    (folders / "w").rename(folders / "run" / "data")
    given = {name: str(folders / name) for name in ("labeled", "unlabeled")}
    (folders / "run" / "config.json").write_text(json.dumps(loop.resolved(config, given)))
    result = {"top1": 0.5, "ece": 0.1}
    (folders / "run" / "summary.json").write_text(
        json.dumps({"teacher": result, "students": [], "seconds": {"teacher": 1.0}})
    )
    arguments = {
        "test": None,
        "strategy": "auto",
        "tpu": "",
        "iterations": None,
        "dry_run": False,
        "beam_options": [],
    }
    loop.main(config, str(folders / "run"), **given, **arguments)
    add(folders)
    with pytest.raises(InputError, match="class cow is new"):
        loop.main(config, str(folders / "run"), **given, **arguments)
    config = loop_config(use_as_prepared=True)
    loop.main(config, str(folders / "run"), **given, **arguments)


def loop_config(**data):
    from configs.noisy_student import image_folder

    config = image_folder.get_config("b0")
    config.data.update(data)
    return config
