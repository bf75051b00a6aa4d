"""The stack: TensorFlow and Keras are chosen before the first import; the newest is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import stack

ROOT = Path(__file__).resolve().parents[2]

TENSORFLOW = """
import os
__version__ = "{version}"
os.write(2, b"chatter of C++\\n")
class keras:
    class Model:
        __module__ = "keras.src.models"
"""


def site(tmp_path: Path, version: str = "2.21.0", keras: str = "3.0.0", legacy: str = "") -> Path:
    """Makes a directory with packages that are only names: TensorFlow, Keras, perhaps tf-keras."""
    for name in ("tensorflow", "keras", *(["tf_keras"] if legacy else [])):
        (tmp_path / name).mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        TENSORFLOW.format(version=version), encoding="utf-8"
    )
    (tmp_path / "keras" / "__init__.py").write_text(f"__version__ = '{keras}'", encoding="utf-8")
    if keras.startswith("3"):
        (tmp_path / "keras" / "_tf_keras").mkdir()
    if legacy:
        (tmp_path / "tf_keras" / "__init__.py").write_text(
            f"__version__ = '{legacy}'", encoding="utf-8"
        )
    return tmp_path


def run(program: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    # -S hides the installed packages.
    environment = {**kept, "PYTHONPATH": f"{path}:{ROOT}", **environment}
    return subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


IMPORT = "import os, cli, tensorflow; print(os.environ.get('TF_USE_LEGACY_KERAS'))"


def test_keras_2_is_asked_for_before_the_first_import(tmp_path: Path) -> None:
    done = run(IMPORT, site(tmp_path, legacy="2.21.0"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")  # and quiet


def test_the_classic_stack_is_left_alone(tmp_path: Path) -> None:
    done = run(IMPORT, site(tmp_path, version="2.15.1", keras="2.15.0"), TF_USE_LEGACY_KERAS="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


@pytest.mark.parametrize("legacy", ["", "2.21.0"])
def test_keras_3_in_use_is_one_error(tmp_path: Path, legacy: str) -> None:
    done = run("import tensorflow, keras\nimport cli", site(tmp_path, legacy=legacy))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "cli.errors.InputError: TensorFlow uses Keras 3 in this process"
    )


def test_without_tf_keras(tmp_path: Path) -> None:
    done = run(IMPORT, site(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "cli.errors.InputError: TensorFlow has only Keras 3"
    )


def test_a_newer_tensorflow_is_one_warning(tmp_path: Path) -> None:
    again = (
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import cli,"
        " tensorflow'], stderr=-1).stderr)"
    )
    done = run(f"{IMPORT}; {again}", site(tmp_path, version="2.100.0rc1", legacy="2.100.0"))
    # A process that this one starts does not repeat the warning.
    assert (done.returncode, done.stdout) == (
        0,
        "1\nb''\n",
    )
    assert (
        done.stderr
        == f"warning: TensorFlow 2.100.0rc1 is newer than {stack.NEWEST}, the newest that this"
        " project was tested with\n"
    )


def test_what_an_import_raises_is_heard(tmp_path: Path) -> None:
    (site(tmp_path, legacy="2.21.0") / "tensorflow" / "__init__.py").write_text(
        "raise ImportError('no AVX')", encoding="utf-8"
    )
    done = run("import cli, tensorflow", tmp_path)
    assert done.stderr.splitlines()[-1] == "ImportError: no AVX"


def test_the_name_of_this_stack() -> None:
    import tensorflow as tf

    minor = ".".join(tf.__version__.split(".")[:2])
    assert stack.current() in (
        f"TensorFlow {minor}, Keras {minor}",
        f"TensorFlow {minor}, tf-keras {minor}",
    )
    assert tf.keras.Model.__module__.startswith(("keras.src.engine", "tf_keras.src.engine"))
    assert stack.current() == stack.CLASSIC or minor != "2.15"


def test_a_message_as_json_has_its_default_values() -> None:
    from tensorflow_serving.apis import get_model_status_pb2

    message = get_model_status_pb2.ModelVersionStatus(version=3)
    assert json.loads(stack.json_of(message)) == {"version": "3", "state": "UNKNOWN"}
