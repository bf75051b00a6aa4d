"""Files that are either whole or absent, and JSON files that hold what their reader expects."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cli import buckets
from cli.errors import InputError, write_failure


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` on success.

    The file is fsynced before it is renamed. On an error it is removed. A reader, or a run that
    starts after a SIGKILL, sees the finished file or none. A local copy of a file in a bucket
    goes to the bucket before it is renamed (`cli.buckets`).

    Raises:
      InputError: the disk is full, read-only, or beyond a limit or a quota.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The machine's name is needed: processes of two machines may have the same number.
    temporary = path.with_name(f".{path.name}.tmp-{platform.node()}-{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        buckets.publish(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        failure = write_failure(error)
        if failure:
            what, remedy = failure
            raise InputError(
                f"{what} on the disk of {path}; {remedy} and run the same command again"
            ) from error
        raise
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_temporaries(directory: str | Path) -> None:
    """Removes the temporary files that a killed run left in `directory`.

    Only the one writer of `directory` may call this: another writer's files would go as well.
    """
    for path in Path(directory).glob(".*.tmp-*"):
        path.unlink()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def plain_path(path: Path) -> Path:
    """Returns a path that TensorFlow takes literally.

    TensorFlow looks for checkpoints and SavedModels by pattern. So it finds none in `run [v1]`.

    Args:
      path: a directory, or what the names of a checkpoint's files begin with. The files must exist.

    Returns:
      `path`, or a link to it where it has pattern characters. The link lives as long as this
      process.
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


def read_file(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """Reads a regular file that a user names, or its first `size` bytes.

    Follows symbolic links. Never waits: a named pipe would block until a writer opens it, and
    a device may have no end.

    Raises:
      OSError: it cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        with open(descriptor, "rb", closefd=False) as f:
            return f.read(size)
    finally:
        os.close(descriptor)


def what_is(mode: int) -> str:
    """Returns a file's type in words, by its `st_mode`."""
    kinds = (
        (stat.S_ISFIFO, "named pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISREG, "file"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "device")
