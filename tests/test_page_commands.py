"""The pages' commands: each has a script, which takes its flags, its recipe and its settings.

They are read as the scripts read them. Nothing is run. `./run_experiment.sh audit` reads those of
docs/paper_map.md.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.run import BENCHMARKS
from cli import app, commands
from cli.errors import InputError
from tests.test_pages import PAGES, ROOT, text_of

FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(\./run_[^`]*)`")
OPEN_RECIPE = {
    "train": "fixmatch/image_folder.py",
    "meta_pseudo_labels": "meta_pseudo_labels/image_folder.py",
    "two_moons": "experiments/two_moons.py",
    "biased_teacher": "experiments/biased_teacher.py",
    "study": "studies/noise.py",
}
"""Command -> the recipe that takes the place of one that a page leaves open."""
READ = [page for page in PAGES if page.name != "paper_map.md"]


def commands_of(text: str) -> Iterator[str]:
    """Returns the commands of a page, with the shell variables that it sets put in."""
    values: dict[str, str] = {}

    def put_in(line: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda name: values.get(name[1], name[0]), line)

    outside = re.sub(FENCE, "", text)
    for name, value in re.findall(r"`([A-Z])=(\S+)`", outside):
        values[name] = value
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = put_in(line.strip())
            loop = re.match(r"for (\w+) in (\S+)", line)
            if loop:
                values[loop[1]] = loop[2]
            elif line.startswith("./run_"):
                yield line
            elif re.match(r"[A-Z]=", line):
                for name, quoted, plain in re.findall(r'\b([A-Z])=(?:"([^"]*)"|(\S+))', line):
                    values[name] = put_in(quoted or plain)
    yield from (put_in(" ".join(command.split())) for command in INLINE.findall(outside))


def check_command(command: str) -> None:
    """Reads a command as its script does.

    Raises:
      InputError: there is no such script, name, flag, recipe, setting or test.
    """
    script, *words = shlex.split(re.sub(r"\[(-[^\]]*)\]", r"\1", command), comments=True)
    if not (ROOT / script).is_file():
        raise InputError(f"no script {script}")
    if script == "./run_tests.sh":
        absent = [word for word in words if word.startswith("tests") and not (ROOT / word).exists()]
        if absent:
            raise InputError(f"no {absent[0]}")
        return
    name = script.removeprefix("./run_").removesuffix(".sh")
    found, rest, wrong = commands.find([name, *words])
    if not found:
        if words:
            raise InputError(wrong)
        return  # a script that takes a name, mentioned without one
    if name == "benchmarks" and rest and rest[0] not in BENCHMARKS:
        raise InputError(f"no benchmark {rest[0]}")
    is_open = re.compile(r"--config=(RECIPE|my_recipe\.py|.*\.\.\.|.*:NAME)$")
    recipe = OPEN_RECIPE.get(found.name, "noisy_student/image_folder.py")
    rest = [is_open.sub(f"--config=configs/{recipe}", word) for word in rest if word != "..."]
    rest = [re.sub(r"=[SN]$", "=3", word) for word in rest]  # a number of the reader's own
    try:
        app.parse(found, rest)
    except InputError as error:
        if not re.match(r"--[\w, -]+ (is missing|must be given)", str(error)):  # mentioned in part
            raise


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_the_scripts_take_the_commands(page: Path) -> None:
    wrong = []
    for command in commands_of(text_of(page)):
        if "DaskRunner" in command and sys.version_info < (3, 10):
            continue  # it is refused there (`shard_jobs.dask_works`)
        try:
            check_command(command)
        except InputError as error:
            wrong.append(f"{command}: {error}")
    assert not wrong


def test_most_pages_have_commands() -> None:
    assert sum(len(list(commands_of(text_of(page)))) for page in READ) > 120


def test_variables_are_put_in() -> None:
    block = "C=--config=a.py W=w\nfor s in 1 2; do\n  ./run_x.sh $C \\\n    --workdir=$W/$s\n"
    assert list(commands_of(f"`D=d`\n```\n{block}```\n`./run_y.sh\n$D`\n")) == [
        "./run_x.sh --config=a.py      --workdir=w/1",
        "./run_y.sh d",
    ]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("./run_gone.sh", "no script"),
        ("./run_tests.sh tests/gone.py", "no tests/gone.py"),
        ("./run_tool.sh gone", "no tool 'gone'"),
        ("./run_benchmarks.sh gone", "no benchmark gone"),
        ("./run_predict.sh --modle=DIR IMAGE", "--modle"),
        ("./run_train.sh --config=configs/uda/gone.py --workdir=W", "gone.py"),
        ("./run_train.sh --config=RECIPE --workdir=W --config.train.gone=1", "train.gone"),
    ],
)
def test_what_the_check_finds(command: str, error: str) -> None:
    with pytest.raises(InputError, match=re.escape(error)):
        check_command(command)
