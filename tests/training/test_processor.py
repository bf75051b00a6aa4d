"""Checks whether operations run on oneDNN: by CPU instructions, network and image size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from cli import recipes
from training import processor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cpu(monkeypatch):
    """`cpu(INSTRUCTIONS)`: the machine has these, and the environment says nothing of oneDNN."""

    def have(instructions: str) -> None:
        monkeypatch.setattr(processor, "_cpu", lambda: ("a CPU", instructions))
        monkeypatch.delenv(processor.VARIABLE, raising=False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    return have


def chosen(config: ConfigDict | None, data: Path | None = None) -> str | None:
    processor.choose(config, data)
    return os.environ.pop(processor.VARIABLE, None)


def recipe(path: str, *settings: str) -> ConfigDict:
    return recipes.from_flags(f"--config=configs/{path}", *settings)


B0 = "noisy_student/image_folder.py:b0"
SMALL = "noisy_student/image_folder.py:small"


@pytest.mark.parametrize(
    ("instructions", "path", "settings", "value"),
    [
        ("AVX2", "noisy_student/digits.py", (), "1"),  # 16 px, halved twice
        ("AVX2", "meta_pseudo_labels/cifar10_4k.py", (), "1"),  # no depthwise convolutions
        ("AVX2", "noisy_student/imagenet.py:b0", (), "1"),
        ("AVX2", B0, ("--config.preprocessing.image_size=32",), "0"),
        ("AVX2", B0, ("--config.preprocessing.image_size=64",), "1"),
        (
            "AVX2",
            "noisy_student/imagenet.py:b0",
            ("--config.preprocessing.image_size=32",),
            "1",
        ),  # the sections have their own
        (
            "AVX2",
            SMALL,
            (),
            None,
        ),  # the data decide on the size, and are not there: the stages choose
        ("AVX-512", "noisy_student/digits.py", (), "1"),
        ("", "noisy_student/digits.py", (), None),
    ],
)
def test_choice(
    cpu, instructions: str, path: str, settings: tuple[str, ...], value: str | None
) -> None:
    cpu(instructions)
    assert chosen(recipe(path, *settings)) == value


def test_without_a_recipe_it_is_on(cpu) -> None:
    cpu("AVX2")
    assert chosen(None) == "1"


def test_prepared_data_say_the_size(cpu, tmp_path: Path) -> None:
    cpu("AVX2")
    (tmp_path / "summary.json").write_text(
        json.dumps({"median_height": 8.0, "median_width": 9.0}), encoding="utf-8"
    )
    assert (chosen(recipe(B0), tmp_path), chosen(recipe(B0), tmp_path / "none")) == ("0", None)


@pytest.mark.parametrize("name", ["keras_cv/efficientnetv2_b0", "keras_cv/mobilenet_v3_small"])
def test_backbones_with_depthwise_convolutions(cpu, name: str) -> None:
    cpu("AVX2")
    small, large = (
        ConfigDict({"preprocessing": {"image_size": size}, "teacher": {"model": {"name": name}}})
        for size in (32, 33)
    )
    assert (chosen(small), chosen(large)) == ("0", "1")
    without = ConfigDict(
        {"preprocessing": {"image_size": 32}, "teacher": {"model": {"name": "keras_cv/resnet50"}}}
    )
    assert chosen(without) == "1"


def test_the_users_own_value_stays(cpu, monkeypatch) -> None:
    cpu("AVX2")
    monkeypatch.setenv(processor.VARIABLE, "0")
    processor.choose(None)
    assert os.environ[processor.VARIABLE] == "0" and processor.describe() == "AVX2, oneDNN off"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2_vnni")
    monkeypatch.setenv(processor.VARIABLE, "1")
    monkeypatch.setattr(processor, "_cpu", lambda: ("a CPU", "AVX-512"))
    assert processor.machine() == {
        "cpu": "a CPU",
        "instructions": "AVX2",
        "cores": os.cpu_count(),
        "onednn": "1",
    }


def test_a_command_chooses_before_tensorflow_is_imported() -> None:
    """Prints `describe` in the process of a command; there is no TensorFlow yet at the choice."""
    program = f"""
import sys
from cli import app
from training import processor

def choose(*given):
    chosen(*given)
    print("tensorflow" in sys.modules, processor.describe())
    sys.exit()

chosen, processor.choose = processor.choose, choose
sys.argv[1:] = ["noisy_student", "--config={ROOT}/configs/noisy_student/digits.py", \
"--workdir=w", "--dry_run"]
app.main()
"""
    environment = {key: value for key, value in os.environ.items() if key != processor.VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("False")
