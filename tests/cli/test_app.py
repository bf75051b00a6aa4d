"""Command lines: what is accepted, and the one line of error for what is not."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from cli import app, recipes
from cli.errors import InputError
from cli.flags import Command, Flag

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/noisy_student/digits.py"
FLAGS = (Flag("workdir", "Where."), Flag("data", "From where.", default=None))


def command(flags=FLAGS, recipes=("noisy_student/*.py",), **options):
    return Command(
        "stage",
        "no:thing",
        "Does it.",
        "Leaves it.",
        flags,
        ("--workdir=w",),
        recipes=recipes,
        **options,
    )


def parse(*argv, **options):
    return app.parse(command(**options), argv)


def test_values_and_overrides():
    values = parse(
        CONFIG,
        "--workdir=w",
        "--config.seed=7",
        "--config.student.model.width=0.5",
        "image.png",
        words="IMAGE…",
    )
    assert values["workdir"] == "w"
    assert values["data"] is None
    assert values["config"].seed == 7
    assert values["config"].student.model.width == 0.5
    assert values["arguments"] == ["image.png"]
    assert "arguments" not in parse(CONFIG, "--workdir=w")


def test_the_recipe_in_two_words_and_by_default(monkeypatch):
    flag, path = CONFIG.split("=")
    words = ["--config.seed=3", "--workdir=w", flag, path]
    assert parse(*words)["config"].seed == 3
    monkeypatch.setattr(app.sys, "argv", ["stage", *words])
    assert app.recipe_flags() == ["--config.seed=3", CONFIG]
    assert parse("--workdir=w", "--config.seed=4", recipe=path)["config"].seed == 4
    assert parse("--workdir=w", CONFIG, recipe="configs/nothing.py")["config"].seed == 0


def test_other_ways_to_write_an_override(monkeypatch):
    words = [CONFIG, "--workdir=w", "--config.seed", "3", "--noconfig.data.near_duplicates"]
    config = parse(*words)["config"]
    assert (config.seed, config.data.near_duplicates) == (3, False)
    monkeypatch.setattr(app.sys, "argv", ["stage", *words])
    assert app.recipe_flags() == [CONFIG, "--config.seed=3", "--config.data.near_duplicates=False"]


def test_none_where_the_recipe_leaves_a_value_open():
    config = parse(
        CONFIG,
        "--workdir=w",
        "--config.student.steps=None",
        "--config.student.epochs=3",
        "--config.patience=None",
    )["config"]
    assert (config.student.steps, config.student.epochs, config.patience) == (None, 3.0, None)


@pytest.mark.parametrize("options", [{}, {"beam": True}])
def test_a_word_that_is_no_flag_is_refused(options):
    with pytest.raises(
        InputError, match="unexpected argument 'DirectRunner'; flags are written --name=value"
    ):
        parse(CONFIG, "--workdir=w", "DirectRunner", **options)


def test_a_recipe_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(CONFIG, "--workdir=w")["config"].seed == 0


def test_a_recipes_argument():
    assert (
        parse("--config=configs/noisy_student/image_folder.py:b1", "--workdir=w")[
            "config"
        ].student.model.name
        == "b1"
    )


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(
        InputError,
        match=r"digits\.py is not a recipe for this command: it has no claims$",
    ):
        parse(CONFIG, "--workdir=w", needs=("seed", "claims"))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("noisy_student", "studies/ratio.py"),
        ("prepare_data", "studies/ratio.py"),
        ("experiment study", "noisy_student/digits.py"),
        ("experiment two_moons", "noisy_student/digits.py"),
    ],
)
def test_commands_refuse_a_config_of_another_kind(name, config, tmp_path):
    line = [
        sys.executable,
        "-m",
        "cli",
        *name.split(),
        f"--config=configs/{config}",
        f"--workdir={tmp_path / 'w'}",
    ]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert (
        len(result.stderr.strip().splitlines()) == 1
        and "is not a recipe for this command" in result.stderr
    )
    assert not (tmp_path / "w").exists()


def test_a_default_of_false_makes_a_switch():
    flags = (*FLAGS, Flag("fast", "Hurry.", bool, False))
    for argv, expected in (
        ([], False),
        (["--fast"], True),
        (["--fast=false"], False),
        (["--fast", "--nofast"], False),
    ):
        assert parse("--workdir=w", *argv, flags=flags, recipes=())["fast"] is expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=w"], "--config is missing"),
        (["--workdir=w", "--confg=x"], "^--confg is not a flag; did you mean --config\\?$"),
        ([CONFIG, "--workdr=w"], "^--workdr is not a flag; did you mean --workdir\\?$"),
        (
            [CONFIG, "--workdir=w", "--WORKDIR=w"],
            "^--WORKDIR is not a flag; did you mean --workdir\\?$",
        ),
        (["--helpfull"], "^--helpfull is not a flag; did you mean --help\\?$"),
        (["--init=x"], "^--init is not a flag; --help lists the flags$"),
        (["-x"], "^-x is not a flag; --help lists the flags$"),
        (["--workdir", "--oops", "--oops"], "^--oops is not a flag"),
        ([CONFIG, "--workdir=caf\udce9"], "^--workdir=caf\udce9 is not UTF-8"),
        ([CONFIG, "--workdir=w", "--config.sed=1"], "no key 'sed'; did you mean --config.seed\\?$"),
        (
            [CONFIG, "--workdir=w", "--config.sudent.steps=1"],
            "no key 'sudent.steps'; did you mean --config.student\\?$",
        ),
        (
            [CONFIG, "--workdir=w", "--config.seed.more=1"],
            "no key 'seed.more'; its file lists the keys$",
        ),
        (
            [CONFIG, "--workdir=w", "--config.student.qqqq=1"],
            "no key 'student.qqqq'; its file lists the keys$",
        ),
        ([CONFIG], "--workdir must be given"),
        (
            [CONFIG, "--workdir=w", "--config.student.model.widht=1"],
            "no key 'student.model.widht'; did you mean --config.student.model.width\\?$",
        ),
        ([CONFIG, "--workdir=w", "--config.seed=one"], "config.seed=one"),
        ([CONFIG, "--workdir=w", "--config.seed=None"], "config.seed=None: it needs a value"),
        ([CONFIG, "--workdir=w", "--config.student.steeps=None"], "no key 'student.steeps'"),
        ([CONFIG, "--workdir=w", "--config.seed.more=None"], "no key 'seed.more'"),
        ([CONFIG, "--workdir=w", "--dta=d"], "dta"),
        (["--config=configs/nothing.py", "--workdir=w"], "no file configs/nothing.py"),
    ],
)
def test_wrong_usage_is_one_line(argv, message):
    with pytest.raises(InputError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = nothing", "NameError: name 'nothing' is not defined"),
        ("import nothing_here", "ModuleNotFoundError"),
        ("# A page\n\nIt's no Python", "SyntaxError: .*line 3"),
        ("x = 1", "KeyError: 'get_config'"),
        ("def get_config():\n    return None.seed", "AttributeError"),
        ("def get_config():\n    return {}", "returns no ConfigDict"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_line(tmp_path, text, message):
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(InputError, match=rf"^--config=.*recipe\.py.*{message}") as error:
        parse(f"--config={tmp_path / 'recipe.py'}", "--workdir=w")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "imagenet.py:b9",
            "^--config: imagenet.py has no variant b9; the variants are b0, [^()]*$",
        ),
        ("digits.py:b1", "takes 0 positional"),
    ],
)
def test_an_argument_that_the_recipe_does_not_know(argument, message):
    with pytest.raises(InputError, match=message):
        parse(f"--config=configs/noisy_student/{argument}", "--workdir=w")


def test_flags_may_follow_other_words_and_end_with_two_dashes():
    values = parse("a.png", "--workdir", "w", "-", "--", "-b.png", recipes=(), words="IMAGE…")
    assert (values["workdir"], values["arguments"]) == ("w", ["a.png", "-", "-b.png"])


def test_a_stage_without_a_recipe_has_no_keys():
    with pytest.raises(InputError, match=r"^--config\.seed is not a flag"):
        parse("--workdir=w", "--config.seed=1", recipes=())


@pytest.fixture
def beam(monkeypatch):
    """Stands in for Beam: knows options by two prefixes."""
    monkeypatch.setattr(
        app,
        "load",
        lambda _: (
            lambda words: [word for word in words if not word.startswith(("--runner", "--direct"))]
        ),
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["--confg=x", "--workdir=w"],
        ["--confg=x", "--runner=DirectRunner"],
        ["--direct_num_workers=2", "--confg=x"],
    ],
)
def test_a_flag_of_neither_the_stage_nor_beam(argv, beam):
    with pytest.raises(
        InputError,
        match=r"^--confg is not a flag of this stage or of Apache Beam; did you mean --config\?$",
    ):
        parse(*argv, beam=True)
    values = parse(CONFIG, "--workdir=w", "--runner=DirectRunner", beam=True)
    assert values["beam_options"] == ["--runner=DirectRunner"]


def test_beams_options_are_passed_on(beam):
    values = parse(
        CONFIG, "--workdir=w", "--runner=DirectRunner", "--direct_num_workers=2", beam=True
    )
    assert values["beam_options"] == ["--runner=DirectRunner", "--direct_num_workers=2"]


COMMAND = """
import sys
import types
from pathlib import Path
from cli import app
from cli.flags import Command, Flag
flags = (Flag("workdir", "Where."),)
command = Command("stage", "no:thing", "", "", flags, ("",), recipes=("x",))
app.load = lambda _: lambda workdir, config: Path(workdir).stat()
app.guarded(lambda: app.run(command, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([CONFIG], "error: --workdir must be given; --help lists the flags"),
        ([CONFIG, f"--workdir={'a' * 300}"], "File name too long"),
    ],
    ids=["no flag", "long path"],
)
def test_exit_code_two_without_a_traceback(flags, message):
    refused(COMMAND, flags, message)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file on a full disk")
