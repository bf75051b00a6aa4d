"""The scripts: what they run, and how scripts/setup.sh makes, keeps and refuses an environment.

Nothing is installed here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli import app, commands
from scripts import missing_packages

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("run_*.sh"))
STAGES = [path for path in SCRIPTS if path.name != "run_tests.sh"]
BASH = shutil.which("bash") or "/bin/bash"
LOCKS = [
    "classic",
    "classic-cuda",
    "classic-dev",
    "current",
    "current-cuda",
    "current-dev",
    "current-tpu",
]

# Stands in for Python. It answers the questions of setup.sh and install.sh. It makes a "venv" with
# a copy of itself. It writes down where pip is called and with what.
FAKE_PYTHON = """#!{bash}
case "$*" in
  "-c "*version_info*) echo {version} ;;
  "-c "*) exit 0 ;;
  scripts/missing_packages.py*) echo current; touch "$3/missing.txt" ;;
  "-m venv "*) mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python"; touch "${{!#}}/pyvenv.cfg" ;;
  "-m pip install "*) echo "in $PWD with ${{PYTHONPATH-no}} PYTHONPATH" >>"{log}"
    echo "$*" >>"{log}.arguments"; sleep 0.2; echo "pip: something went wrong"
    exit "${{FAKE_PIP_STATUS:-0}}" ;;
  *) printf '%s\\n' "$PYTHONPATH" "$PYTHONUNBUFFERED" "$PWD" "$@" ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


