"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is fsynced and renamed to `path`, on error it is removed.

    A reader, or a run that starts after a SIGKILL, sees the finished file or none.

    Raises:
      InputError: the disk is full.
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
        if os.strerror(errno.ENOSPC) in str(error):  # TensorFlow's writers have exceptions of their own for it
            raise InputError(f"no space left on the disk of {path}; make room and run the same command again") from error
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
