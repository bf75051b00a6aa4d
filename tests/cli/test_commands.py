"""The table of commands, and `--help`, which is made of it."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli import app, commands, flags, help
from cli.errors import InputError
from cli.flags import Command

ROOT = Path(__file__).resolve().parents[2]
EVERY = list(commands.TABLE.values())


def of_command(command: Command) -> str:
    return command.name


@pytest.mark.parametrize("command", EVERY, ids=of_command)
def test_flags_are_the_function_s_arguments(command: Command) -> None:
    arguments = inspect.signature(app.load(command.target)).parameters
    given = {flag.name for flag in command.flags}
    given |= {"config"} if command.recipes else set()
    given |= {"arguments"} if command.words else set()
    given |= {"beam_options"} if command.beam else set()
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
        module = importlib.import_module(command.target.partition(":")[0])
        arguments = inspect.signature(module.main).parameters
    assert given == set(arguments) or command.name == "benchmarks"


@pytest.mark.parametrize("command", EVERY, ids=of_command)
def test_examples_are_taken(command: Command) -> None:
    assert len(command.examples) == 2 or not command.flags
    for example in command.examples:
        given = flags.read(shlex.split(example), command.flags, bool(command.recipes))
        given.unknown = []  # options of Beam, which takes seconds to import
        assert set(app._values(command, given)) >= {flag.name for flag in command.flags}


@pytest.mark.parametrize("command", EVERY, ids=of_command)
def test_help_tells_everything(command: Command) -> None:
    text = help.of_command(command)
    assert text.startswith(f"usage: {command.script}") and command.summary in text
    for flag in command.flags:
        assert flag.shown in text
        if flag.default is flags.REQUIRED:
            assert flag.shown in text.partition("\n\n")[0].replace("\n    ", " ")
    for example in command.examples:
        assert f"{command.script} {example}".rstrip() in text
    if command.recipes:
        assert "A recipe is Python code, which is executed" in " ".join(text.split())
        assert re.search(r"configs/\w+/\w+\.py +\S", text)
    assert (
        max(len(line) for line in text.splitlines() if not line.startswith(f"  {command.script}"))
        <= help.WIDTH
    )


def test_help_and_a_wrong_name_import_nothing_heavy() -> None:
    program = (
        "import sys; from cli import app\ntry: app.main()\nfinally: print(*sys.modules,"
        " file=sys.stderr)"
    )
    for words in (
        ["evaluate", "--help"],
        ["tool", "--help"],
        ["tool", "tflte"],
        ["study"],
        ["serve", "--prt=1"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode in (0, 2)
        imported = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
        assert "cli" in imported and not imported & {
            "tensorflow",
            "numpy",
            "absl",
            "ml_collections",
            "apache_beam",
        }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("quickstart --seeds=0", "--seeds is '0'; it must be a whole number, 1 or more"),
        ("quickstart --seeds=five", "--seeds is 'five'"),
        ("quickstart --seeds=-1", "--seeds is '-1'"),
        (
            "benchmarks balance --records=many",
            "--records is 'many'; it must be a whole number, 1 or more",
        ),
        ("benchmarks balance --records=0", "--records is '0'"),
        ("export --workdir=w --model=m --max_pixels=0", "--max_pixels is '0'"),
        (
            "export --workdir=w --model=m --weights=int4",
            "--weights is 'int4'; it can be float32, bfloat16, float16",
        ),
        ("serve --serving_dir=s --grpc_port=x", "--grpc_port is 'x'"),
        ("tool tflite --workdir=w --model=m --data=d --calibration=0", "--calibration is '0'"),
        (
            "tool fixres --model=m --output=o --image_size=x",
            "--image_size is 'x'; it must be a whole number",
        ),
        (
            "tool import_weights --source=s --model=b0 --output=o --image_size=big",
            "--image_size is 'big'",
        ),
        ("tool client --batch_size=0", "--batch_size is '0'"),
        ("tool client --timeout=-1", "--timeout is '-1'; it must be a number above 0"),
        (
            "experiment study --config=configs/studies/ratio.py --workdir=w --jobs=0",
            "--jobs is '0'; it must be a whole",
        ),
        (
            (
                "student --config=configs/noisy_student/digits.py --workdir=w --data=d"
                " --strategy=miror"
            ),
            r"can be auto, one_device, .* \(did you mean mirrored\?\)",
        ),
    ],
)
def test_values_that_no_command_takes(line: str, message: str) -> None:
    command, words, _ = commands.find(line.split())
    assert command is not None
    with pytest.raises(InputError, match=message):
        app.parse(command, words)


def test_names_that_are_no_command() -> None:
    assert commands.find(["tool", "tflite", "--model=m"]) == (
        commands.TABLE["tflite"],
        ["--model=m"],
        "",
    )
    assert commands.find(["tool", "tflte"])[2] == "there is no tool 'tflte'; did you mean tflite?"
    assert commands.find(["tflite"])[2] == "there is no command 'tflite'; --help lists them"
    assert commands.find(["experiment"])[2].startswith(
        "no experiment is given; choose one of study, two_moons"
    )


def test_choices_are_those_of_the_rooms() -> None:
    from serving.answers import FORMATS
    from serving.images import MAX_PIXELS
    from serving.serve import IMAGE
    from training.optimize import WEIGHTS
    from weights.import_weights import NORMALIZATIONS

    def flag(command: str, name: str) -> flags.Flag:
        return next(flag for flag in commands.TABLE[command].flags if flag.name == name)

    assert flag("export", "weights").choices == tuple(WEIGHTS)
    assert flag("export", "max_pixels").default == MAX_PIXELS
    assert flag("serve", "image").default == IMAGE
    assert flag("predict", "format").choices == flag("client", "format").choices == tuple(FORMATS)
    assert flag("import_weights", "preprocessing").choices == ("auto", *NORMALIZATIONS)


def test_a_setting_is_explained_where_the_command_has_one() -> None:
    assert "--config.student.steps=None    (at least 1" in help.of_setting(
        "student.steps", commands.TABLE["balance"]
    )
    assert "no setting" in help.of_setting("student.steps", commands.TABLE["export"])


def test_a_command_that_fails_ends_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "load", lambda _: lambda: 1)
    with pytest.raises(SystemExit) as end:
        app.run(commands.TABLE["try_dtensor"], [])
    assert end.value.code == 1
    with pytest.raises(InputError, match=r"^--x is not a flag"):
        app.run(commands.TABLE["try_dtensor"], ["--x"])
