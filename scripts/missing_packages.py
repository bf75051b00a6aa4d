"""Lists the packages that an environment with its own TensorFlow lacks.

    python scripts/missing_packages.py REQUIREMENTS FOLDER

Prints the stack that fits the TensorFlow, `classic` or `current`, and writes three files of pip
into FOLDER:

- `present.txt`: each package that is there, as a constraint, so that pip replaces none;
- `missing.txt`: the requirements that are not there;
- `missing_beside_tensorflow.txt`: the missing ones that ask for the package `tensorflow`. They are
  installed without dependencies, since the TensorFlow may come from a package of another name.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

OLDEST, FIRST_OF_CURRENT = (2, 15), (2, 16)
BESIDE_TENSORFLOW = ("tf-keras", "tensorflow-serving-api")
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?")
MARKERS = {"classic": 'python_version < "3.12"', "current": 'python_version >= "3.12"'}
"""Marks the lines of one stack in requirements.txt."""


def canonical(name: str) -> str:
    """Returns a package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(
    lines: list[str], version: tuple[int, int], present: dict[str, str]
) -> tuple[str, list[str], list[str]]:
    """Chooses the requirements to install.

    Args:
      lines: of requirements.txt.
      version: TensorFlow's, major and minor.
      present: canonical name -> version of each package that is there.

    Returns:
      The stack; requirements; requirements to install without dependencies, of TensorFlow's
      version.
    """
    stack = "classic" if version < FIRST_OF_CURRENT else "current"
    ordinary, beside = [], []
    for line in lines:
        text, _, marker = (part.strip() for part in line.partition("#")[0].partition(";"))
        if marker in MARKERS.values():
            if marker != MARKERS[stack]:
                continue
            marker = ""
        name = canonical(re.split(r"[<>=~!\[ ]", text)[0])
        if not name or name == "tensorflow" or name in present:
            continue
        if name in BESIDE_TENSORFLOW:
            beside.append(f"{name}=={version[0]}.{version[1]}.*")
        else:
            ordinary.append(f"{text} ; {marker}" if marker else text)
    return stack, ordinary, beside


def main(requirements: str, folder: str) -> None:
    """Writes the three files and prints the stack."""
    import tensorflow as tf

    version = tuple(int(part) for part in tf.__version__.split(".")[:2])
    if version < OLDEST:
        sys.exit(
            f"error: TensorFlow {tf.__version__} is too old; 2.15 is needed. Unset ACCELERATOR to"
            " install one"
        )
    found = [(d.metadata["Name"], d.version) for d in importlib.metadata.distributions()]
    # Systems also have packages with versions that pip cannot read.
    present = {
        canonical(name): number
        for name, number in found
        if name and VERSION.fullmatch(number or "")
    }
    lines = Path(requirements).read_text(encoding="utf-8").splitlines()
    stack, ordinary, beside = missing(lines, version, present)
    constraints = [f"{name}=={number}" for name, number in sorted(present.items())]
    for name, content in (
        ("present", constraints),
        ("missing", ordinary),
        ("missing_beside_tensorflow", beside),
    ):
        (Path(folder) / f"{name}.txt").write_text(
            "".join(f"{line}\n" for line in content), encoding="utf-8"
        )
    print(stack)


if __name__ == "__main__":
    main(*sys.argv[1:])
