"""The project as a library: light imports, lazy names, and a package that lists all of it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LAZY = {
    "efficientnet": ["EfficientNet"],
    "resnet": ["ResNet50", "WideResNet"],
    "noisy_student": ["NoisyStudent"],
    "meta_pseudo_labels": ["Calibrator", "MetaPseudoLabels", "ReducedMetaPseudoLabels"],
}


def packages() -> list[str]:
    """Returns the packages that pyproject.toml lists."""
    listed = re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.DOTALL | re.MULTILINE)
    assert listed
    return re.findall(r'"([\w.]+)"', listed.group(1))


def requirements() -> dict[str, list[Requirement]]:
    """Returns canonical name -> requirements in pyproject.toml, extras included."""
    project = PYPROJECT[PYPROJECT.index("[project]") : PYPROJECT.index("[tool.setuptools]")]
    lists = re.findall(
        r"^(?!requires)[a-z_]+ = \[(.*?)\](?: #[^\n]*)?$", project, re.DOTALL | re.MULTILINE
    )
    found: dict[str, list[Requirement]] = {}
    for text in [text for block in lists for text in re.findall(r'"(.*?)"', block)]:
        requirement = Requirement(text)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


# Bounds on packages that other packages ask for. They are not dependencies of this project.
BOUNDS_ONLY = {"array-record", "google-auth", "setuptools", "tensorflow-metadata"}


def test_no_package_imports_tensorflow() -> None:
    light = [*packages(), "training.architectures", "training.models", "training.smoke"]
    program = (
        f"import sys, importlib\nfor name in {light}: importlib.import_module(name); assert"
        " 'tensorflow' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names(package: str) -> None:
    namespace: dict[str, type] = {}
    exec(
        f"import {package}; from {package} import {', '.join(LAZY[package])}; listed ="
        f" dir({package})",
        namespace,
    )
    for name in LAZY[package]:
        assert namespace[name].__name__ == name and namespace[name].__module__.startswith(
            f"{package}."
        )
        assert name in namespace["listed"]  # type: ignore[operator]
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec(f"from {package} import Nothing")


def test_every_folder_of_modules_is_packaged() -> None:
    tops = {name.partition(".")[0] for name in packages()}
    for room in tops:
        folders = {path.parent for path in (ROOT / room).rglob("*.py")}
        assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= set(packages())
    assert tops == {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} - {
        "benchmarks",
        "scripts",
        "tests",
    }


@pytest.mark.parametrize("stack", ["classic", "current"])
def test_the_pins_fit_the_package(stack: str) -> None:
    wanted, pinned = requirements(), {}
    for name in (stack, f"{stack}-dev", "docs"):
        for line in (
            (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        ):
            if line and line[0].isalnum():
                pin = Requirement(line.rstrip(" \\"))
                pinned.setdefault(canonicalize_name(pin.name), []).append(pin)
    here = {"classic": "tf-keras", "current": "tensorflow-addons"}  # on the stack that has it
    assert wanted.keys() - pinned.keys() == {here[stack]}
    for name in wanted.keys() & pinned.keys():
        for pin, requirement in itertools.product(pinned[name], wanted[name]):
            (version,) = (specifier.version for specifier in pin.specifier)
            assert requirement.specifier.contains(version), (
                f"{name}=={version} of {stack} does not fit {requirement}"
            )


def test_requirements_and_package_name_the_same() -> None:
    listed = set()
    for name in ("requirements.txt", "requirements/dev.in", "requirements/docs.in"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text:
                listed.add(canonicalize_name(Requirement(text).name))
    assert listed - BOUNDS_ONLY == requirements().keys()