def test_a_full_disk_is_one_line():
    program = "from cli import app; app.guarded(lambda: open('/dev/full', 'wb', 0).write(b'x'))"
    refused(program, [], "No space left on device")


def refused(program, flags, message):
    result = subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert (
        result.stderr.startswith("error: ")
        and message in result.stderr
        and len(result.stderr.splitlines()) == 1
    )


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        (
            Flag("seeds", "", int, 1, least=1),
            "0",
            "^--seeds is '0'; it must be a whole number, 1 or more$",
        ),
        (
            Flag("seeds", "", int, 1, least=1),
            "x",
            "^--seeds is 'x'; it must be a whole number, 1 or more$",
        ),
        (
            Flag("seeds", "", int, 1),
            "-1",
            "^--seeds is '-1'; it must be a whole number, 0 or more$",
        ),
        (Flag("seeds", "", int, 1), "²", "^--seeds is '²'"),
        (
            Flag("timeout", "", float, 1.0),
            "inf",
            "^--timeout is 'inf'; it must be a number above 0$",
        ),
        (Flag("timeout", "", float, 1.0), "soon", "^--timeout is 'soon'"),
        (Flag("fast", "", bool, False), "yes", "^--fast is 'yes'; it must be true or false$"),
        (
            Flag("format", "", default="text", choices=("text", "json")),
            "jsn",
            "can be text, json .did you mean json",
        ),
    ],
)
def test_a_value_of_another_type_is_named(flag, text, message):
    with pytest.raises(InputError, match=message):
        parse("--workdir=w", f"--{flag.name}={text}", flags=(*FLAGS, flag), recipes=())


