"""The stage that writes a data directory.

It is complete and idempotent, and leaves no trace if the input is bad.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli import app, commands
from cli.errors import InputError
from data import prepare, protos, records
from data.sources import Image

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
from tests.data import recipes

def get_config(source):
    digits = {"labeled_per_class": 5, "validation_size": 20, "out_of_domain": 30} \
if source == "digits" else {}
    return recipes.config(source, 3, **digits, num_shards=3)
"""


def config(source: str, **data) -> ml_collections.ConfigDict:
    scope: dict = {}
    exec(CONFIG, scope)
    result = scope["get_config"](source)
    with result.data.ignore_type():
        result.data.update(data)
    return result.lock()


@pytest.fixture
def folders(tmp_path):
    rng = np.random.Generator(np.random.PCG64([0]))
    for name in ("labeled/a", "labeled/b", "unlabeled"):
        for i in range(8):
            path = tmp_path / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return {
        "labeled": str(tmp_path / "images" / "labeled"),
        "unlabeled": str(tmp_path / "images" / "unlabeled"),
    }


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def run(
    tmp_path: Path, *arguments: str, program: tuple[str, ...] = ("-m", "cli", "prepare_data")
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "recipe.py").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


# What is written


def test_digits(tmp_path, capsys):
    prepare.main(config("digits"), str(tmp_path / "w"))
    assert "unlabeled          1,357         -       3" in capsys.readouterr().out
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert {name: split["images"] for name, split in summary["splits"].items()} == {
        "labeled": 50,
        "unlabeled": 1797 - 400 - 50 - 20 + 30,
        "test": 400,
        "validation": 20,
    }
    assert summary["splits"]["labeled"]["per_class"] == {str(digit): 5 for digit in range(10)}
    for name in summary["splits"]:
        manifest = records.read_manifest(
            tmp_path / "w" / name, "unlabeled" if name == "unlabeled" else "labeled"
        )
        records.verify_split(manifest)
        assert manifest.num_records == summary["splits"][name]["images"]
        assert len(manifest.files) == 3
    before = tree(tmp_path / "w")
    prepare.main(config("digits"), str(tmp_path / "w"))
    assert "was done before: 50 labeled" in capsys.readouterr().out
    assert tree(tmp_path / "w") == before


def test_nothing_of_the_labels_is_in_the_unlabeled_split(tmp_path):
    prepare.main(config("digits"), str(tmp_path / "w"))
    manifest = records.read_manifest(tmp_path / "w" / "unlabeled")
    assert manifest.label_names == ()
    for path in manifest.paths:
        for record in records.read_shard(path):
            assert sorted(tf.train.Example.FromString(record).features.feature) == [
                "image/encoded",
                "image/key",
            ]


def test_label_offset(tmp_path):
    prepare.main(config("digits", label_offset=1), str(tmp_path / "w"))
    manifest = records.read_manifest(tmp_path / "w" / "test")
    records.verify_split(manifest)
    record = next(records.read_shard(manifest.paths[0]))
    stored = (
        tf.train.Example.FromString(record)
        .features.feature["image/class/label"]
        .int64_list.value[0]
    )
    assert (
        int(protos.parse_example(tf.constant(record), manifest.label_offset)["label"]) == stored - 1
    )


