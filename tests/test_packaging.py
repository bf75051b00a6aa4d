"""The project as a library: light imports, lazy names, and a package that lists all of it."""

from __future__ import annotations

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
    """The packages that pyproject.toml lists."""
    listed = re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.DOTALL | re.MULTILINE)
    assert listed
    return re.findall(r'"([\w.]+)"', listed.group(1))


def requirements() -> dict[str, Requirement]:
    """Canonical name -> what pyproject.toml asks for, extras included."""
    project = PYPROJECT[PYPROJECT.index("[project]") : PYPROJECT.index("[tool.setuptools]")]
    lists = re.findall(r"^(?!requires)[a-z]+ = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    found = [Requirement(text) for block in lists for text in re.findall(r'"(.*?)"', block)]
    assert len({requirement.name for requirement in found}) == len(found)
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_no_package_imports_tensorflow() -> None:
    light = [*packages(), "training.architectures", "training.models", "training.smoke"]
    program = f"import sys, importlib\nfor name in {light}: importlib.import_module(name); assert 'tensorflow' not in sys.modules, name"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names(package: str) -> None:
    namespace: dict[str, type] = {}
    exec(f"import {package}; from {package} import {', '.join(LAZY[package])}; listed = dir({package})", namespace)
    for name in LAZY[package]:
        assert namespace[name].__name__ == name and namespace[name].__module__.startswith(f"{package}.")
        assert name in namespace["listed"]  # type: ignore[operator]
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec(f"from {package} import Nothing")


def test_every_folder_of_modules_is_packaged() -> None:
    tops = {name.partition(".")[0] for name in packages()}
    for room in tops:
        folders = {path.parent for path in (ROOT / room).rglob("*.py")}
        assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} <= set(packages())
    assert tops == {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} - {"benchmarks", "scripts", "tests"}


def test_the_pins_fit_the_package() -> None:
    wanted, pinned = requirements(), {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            pinned.setdefault(canonicalize_name(Requirement(text).name), []).append(Requirement(text))
    assert wanted.keys() == pinned.keys()
    for name, pins in pinned.items():
        for pin in pins:
            (version,) = (specifier.version for specifier in pin.specifier)
            assert wanted[name].specifier.contains(version), f"{name}=={version} of requirements.txt does not fit {wanted[name]}"
