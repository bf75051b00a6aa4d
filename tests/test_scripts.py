"""The scripts: what they run, and how scripts/setup.sh makes, keeps and refuses an environment. Nothing is installed here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli import app, commands

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("run_*.sh"))
STAGES = [path for path in SCRIPTS if path.name != "run_tests.sh"]
BASH = shutil.which("bash") or "/bin/bash"

# Stands in for Python: answers setup.sh's questions, makes a "venv" with a copy of itself, writes
# down where pip is called.
FAKE_PYTHON = """#!{bash}
case "$*" in
  "-c "*) exit 0 ;;
  "-m venv "*) mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python"; touch "${{!#}}/pyvenv.cfg" ;;
  "-m pip install "*) echo "in $PWD with ${{PYTHONPATH-no}} PYTHONPATH" >>"{log}"; sleep 0.2; echo "pip: something went wrong"
    exit "${{FAKE_PIP_STATUS:-0}}" ;;
  *) printf '%s\\n' "$PYTHONPATH" "$PYTHONUNBUFFERED" "$PWD" "$@" ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


class Checkout:
    """A copy of the scripts in a path with a space, and a PATH with the standard tools but no Python and no uv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "check out"
        self.root.mkdir()
        self.elsewhere = folder / "else where"
        self.elsewhere.mkdir()
        self.pip_log = folder / "pip.log"
        for name in ["requirements.txt", "constraints.txt", "run_predict.sh", "run_teacher.sh"]:
            shutil.copy(ROOT / name, self.root)
        (self.root / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "setup.sh", self.root / "scripts")
        self.programs = folder / "programs"
        self.programs.mkdir()
        for tool in ["bash", "cat", "cp", "dirname", "flock", "ls", "mkdir", "mv", "rm", "sleep", "touch", "uname"]:
            found = shutil.which(tool)
            if found:
                (self.programs / tool).symlink_to(found)

    def add_python(self, name: str = "python3.10") -> None:
        write_program(self.programs / name, FAKE_PYTHON.format(bash=BASH, log=self.pip_log))

    def start(self, *arguments: str, script: str = "run_predict.sh", **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BASH, str(self.root / script), *arguments],
            cwd=self.elsewhere,
            env={"PATH": str(self.programs), "HOME": str(self.folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **options: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err

    @property
    def installations(self) -> int:
        return len(self.pip_log.read_text(encoding="utf-8").splitlines()) if self.pip_log.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", STAGES, ids=lambda path: path.name)
def test_script_sets_up_and_execs_one_command_that_exists(script: Path) -> None:
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[:2] == ["set -euo pipefail", 'source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"']
    command = re.fullmatch(r'run_command ([a-z_]+) "\$@"', lines[2])
    assert command, lines[2]
    assert len(lines) == 3
    assert script.name == f"run_{command[1]}.sh"
    assert command[1] in commands.GROUPS or commands.TABLE[command[1]].script == f"./{script.name}"


def test_every_command_has_its_script() -> None:
    assert {command.script.partition(" ")[0] for command in commands.TABLE.values()} == {f"./{path.name}" for path in STAGES}
    assert len(SCRIPTS) <= 18


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_script_is_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# ")


def test_first_run_installs_and_second_does_not(checkout: Checkout) -> None:
    checkout.add_python()
    code, out, err = checkout.run("--model=x", "an image.png")
    assert code == 0, err
    start = [str(checkout.root / "cli" / "start.py"), "-m", "cli", "predict"]
    expected = [str(checkout.root), "1", str(checkout.elsewhere), *start, "--model=x", "an image.png"]
    assert out.splitlines() == expected, "stdout holds the module's own output only, and the current directory is the caller's"
    assert "Installing" in err
    assert (checkout.root / ".venv" / "bin" / "python").exists()

    code, out, err = checkout.run("--model=x", "an image.png")
    assert (code, out.splitlines(), err) == (0, expected, "")
    assert checkout.installations == 1


def test_the_callers_files_and_path_do_not_reach_the_installation(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run(PYTHONPATH=str(checkout.elsewhere))[0] == 0
    assert checkout.pip_log.read_text(encoding="utf-8") == f"in {checkout.root} with no PYTHONPATH\n"


def test_each_training_has_its_section(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run("--workdir=w", script="run_teacher.sh")[1].splitlines()[4:] == ["-m", "cli", "teacher", "--workdir=w"]
    for name in ("teacher", "student", "finetune"):
        words = ["--config=configs/noisy_student/digits.py", "--workdir=w", "--data=d"]
        assert app.parse(commands.TABLE[name], words)["section"] == name
        assert app.parse(commands.TABLE[name], [*words, "--section=student_2"])["section"] == "student_2"


def test_venv_elsewhere_is_relative_to_the_current_directory(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run(VENV="my venv")[0] == 0
    assert (checkout.elsewhere / "my venv" / "bin" / "python").exists()
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt"])
def test_changed_pins_are_installed_again(checkout: Checkout, name: str) -> None:
    checkout.add_python()
    checkout.run()
    with open(checkout.root / name, "a", encoding="utf-8") as f:
        f.write("another==1.0\n")
    assert checkout.run()[0] == 0
    assert checkout.installations == 2
    checkout.run()
    assert checkout.installations == 2


def test_failed_installation_shows_why_and_is_tried_again(checkout: Checkout) -> None:
    checkout.add_python()
    code, out, err = checkout.run(FAKE_PIP_STATUS="1")
    assert (code, out) == (1, "")
    assert "pip: something went wrong" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert checkout.run()[0] == 0
    assert checkout.installations == 2


@pytest.mark.skipif(not shutil.which("flock"), reason="without flock two first runs may install twice")
def test_two_first_runs_at_once_install_once(checkout: Checkout) -> None:
    checkout.add_python()
    processes = [checkout.start(), checkout.start()]
    assert [(process.communicate(timeout=20), process.returncode)[1] for process in processes] == [0, 0]
    assert checkout.installations == 1


def test_no_suitable_python_is_one_line_and_exit_2(checkout: Checkout) -> None:
    write_program(checkout.programs / "python3.9", f"#!{BASH}\necho 'pyenv: python3.9: command not found' >&2\nexit 127\n")
    write_program(checkout.programs / "python3", f"#!{BASH}\nexit 1\n")  # starts, and is another version
    code, out, err = checkout.run()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "install python3.11" in err


def test_a_python_that_does_not_start_is_passed_over(checkout: Checkout) -> None:
    write_program(checkout.programs / "python3.11", f"#!{BASH}\nexit 127\n")
    checkout.add_python("python3")
    assert checkout.run()[0] == 0


def test_python_without_ensurepip_names_the_package(checkout: Checkout) -> None:
    write_program(checkout.programs / "python3", f'#!{BASH}\n[[ "$*" != *ensurepip* ]]\n')
    code, _, err = checkout.run()
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "python3-venv" in err


def test_uv_is_used_where_it_is(checkout: Checkout) -> None:
    checkout.add_python()
    uv_log = checkout.folder / "uv.log"
    make = f'mkdir -p "${{!#}}/bin"; cp "{checkout.programs}/python3.10" "${{!#}}/bin/python"; touch "${{!#}}/pyvenv.cfg"'
    write_program(checkout.programs / "uv", f'#!{BASH}\necho "$*" >>"{uv_log}"\nif [[ $1 == venv ]]; then {make}; fi\n')
    assert checkout.run()[0] == 0
    make_line, install_line = uv_log.read_text(encoding="utf-8").splitlines()
    assert make_line.startswith("venv ")
    assert install_line.startswith("pip install ")
    assert f"-r {checkout.root}/requirements.txt -c {checkout.root}/constraints.txt" in install_line
    assert checkout.installations == 0


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_venv_that_is_something_else_is_left_alone(checkout: Checkout, kind: str) -> None:
    checkout.add_python()
    precious = checkout.elsewhere / "mine" if kind == "file" else checkout.elsewhere / "mine" / "precious"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("kept", encoding="utf-8")
    code, _, err = checkout.run(VENV="mine")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert precious.read_text(encoding="utf-8") == "kept"


def test_half_made_environment_is_made_again(checkout: Checkout) -> None:
    checkout.add_python()
    (checkout.root / ".venv" / "bin").mkdir(parents=True)
    (checkout.root / ".venv" / "pyvenv.cfg").touch()
    assert checkout.run()[0] == 0
    assert checkout.installations == 1
