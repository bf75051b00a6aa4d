"""Output that the terminal cannot show, and output without a reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cli import app
from serving.answers import NOT_AN_IMAGE, OK, Answer, line

NAMES = ("Ünïcode 花.jpg", b"caf\xe9 \xf0.jpg".decode("utf-8", "surrogateescape"))
PRINT = "import sys; from cli import app; app.guarded(lambda: print(*sys.argv[1:], sep='\\n'))"
LINES = (
    "from cli import app; app.guarded(lambda: [print(i, flush=True) for i in range(100000)] and"
    " None)"
)


def run(
    program: str, *arguments: str, tail: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs a stage in a shell that has `pipefail`; `tail` follows its command."""
    command = [
        "bash",
        "-o",
        "pipefail",
        "-c",
        f'"$@" {tail}',
        "bash",
        sys.executable,
        "-c",
        program,
        *arguments,
    ]
    return subprocess.run(
        command, cwd=app.ROOT, env={**os.environ, **environment}, capture_output=True
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "utf-8"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=lambda environment: "-".join(environment.values()),
)
def test_names_are_escaped_where_the_output_has_no_such_characters(
    environment: dict[str, str],
) -> None:
    done = run(PRINT, *NAMES, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 2


def test_what_the_output_can_show_is_shown() -> None:
    first, second = run(PRINT, *NAMES, PYTHONIOENCODING="utf-8").stdout.splitlines()
    assert first.decode() == NAMES[0]
    assert second == rb"caf\udce9 \udcf0.jpg"
    assert (
        run(PRINT, *NAMES, PYTHONIOENCODING="ascii").stdout.splitlines()[0]
        == rb"\xdcn\xefcode \u82b1.jpg"
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_stays_json(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        for answer in (
            Answer(name, OK, [("Äpfel 苹果 \U0001f34e", 1.0)]),
            Answer(name, NOT_AN_IMAGE, []),
        ):
            with open(os.devnull, "w", encoding=encoding, errors="backslashreplace") as stream:
                monkeypatch.setattr(sys, "stdout", stream)
                printed = line(answer, "json").encode(encoding, "backslashreplace").decode(encoding)
                monkeypatch.undo()
            found = json.loads(printed)
            assert found["file"] == name
            assert (
                ("error" in found) if answer.status else (found["label"] == "Äpfel 苹果 \U0001f34e")
            )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("tail", ["| head -1", "2>&1 | head -1"])
def test_a_reader_that_leaves(tail: str, unbuffered: str) -> None:
    done = run(LINES, tail=tail, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"0\n", b"")


def test_help_that_is_not_read_to_its_end() -> None:
    done = run("from cli import app; app.main()", "tool", "--help", tail="| true")
    assert done.returncode in (0, 141) and done.stderr == b""


def test_a_broken_pipe_of_another_kind_is_a_bug() -> None:
    program = (
        "from cli import app; app.guarded(lambda: (_ for _ in ()).throw(BrokenPipeError(32, 'x')))"
    )
    done = run(program)
    assert done.returncode == 1 and b"BrokenPipeError" in done.stderr


@pytest.mark.parametrize("tail", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tail: str, tmp_path) -> None:
    """A file that the stage opens gets no standard stream's number.

    So no line of the stage's output goes into the file.
    """
    path = tmp_path / "file"
    program = (
        "import sys, os, logging; from cli import app; from cli.progress import progress\ndef"
        " main(file):\n    with open(file, 'wb', 0) as f:\n        print('out'); print('err',"
        " file=sys.stderr); logging.getLogger().warning('log'); os.write(2, b'C++')\n       "
        " list(progress(range(2), 2, 'work')); f.write(b'data')\napp.log_plainly();"
        " app.guarded(lambda: main(sys.argv[1].partition('=')[2]))"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    code = (
        f"import sys; sys.argv[1:] = ['-m', 'program', '--file={path}']; from cli import start;"
        " start._main()"
    )
    done = run(code, tail=tail, PYTHONPATH=f"{app.ROOT}:{tmp_path}", PYTHONSAFEPATH="")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == b"data"