def test_typed_values():
    flags = (
        Flag("n", "", int, 1),
        Flag("x", "", float, 2.0),
        Flag("s", "", default="a", choices=("a", "b")),
    )
    assert parse("--n=3", "--x", "0.5", "--s=b", flags=flags, recipes=()) == {
        "n": 3,
        "x": 0.5,
        "s": "b",
    }
    assert parse(flags=flags, recipes=()) == {"n": 1, "x": 2.0, "s": "a"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data.near_duplicates=false", False),
        ("smoke", True),
        ("preprocessing.randaugment_ops=Rotate,ShearX", ("Rotate", "ShearX")),
        ("preprocessing.randaugment_ops=Rotate", ("Rotate",)),
        ("preprocessing.randaugment_ops=()", ()),
        ("student.model.strides=(1, 2)", (1, 2)),
        ("balance.threshold=1", 1.0),
        ("data.labeled=None", None),
    ],
)
def test_values_of_settings_by_their_type(word, expected):
    value = recipes._make("configs/noisy_student/digits.py")
    key, equals, text = word.partition("=")
    recipes._override(value, key, text if equals else None)
    for part in key.split("."):
        value = value[part]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.near_duplicates=maybe", "near_duplicates=maybe: it must be true or false"),
        ("student.model.strides=(1,", "it must be a tuple, such as 1,2"),
        ("student={}", "it must be set by its own keys"),
        ("seed", "config.seed has no value; write --config.seed=VALUE"),
        ("seed=1.5", "config.seed=1.5: it must be a whole number"),
    ],
)
def test_values_of_settings_that_do_not_fit(word, message):
    with pytest.raises(InputError, match=message):
        parse(CONFIG, "--workdir=w", f"--config.{word}")


def test_a_flag_without_its_value():
    with pytest.raises(InputError, match=r"^--workdir has no value; write --workdir=VALUE$"):
        parse(CONFIG, "--workdir")


@pytest.mark.parametrize(
    ("level", "path", "shown"),
    [
        (
            "INFO",
            "/venv/lib/python3.13/site-packages/tensorflow/python/checkpoint/functional_saver.py",
            False,
        ),
        (
            "WARNING",
            "/venv/lib/python3.13/site-packages/tensorflow/python/checkpoint/functional_saver.py",
            True,
        ),
        ("INFO", "/home/me/tensorflow/data/prepare.py", True),
    ],
)
def test_tensorflow_s_own_news_are_none(level, path, shown):
    assert app._is_news(types.SimpleNamespace(levelname=level, pathname=path)) == shown
