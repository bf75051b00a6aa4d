"""The folder layout of TF Serving: `SERVING_DIR/NAME/1/saved_model.pb`, `SERVING_DIR/NAME/2/…`; the highest number is the newest.

Read by those who export, serve and evaluate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.errors import InputError, one_line

SAVED_MODEL = "saved_model.pb"
MODELS_CONFIG = "models.config"


def versions(directory: str | Path) -> list[int]:
    """The numbers of the versions in a model's folder, ascending."""
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdecimal() and (path / SAVED_MODEL).is_file())


def find(directory: str | Path) -> Path | None:
    """The directory of one SavedModel, given it, the folder with its versions (then the newest), or a SERVING_DIR with one model.

    Returns:
      None where there is no SavedModel.

    Raises:
      InputError: there are several models.
    """
    directory = Path(directory)
    if (directory / SAVED_MODEL).is_file():
        return directory
    if not directory.is_dir():
        return None
    folders = [directory, *(path for path in sorted(directory.iterdir()) if path.is_dir() and not path.name.startswith("."))]
    found = [folder for folder in folders if versions(folder)]
    if len(found) > 1:
        raise InputError(f"--model: {directory} holds several models; name one: {', '.join(str(folder) for folder in found)}")
    return found[0] / str(versions(found[0])[-1]) if found else None


def resolve(directory: str | Path) -> Path:
    """What `find` finds. Raises InputError where there is no exported model, or more than one."""
    if not Path(directory).is_dir():
        raise InputError(f"--model: {directory} does not exist; make it with run_export.sh")
    found = find(directory)
    if found is None:
        raise InputError(f"--model: {directory} holds no exported model; run_export.sh makes one from a training directory")
    return found


def load(directory: Path) -> Any:
    """What `tf.saved_model.load` gives for the directory of one SavedModel. Raises InputError where it is damaged."""
    import tensorflow as tf  # here, so that wrong usage is told without the seconds that this takes

    try:
        return tf.saved_model.load(str(directory))
    except Exception as error:  # a changed byte may come out of TensorFlow's loader as a KeyError or anything else
        reason = one_line(error)
        raise InputError(f"{directory} cannot be loaded ({reason}); make it again, one of ours with run_export.sh") from error