def test_folders_as_flags(tmp_path, folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare.main(
        config("image_folder"), "w", labeled="images/labeled", unlabeled="images/unlabeled"
    )
    assert (
        json.loads((tmp_path / "w" / "config.json").read_text())["data"]["labeled"]
        == folders["labeled"]
    )
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert summary["label_names"] == ["a", "b"]
    assert {name: split["images"] for name, split in summary["splits"].items()} == {
        "labeled": 12,
        "unlabeled": 8,
        "test": 4,
    }
    assert summary["median_height"] == 9


def test_skipped_files_are_in_the_summary(tmp_path, folders, capsys):
    broken = Path(folders["unlabeled"]) / "broken.jpg"
    broken.write_text("hello")
    prepare.main(config("image_folder", on_error="skip"), str(tmp_path / "w"), **folders)
    assert "files skipped: 1 " in capsys.readouterr().out
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert [entry["file"] for entry in summary["skipped"]] == [str(broken)]
    assert summary["splits"]["unlabeled"]["images"] == 8


class Given:
    """A source of given images."""

    label_names = ("a", "b")

    def __init__(self, *images: Image):
        self.facts: dict = {"skipped": []}
        self.images = images

    def splits(self):
        return {"labeled": self.images}


@pytest.mark.parametrize("label", [-1, 2, None])
def test_label_out_of_range(tmp_path, label):
    with pytest.raises(
        InputError, match=f"k1 .split labeled. has label {label}; the 2 classes are 0..1"
    ):
        prepare.write(
            Given(Image("k0", b"x", 1), Image("k1", b"x", label)), config("digits"), tmp_path
        )


# Interruptions

KILLED = """
import os, signal, sys
from data import protos, records

def dies(function, calls):
    def counted(*arguments, **keywords):
        nonlocal calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return counted

name, calls = sys.argv.pop(1), int(sys.argv.pop(1))
if name == "finish":
    import cli.work_dirs
    cli.work_dirs.finish = dies(cli.work_dirs.finish, calls)
else:
    module = protos if name == "make_example" else records
    setattr(module, name, dies(getattr(module, name), calls))
from cli import app
sys.argv.insert(1, "prepare_data")
app.main()
"""


@pytest.mark.parametrize(
    "place", [("make_example", "17"), ("finish", "1")]
)  # in the middle of the second split's second shard; at the very end
def test_killed_and_started_again(tmp_path, folders, place):
    prepare.main(config("image_folder"), str(tmp_path / "whole"), **folders)
    arguments = [f"--config={tmp_path}/recipe.py:image_folder", f"--workdir={tmp_path}/killed"]
    arguments += [f"--{name}={folder}" for name, folder in folders.items()]
    killed = run(tmp_path, *place, *arguments, program=("-c", KILLED))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = tree(tmp_path / "killed")
    assert "labeled/manifest.json" in left
    assert "summary.json" not in left
    assert any(".tmp-" in name for name in left) == (
        place[0] == "make_example"
    )  # it was in the middle of a shard
    prepare.main(config("image_folder"), str(tmp_path / "killed"), **folders)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


AGAIN = "import sys; from cli import app; app.main(); print('tensorflow' in sys.modules)"


def test_the_same_command_again_needs_no_tensorflow(tmp_path, folders, monkeypatch, capsys):
    """Holds while the images are the same; otherwise the stage itself looks at them."""
    (tmp_path / "recipe.py").write_text(CONFIG)
    words = [f"--config={tmp_path}/recipe.py:image_folder", f"--workdir={tmp_path}/w"]
    words += [f"--{name}={folder}" for name, folder in folders.items()]
    monkeypatch.setattr(
        app, "load", lambda _: prepare.main
    )  # without hiding GPUs from this process
    monkeypatch.chdir(ROOT)
    app.run(commands.TABLE["prepare_data"], words)
    said = capsys.readouterr().out.splitlines()
    done = run(tmp_path, "prepare_data", *words, program=("-c", AGAIN))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        said[-1].replace(" is done: ", " was done before: "),
        "False",
    ]
    shutil.copy(Path(folders["labeled"]) / "a" / "1.png", Path(folders["labeled"]) / "a" / "2.png")
    with pytest.raises(InputError, match=r"prepared from other images .*use_as_prepared=True$"):
        app.run(commands.TABLE["prepare_data"], words)


def test_another_config_is_refused(tmp_path):
    prepare.main(config("digits"), str(tmp_path / "w"))
    before = tree(tmp_path / "w")
    with pytest.raises(InputError, match=r"another config .*data\.out_of_domain: 30 -> 31"):
        prepare.main(config("digits", out_of_domain=31), str(tmp_path / "w"))
    assert tree(tmp_path / "w") == before


# Bad input


@pytest.mark.parametrize("existing", [False, True])
def test_bad_input_leaves_no_trace(tmp_path, folders, existing):
    (Path(folders["unlabeled"]) / "x.jpg").write_text("hello")
    if existing:
        (tmp_path / "new" / "w").mkdir(parents=True)
        (tmp_path / "new" / "w" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"x\.jpg"):
        prepare.main(config("image_folder"), str(tmp_path / "new" / "w"), **folders)
    assert (tmp_path / "new").exists() == existing
    if existing:
        assert tree(tmp_path / "new") == {"w/mine.txt": b"keep"}