class Checkout:
    """A copy of the scripts in a path with a space.

    Its PATH has the standard tools, but no Python and no uv.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "check out"
        self.root.mkdir()
        self.elsewhere = folder / "else where"
        self.elsewhere.mkdir()
        self.pip_log = folder / "pip.log"
        for name in ["requirements.txt", "run_predict.sh", "run_teacher.sh", "run_tests.sh"]:
            shutil.copy(ROOT / name, self.root)
        for name in ["requirements", "scripts"]:
            (self.root / name).mkdir()
        for name in ["setup.sh", "install.sh"]:
            shutil.copy(ROOT / "scripts" / name, self.root / "scripts")
        for name in LOCKS:
            (self.root / "requirements" / f"{name}.txt").write_text(
                f"{name}==1.0\n", encoding="utf-8"
            )
        self.programs = folder / "programs"
        self.programs.mkdir()
        for tool in [
            "bash",
            "cat",
            "cp",
            "dirname",
            "flock",
            "ls",
            "mkdir",
            "mv",
            "rm",
            "sleep",
            "touch",
        ]:
            found = shutil.which(tool)
            if found:
                (self.programs / tool).symlink_to(found)

        self.set_platform("Linux x86_64")

    def add_python(self, name: str = "python3.10", version: str = "3.10") -> None:
        write_program(
            self.programs / name, FAKE_PYTHON.format(bash=BASH, log=self.pip_log, version=version)
        )

    def set_platform(self, platform: str) -> None:
        write_program(self.programs / "uname", f"#!{BASH}\necho {platform}\n")

    def add_gpu(self) -> None:
        write_program(
            self.programs / "nvidia-smi", f"#!{BASH}\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n"
        )

    def start(
        self, *arguments: str, script: str = "run_predict.sh", **environment: str
    ) -> subprocess.Popen[str]:
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
        return (
            len(self.pip_log.read_text(encoding="utf-8").splitlines())
            if self.pip_log.exists()
            else 0
        )

    @property
    def installed(self) -> list[str]:
        """Returns the names of the locks that the last call of pip was given."""
        line = Path(f"{self.pip_log}.arguments").read_text(encoding="utf-8").splitlines()[-1]
        return re.findall(r"/requirements/([a-z-]+)\.txt", line)

    @property
    def choice(self) -> str:
        return (self.root / ".venv" / "installed.txt").read_text(encoding="utf-8").splitlines()[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", STAGES, ids=lambda path: path.name)
def test_script_sets_up_and_execs_one_command_that_exists(script: Path) -> None:
    lines = [
        line
        for line in script.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[:2] == [
        "set -euo pipefail",
        'source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/setup.sh"',
    ]
    command = re.fullmatch(r'run_command ([a-z_]+) "\$@"', lines[2])
    assert command, lines[2]
    assert len(lines) == 3
    assert script.name == f"run_{command[1]}.sh"
    assert command[1] in commands.GROUPS or commands.TABLE[command[1]].script == f"./{script.name}"


def test_every_command_has_its_script() -> None:
    assert {command.script.partition(" ")[0] for command in commands.TABLE.values()} == {
        f"./{path.name}" for path in STAGES
    }
    assert len(SCRIPTS) <= 18


@pytest.mark.parametrize(
    "script",
    [*SCRIPTS, ROOT / ".ci" / "run", ROOT / "scripts" / "lock.sh", ROOT / "scripts" / "audit.sh"],
    ids=lambda path: path.name,
)
def test_script_is_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# ")


def test_first_run_installs_and_second_does_not(checkout: Checkout) -> None:
    checkout.add_python()
    code, out, err = checkout.run("--model=x", "an image.png")
    assert code == 0, err
    start = [str(checkout.root / "cli" / "start.py"), "-m", "cli", "predict"]
    expected = [
        str(checkout.root),
        "1",
        str(checkout.elsewhere),
        *start,
        "--model=x",
        "an image.png",
    ]
    assert out.splitlines() == expected, (
        "stdout holds the module's own output only, and the current directory is the caller's"
    )
    assert "Installing" in err
    assert (checkout.root / ".venv" / "bin" / "python").exists()

    code, out, err = checkout.run("--model=x", "an image.png")
    assert (code, out.splitlines(), err) == (0, expected, "")
    assert checkout.installations == 1


def test_the_callers_files_and_path_do_not_reach_the_installation(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run(PYTHONPATH=str(checkout.elsewhere))[0] == 0
    assert (
        checkout.pip_log.read_text(encoding="utf-8") == f"in {checkout.root} with no PYTHONPATH\n"
    )


def test_each_training_has_its_section(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run("--workdir=w", script="run_teacher.sh")[1].splitlines()[4:] == [
        "-m",
        "cli",
        "teacher",
        "--workdir=w",
    ]
    for name in ("teacher", "student", "finetune"):
        words = ["--config=configs/noisy_student/digits.py", "--workdir=w", "--data=d"]
        assert app.parse(commands.TABLE[name], words)["section"] == name
        assert (
            app.parse(commands.TABLE[name], [*words, "--section=student_2"])["section"]
            == "student_2"
        )


def test_venv_elsewhere_is_relative_to_the_current_directory(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run(VENV="my venv")[0] == 0
    assert (checkout.elsewhere / "my venv" / "bin" / "python").exists()
    assert not (checkout.root / ".venv").exists()


def test_changed_pins_are_installed_again(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run()
    with open(checkout.root / "requirements" / "classic.txt", "a", encoding="utf-8") as f:
        f.write("another==1.0\n")
    assert checkout.run()[0] == 0
    assert checkout.installations == 2
    checkout.run()
    assert checkout.installations == 2


def test_environment_of_an_earlier_version_is_brought_up_to_date(checkout: Checkout) -> None:
    checkout.add_python("python3.11", "3.11")
    checkout.run()
    stamp = checkout.root / ".venv" / "installed.txt"
    stamp.write_text(
        "# Direct dependencies, exactly pinned\ntensorflow==2.15.1\n", encoding="utf-8"
    )
    assert checkout.run()[0] == 0
    assert (checkout.installations, checkout.choice) == (2, "classic cpu")


PYTHONS = {
    "3.13 alone": (["3.13"], {}, "current cpu", "3.13"),
    "3.12 alone": (["3.12"], {}, "current cpu", "3.12"),
    "3.9 alone": (["3.9"], {}, "classic cpu", "3.9"),
    "both stacks possible": (["3.10", "3.11"], {}, "classic cpu", "3.11"),
    "many": (["3.9", "3.11", "3.12", "3.13"], {}, "classic cpu", "3.11"),
    "3.9 last": (["3.9", "3.12"], {}, "current cpu", "3.12"),
    "current asked for": (["3.11"], {"STACK": "current"}, "current cpu", "3.11"),
    "newest of the current ones": (
        ["3.10", "3.11", "3.12"],
        {"STACK": "current"},
        "current cpu",
        "3.12",
    ),
    "classic asked for": (["3.10", "3.13"], {"STACK": "classic"}, "classic cpu", "3.10"),
    "a TPU": (["3.11", "3.12"], {"ACCELERATOR": "tpu"}, "current tpu", "3.12"),
}


@pytest.mark.parametrize("case", PYTHONS)
def test_the_python_decides_the_stack(checkout: Checkout, case: str) -> None:
    versions, environment, choice, version = PYTHONS[case]
    for name in versions:
        checkout.add_python(f"python{name}", name)
    code, _, err = checkout.run(**environment)
    assert code == 0, err
    assert checkout.choice == choice
    python = checkout.root / ".venv" / "bin" / "python"
    assert subprocess.check_output([python, "-c", "version_info"], text=True) == f"{version}\n"
    assert checkout.installed == ["current-tpu" if "tpu" in choice else choice.split()[0]]


@pytest.mark.parametrize(
    "platform, versions, choice",
    [
        ("Linux aarch64", ["3.10", "3.11"], "current cpu"),
        ("Darwin arm64", ["3.11", "3.13"], "classic cpu"),
        ("Darwin x86_64", ["3.9", "3.13"], "classic cpu"),
    ],
)
def test_the_platform_decides_the_stack(
    checkout: Checkout, platform: str, versions: list[str], choice: str
) -> None:
    checkout.set_platform(platform)
    checkout.add_gpu()  # TensorFlow's packages for these platforms do not know it
    for name in versions:
        checkout.add_python(f"python{name}", name)
    code, _, err = checkout.run()
    assert code == 0, err
    assert checkout.choice == choice


def test_a_gpu_brings_the_cuda_packages(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.add_gpu()
    assert checkout.run()[0] == 0
    assert (checkout.choice, checkout.installed) == ("classic cuda", ["classic", "classic-cuda"])


def test_nvidia_smi_without_a_gpu_is_a_cpu(checkout: Checkout) -> None:
    checkout.add_python()
    write_program(
        checkout.programs / "nvidia-smi",
        f"#!{BASH}\necho 'NVIDIA-SMI has failed: no driver'\nexit 9\n",
    )
    assert checkout.run()[0] == 0
    assert checkout.choice == "classic cpu"


def test_accelerator_overrides_what_is_seen(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.add_gpu()
    assert checkout.run(ACCELERATOR="cpu")[0] == 0
    assert (checkout.choice, checkout.installed) == ("classic cpu", ["classic"])
    assert checkout.run()[0] == 0, "the choice is the environment's from then on"
    assert (checkout.choice, checkout.installations) == ("classic cpu", 1)


def test_preinstalled_leaves_tensorflow_alone(checkout: Checkout) -> None:
    write_program(
        checkout.programs / "python3.11", f'#!{BASH}\n[[ "$*" != *find_spec* ]] && echo 3.11\n'
    )  # has no TensorFlow
    checkout.add_python("python3", "3.12")
    write_program(checkout.programs / "uv", f"#!{BASH}\nexit 1\n")
    code, _, err = checkout.run(ACCELERATOR="preinstalled")
    assert code == 0, err
    assert checkout.choice == "current preinstalled"
    venv = checkout.root / ".venv"
    calls = Path(f"{checkout.pip_log}.arguments").read_text(encoding="utf-8").splitlines()
    assert [line.partition("--progress-bar off ")[2] for line in calls] == [
        f"-r {venv}/missing.txt -c {venv}/present.txt",
        f"--no-deps -r {venv}/missing_beside_tensorflow.txt",
    ]
    checkout.run()
    assert checkout.installations == 2


def test_preinstalled_without_tensorflow_is_one_line(checkout: Checkout) -> None:
    write_program(
        checkout.programs / "python3", f'#!{BASH}\n[[ "$*" != *find_spec* ]] && echo 3.12\n'
    )
    code, _, err = checkout.run(ACCELERATOR="preinstalled")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no Python 3.9 to 3.13 with TensorFlow found (python3 has no TensorFlow)" in err


def test_only_what_is_missing_beside_a_tensorflow_is_installed() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    present = {
        "tensorflow-tpu": "2.20.0",
        "numpy": "2.2.6",
        "protobuf": "6.31.1",
        "keras": "3.12.0",
        "absl-py": "2.3.1",
    }
    stack, ordinary, beside = missing_packages.missing(lines, (2, 20), present)
    assert (stack, beside) == ("current", ["tf-keras==2.20.*", "tensorflow-serving-api==2.20.*"])
    names = {re.split("[<>=; ]", line)[0] for line in ordinary}
    assert {"apache-beam", "keras-cv", "tensorflow-datasets"} <= names
    assert not names & {*present, "tensorflow", "tf-keras", "tensorflow-addons"}

    stack, ordinary, beside = missing_packages.missing(lines, (2, 15), {})
    assert (stack, beside) == ("classic", ["tensorflow-serving-api==2.15.*"])
    assert "tensorflow-addons==0.23.0" in ordinary
    assert 'array-record<0.5 ; python_version < "3.10"' in ordinary, (
        "markers that are not the stack's stay"
    )


def test_the_tests_add_the_development_tools(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run()
    assert checkout.installed == ["classic"]
    assert checkout.run("-q", script="run_tests.sh")[0] == 0
    assert (checkout.installations, checkout.installed) == (2, ["classic", "classic-dev"])
    for script in ("run_tests.sh", "run_predict.sh"):
        assert checkout.run("-q", script=script)[0] == 0
    assert checkout.installations == 2, "the tools are more than a stage needs, and stay"


WRONG_CHOICES = {
    "heroku": ({"STACK": "heroku"}, "STACK=heroku is neither classic nor current"),
    "gpu": ({"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu is none of cpu, cuda, tpu and preinstalled"),
    "classic on a TPU": ({"STACK": "classic", "ACCELERATOR": "tpu"}, "unset STACK"),
    "both": ({"STACK": "current", "ACCELERATOR": "preinstalled"}, "unset STACK or ACCELERATOR"),
}


@pytest.mark.parametrize("case", WRONG_CHOICES)
def test_a_wrong_choice_is_one_line_and_exit_2(checkout: Checkout, case: str) -> None:
    checkout.add_python()
    environment, expected = WRONG_CHOICES[case]
    code, _, err = checkout.run(**environment)
    assert (code, len(err.splitlines())) == (2, 1)
    assert expected in err
    assert not checkout.installations


def test_cuda_on_a_mac_is_one_line(checkout: Checkout) -> None:
    checkout.set_platform("Darwin arm64")
    checkout.add_python()
    code, _, err = checkout.run(ACCELERATOR="cuda")
    assert (code, err) == (
        2,
        "error: ACCELERATOR=cuda needs Linux on x86-64; this is Darwin arm64\n",
    )


def test_another_stack_does_not_replace_an_environment(checkout: Checkout) -> None:
    checkout.add_python()
    checkout.run()
    code, _, err = checkout.run(STACK="current")
    assert (code, len(err.splitlines())) == (2, 1)
    assert (
        "was made with STACK=classic ACCELERATOR=cpu; delete it or name another with VENV=" in err
    )
    assert checkout.run(STACK="current", VENV=str(checkout.folder / "other"))[0] == 0
    assert checkout.run(STACK="classic")[0] == 0
    assert (checkout.installations, checkout.choice) == (2, "classic cpu")


def test_interrupted_installation_keeps_the_choice(checkout: Checkout) -> None:
    checkout.add_python()
    assert checkout.run(STACK="current", FAKE_PIP_STATUS="1")[0] == 1
    assert checkout.run()[0] == 0
    assert (checkout.installations, checkout.choice) == (2, "current cpu")


def test_failed_installation_shows_why_and_is_tried_again(checkout: Checkout) -> None:
    checkout.add_python()
    code, out, err = checkout.run(FAKE_PIP_STATUS="1")
    assert (code, out) == (1, "")
    assert "pip: something went wrong" in err
    assert err.splitlines()[-1].startswith("error: ")
    assert checkout.run()[0] == 0
    assert checkout.installations == 2


@pytest.mark.skipif(
    not shutil.which("flock"), reason="without flock two first runs may install twice"
)
def test_two_first_runs_at_once_install_once(checkout: Checkout) -> None:
    checkout.add_python()
    processes = [checkout.start(), checkout.start()]
    assert [(process.communicate(timeout=20), process.returncode)[1] for process in processes] == [
        0,
        0,
    ]
    assert checkout.installations == 1


@pytest.mark.parametrize("version", ["3.8", "3.14"])
def test_no_suitable_python_is_one_line_and_exit_2(checkout: Checkout, version: str) -> None:
    write_program(
        checkout.programs / "python3.9",
        f"#!{BASH}\necho 'pyenv: python3.9: command not found' >&2\nexit 127\n",
    )
    checkout.add_python("python3", version)
    code, out, err = checkout.run()
    assert (code, out) == (2, "")
    assert (
        err
        == f"error: no Python 3.9 to 3.13 found (python3 is {version}); install python3.13 or uv\n"
    )


def test_a_python_that_does_not_start_is_passed_over(checkout: Checkout) -> None:
    write_program(checkout.programs / "python3.11", f"#!{BASH}\nexit 127\n")
    checkout.add_python("python3")
    assert checkout.run()[0] == 0


def test_python_without_ensurepip_names_the_package(checkout: Checkout) -> None:
    write_program(
        checkout.programs / "python3", f'#!{BASH}\n[[ "$*" != *ensurepip* ]] && echo 3.12\n'
    )
    code, _, err = checkout.run()
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "python3-venv" in err


def test_uv_is_used_where_it_is(checkout: Checkout) -> None:
    checkout.add_python()
    uv_log = checkout.folder / "uv.log"
    make = (
        f'mkdir -p "${{!#}}/bin"; cp "{checkout.programs}/python3.10" "${{!#}}/bin/python"; touch'
        ' "${!#}/pyvenv.cfg"'
    )
    write_program(
        checkout.programs / "uv",
        f'#!{BASH}\necho "$*" >>"{uv_log}"\nif [[ $1 == venv ]]; then {make}; fi\n',
    )
    assert checkout.run()[0] == 0
    make_line, install_line = uv_log.read_text(encoding="utf-8").splitlines()
    assert make_line.startswith("venv ")
    assert install_line.startswith("pip install ")
    assert f"--require-hashes --no-deps -r {checkout.root}/requirements/classic.txt" in install_line
    assert checkout.installations == 0


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_venv_that_is_something_else_is_left_alone(checkout: Checkout, kind: str) -> None:
    checkout.add_python()
    precious = (
        checkout.elsewhere / "mine" if kind == "file" else checkout.elsewhere / "mine" / "precious"
    )
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
