"""The folder layout of TF Serving: `MODEL/1/saved_model.pb`, `MODEL/2/…`; the highest number is served.

Imports nothing but `stages`, so that commands which only look for a model start fast.
"""

from __future__ import annotations

from pathlib import Path

from stages.errors import InputError

SAVED_MODEL = "saved_model.pb"


def versions(directory: str | Path) -> list[int]:
    """The numbers of the versions in a model's folder, ascending."""
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdecimal() and (path / SAVED_MODEL).is_file())


def resolve(directory: str | Path) -> Path:
    """The directory of one SavedModel, given it or the folder with its versions (then the highest).

    Raises:
      InputError: there is none.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"--model: {directory} does not exist; make it with run_export.sh")
    if (directory / SAVED_MODEL).is_file():
        return directory
    numbers = versions(directory)
    if not numbers:
        raise InputError(f"--model: {directory} holds no exported model; run_export.sh makes one from a training directory")
    return directory / str(numbers[-1])