def test_a_work_directory_with_somebodys_images_is_refused(tmp_path, folders):
    assert {Path(folder).parent for folder in folders.values()} == {
        tmp_path / "images"
    }  # DIR/labeled is where the stage would write
    (Path(folders["unlabeled"]) / "x.jpg").write_text("hello")
    before = tree(tmp_path)
    with pytest.raises(
        InputError, match=r"--workdir: .*/labeled exists and was not made by this stage"
    ):
        prepare.main(config("image_folder"), str(tmp_path / "images"), **folders)
    assert tree(tmp_path) == before


def test_the_test_images_of_a_format_that_has_its_own(tmp_path):
    recipe = config("image_folder")
    assert (
        prepare.with_locations(recipe, {"labeled": f"cifar10:{tmp_path}"}).data.test
        == f"cifar10:{tmp_path}"
    )
    recipe = config("imagenet")
    assert prepare.with_locations(recipe, {"labeled": f"tar:{tmp_path}/own.tar"}).data.test is None


def test_a_path_that_is_not_utf_8(tmp_path):
    with pytest.raises(InputError, match=r"fotos_\\xfc: the path is not UTF-8"):
        prepare.main(
            config("image_folder"),
            str(tmp_path / "w"),
            labeled=os.fsdecode(bytes(tmp_path) + b"/fotos_\xfc"),
        )
    assert not (tmp_path / "w").exists()


def test_a_file_that_vanishes_while_writing(tmp_path, folders, monkeypatch):
    write_split = records.write_split

    def vanish(directory, name, *arguments, **keywords):
        if name == "unlabeled":
            os.unlink(f"{folders['unlabeled']}/3.png")
        return write_split(directory, name, *arguments, **keywords)

    monkeypatch.setattr(records, "write_split", vanish)
    with pytest.raises(InputError, match=r"3\.png was readable before and is not now"):
        prepare.main(config("image_folder"), str(tmp_path / "w"), **folders)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"on_error": "ignore"}, "it can be fail or skip"),
        ({"num_shards": 0}, "num_shards is 0"),
        ({"label_offset": -1}, "label_offset is -1"),
        ({"test_seed": -1}, "test_seed is -1"),
    ],
)
def test_bad_config(tmp_path, data, message):
    with pytest.raises(InputError, match=message):
        prepare.main(config("digits", **data), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_unknown_source(tmp_path):
    with pytest.raises(InputError, match="it can be digits, image_folder"):
        prepare.main(config("cifar11"), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def failure(tmp_path: Path, *arguments: str) -> str:
    """Runs the command, which must fail as for unusable input; returns its one line."""
    result = run(tmp_path, f"--workdir={tmp_path}/w", *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == result.stderr.splitlines()[-1:]
    assert not (tmp_path / "w").exists()
    return lines[0]


def test_commands_that_fail(tmp_path, folders):
    recipe = f"--config={tmp_path}/recipe.py:image_folder"
    (Path(folders["labeled"]) / "a" / "x.jpg").write_text("hello")
    line = failure(
        tmp_path, recipe, f"--labeled={folders['labeled']}", f"--unlabeled={folders['unlabeled']}"
    )
    assert line.startswith(
        f"error: {folders['labeled']}/a/x.jpg: it is not a JPEG, PNG, GIF or BMP"
    )
    assert (
        failure(tmp_path, recipe, "--labeled=/nowhere", "--unlabeled=/nowhere")
        == "error: --labeled: there is no folder /nowhere"
    )


def test_a_finished_directory_without_its_shards_is_no_finished_one(tmp_path):
    prepare.main(config("digits"), str(tmp_path / "w"))
    (tmp_path / "w" / "labeled" / "labeled-00001-of-00003").unlink()
    with pytest.raises(
        InputError,
        match=r"labeled lacks 1 of 3 shards .*: delete .*w, and the same command prepares it again",
    ):
        prepare.main(config("digits"), str(tmp_path / "w"))
