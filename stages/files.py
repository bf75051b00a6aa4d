"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.errors import InputError, write_failure


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed to `path`, on error it is removed.

    A reader, or a run that starts after a SIGKILL, sees the finished file or none.

    Raises:
      InputError: the disk is full, read-only, or beyond a limit or a quota.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{platform.node()}-{os.getpid()}")  # two machines' processes may have one number
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        failure = write_failure(error)
        if failure:
            what, remedy = failure
            raise InputError(f"{what} on the disk of {path}; {remedy} and run the same command again") from error
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_temporaries(directory: str | Path) -> None:
    """Removes the temporary files that a killed run left in `directory`. Only for its one writer: another's would go as well."""
    for path in Path(directory).glob(".*.tmp-*"):
        path.unlink()


def plain_path(path: Path) -> Path:
    """Returns a path that TensorFlow takes literally.

    TensorFlow looks for checkpoints and SavedModels by pattern, so that it does not find one in `run [v1]`.

    Args:
      path: a directory, or what the names of a checkpoint's files begin with; its files must exist.

    Returns:
      `path`, or, where it has characters of patterns, a link to it that lives as long as this process.
    """
    if not re.search(r"[][*?{}\\]", str(path)):
        return path
    folder = Path(tempfile.mkdtemp(dir=_links().name))
    if path.is_dir():
        (folder / "plain").symlink_to(path.resolve())
    for file in path.parent.iterdir():
        if file.name.startswith(f"{path.name}."):
            (folder / f"plain{file.name[len(path.name) :]}").symlink_to(file.resolve())
    return folder / "plain"


@functools.cache
def _links() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="links-")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads JSON. Raises FileNotFoundError, or InputError where the file is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise InputError(f"{path} is damaged: {error}; make it, or get it, again") from error
