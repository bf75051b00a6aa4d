"""Folder layout of TF Serving: `SERVING_DIR/NAME/1/saved_model.pb`, `SERVING_DIR/NAME/2/…`.

The highest number is the newest. Export, serving and evaluation read the layout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cli.errors import InputError, one_line
from cli.files import atomic_path, file_digest, plain_path
from cli.json_files import read_json
from serving import MOUNT

SAVED_MODEL = "saved_model.pb"
MODELS_CONFIG = "models.config"
BARE_CONFIG = ".models.config"
"""`models.config` for the bare binary: with this machine's paths, not the container's."""
EXPORT, CARD = "assets.extra/export.json", "MODEL_CARD.md"
"""Files of a version of this project: what it is, with the digests of its files; and the card.

Both are written anew when there is more to tell.
"""


def versions(directory: str | Path) -> list[int]:
    """Returns the numbers of the versions in a model's folder, ascending."""
    return sorted(
        int(path.name)
        for path in Path(directory).iterdir()
        if path.name.isdecimal() and (path / SAVED_MODEL).is_file()
    )


def find(directory: str | Path) -> Path | None:
    """Returns the directory of one SavedModel.

    Args:
      directory: the SavedModel, the folder with its versions (then the newest is taken), or a
        SERVING_DIR with one model.

    Returns:
      The directory; None where there is no SavedModel.

    Raises:
      InputError: there are several models.
    """
    directory = Path(directory)
    if (directory / SAVED_MODEL).is_file():
        return directory
    if not directory.is_dir():
        return None
    folders = [
        directory,
        *(
            path
            for path in sorted(directory.iterdir())
            if path.is_dir() and not path.name.startswith(".")
        ),
    ]
    found = [folder for folder in folders if versions(folder)]
    if len(found) > 1:
        raise InputError(
            f"--model: {directory} holds several models; name one:"
            f" {', '.join(str(folder) for folder in found)}"
        )
    return found[0] / str(versions(found[0])[-1]) if found else None


def require_version(directory: str | Path) -> Path:
    """Returns what `find` finds. Raises InputError where there is no model, or more than one."""
    if not Path(directory).is_dir():
        raise InputError(f"--model: {directory} does not exist; make it with run_export.sh")
    found = find(directory)
    if found is None:
        raise InputError(
            f"--model: {directory} holds no exported model; run_export.sh makes one from a training"
            " directory"
        )
    return found


def digests(directory: Path) -> dict[str, str]:
    """Returns the SHA-256 of a version's files by name, except of files that are written anew."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in names.items() if name not in (EXPORT, CARD)}


def verify(directory: Path) -> None:
    """Compares the files of one version with the digests in its `export.json`.

    A SavedModel from elsewhere has none.

    Raises:
      InputError: a file is missing, or differs from its description.
    """
    if not (directory / EXPORT).is_file():
        return
    description = read_json(directory / EXPORT)
    stated = description.get("sha256") if isinstance(description, dict) else None
    if not isinstance(stated, dict):
        print(
            f"note: {directory} cannot be verified: its {EXPORT} states no digests",
            file=sys.stderr,
            flush=True,
        )
        return
    found = digests(directory)
    wrong = sorted(name for name, digest in stated.items() if found.get(name) != digest)
    if wrong:
        what = "differs (SHA-256)" if wrong[0] in found else "is missing"
        raise InputError(
            f"{directory / wrong[0]} {what}; copy the version again, or make it again with"
            " run_export.sh"
        )


def load(directory: Path) -> Any:
    """Loads the directory of one SavedModel with `tf.saved_model.load`.

    Raises InputError where it is damaged.
    """
    verify(directory)
    import tensorflow as tf  # here: wrong usage is reported without waiting seconds for it

    try:
        return tf.saved_model.load(str(plain_path(directory)))
    except Exception as error:
        # A changed byte may come out of TensorFlow's loader as a KeyError or anything else.
        reason = one_line(error)
        raise InputError(
            f"{directory} cannot be loaded ({reason}); make it again, one of ours with"
            " run_export.sh"
        ) from error


def bare_config(folder: Path) -> None:
    """Writes `models.config` with this machine's paths. Raises InputError where it is not text."""
    try:
        text = (folder / MODELS_CONFIG).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{folder / MODELS_CONFIG} is not UTF-8 text; mend it, or delete it and export again"
        ) from error
    with atomic_path(folder / BARE_CONFIG) as temporary:
        temporary.write_text(
            text.replace(f'base_path: "{MOUNT}/', f'base_path: "{folder}/'), encoding="utf-8"
        )
