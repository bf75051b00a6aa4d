"""Files that are either whole or absent, and JSON files that hold what their reader expects."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.errors import InputError, one_line, write_failure


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


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
    """Writes `value` as indented JSON, atomically; NaN and infinity, which JSON lacks, as null."""
    with atomic_path(path) as temporary:
        # Lone surrogates are all that UTF-8 cannot encode, and their escape is JSON's own.
        temporary.write_text(to_json(value, indent=2) + "\n", encoding="utf-8", errors="backslashreplace")


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON, without escapes; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_json(path: str | os.PathLike[str], schema: Any = object) -> Any:
    """Reads a JSON file and checks what it holds.

    Args:
      path: of the file.
      schema: what is expected. One of: a type (`float` takes whole numbers too); None; a tuple of
        schemas, of which one must fit; `[schema]`, a list of any length; `[schema, schema]`, a list
        of that length; a dict of keys that must be there, or may be (`"key?"`), beside any others.
        The key `str` of such a dict has the schema of all others.

    Returns:
      The value. Its numbers are finite.

    Raises:
      FileNotFoundError: there is none.
      InputError: it cannot be read, is no JSON, or does not fit the schema. The message names the key.
    """
    return parse_json(_read_text(path), schema, str(path))


def read_json_lines(path: str | os.PathLike[str], schema: Any = dict) -> list[tuple[str, Any]]:
    """Reads a file with one JSON value a line.

    A last line without its end is left out: the writer was killed.

    Returns:
      (line, value), in order.

    Raises:
      FileNotFoundError: there is none.
      InputError: see `read_json`.
    """
    lines = _read_text(path).split("\n")[:-1]
    return [(line, parse_json(line, schema, f"{path}, line {number}")) for number, line in enumerate(lines, 1)]


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(f"{path} cannot be read ({one_line(error)}); make it, or get it, again") from error


def _damaged(where: str | os.PathLike[str], why: Exception | str) -> InputError:
    return InputError(f"{where} is damaged: {why if isinstance(why, str) else one_line(why)}; make it, or get it, again")


def parse_json(text: str, schema: Any, where: str) -> Any:
    """Returns the value of a JSON text that was found in `where`. Raises InputError: see `read_json`."""
    try:
        value = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, error) from error
    wrong = _mismatch(value, schema, "")
    if wrong:
        raise _damaged(where, wrong)
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**64:
        raise ValueError(f"{text[:20]} has {len(text)} digits and is too large")
    return int(text)


def _mismatch(value: Any, schema: Any, key: str) -> str | None:
    """Returns what is wrong with the `value` of `key`, or None. See `read_json` for schemas."""
    if isinstance(schema, tuple):
        wrong = [_mismatch(value, one, key) for one in schema]
        return None if None in wrong else wrong[0]
    if isinstance(schema, dict) and isinstance(value, dict):
        items = [(name, name.rstrip("?"), one) for name, one in schema.items() if name is not str]
        if str in schema:
            named = {plain for _, plain, _ in items}
            items += [(name, name, schema[str]) for name in value if name not in named]
        for name, plain, one in items:
            inner = f"{key}.{plain}" if key else plain
            if plain in value:
                wrong_inside = _mismatch(value[plain], one, inner)
                if wrong_inside:
                    return wrong_inside
            elif name == plain:
                return f"it has no {inner}"
        return None
    if isinstance(schema, list) and isinstance(value, list) and len(schema) in (1, len(value)):
        wrong = [_mismatch(item, schema[i % len(schema)], f"{key}[{i}]") for i, item in enumerate(value)]
        return next(filter(None, wrong), None)
    if isinstance(schema, type):
        fits = isinstance(value, (int, float) if schema is float else schema)
        if isinstance(value, bool):  # Python counts it as a whole number
            fits = schema in (bool, object)
        elif fits and schema is str:  # TensorFlow takes no lone surrogates
            fits = not any("\ud800" <= letter <= "\udfff" for letter in value)
    else:
        fits = value is None and schema is None
    return None if fits else f"{key or 'its value'} is {repr(value)[:60]}, not {_name(schema)}"


def _name(schema: Any) -> str:
    if isinstance(schema, list) and len(schema) > 1:
        return f"a list of {len(schema)}"
    kind = schema if isinstance(schema, type) else type(schema)
    return _NAMES.get(kind, "null")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises InputError for the JSON file `path` where the code within it raises a Python error.

    For values that have the right types, and do not go together.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def read_file(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """Reads a regular file that a user names, or its first `size` bytes; symbolic links are followed.

    Never waits: a named pipe would block until somebody writes into it, a device may have no end.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
        with open(descriptor, "rb", closefd=False) as f:
            return f.read(size)
    finally:
        os.close(descriptor)


def what_is(mode: int) -> str:
    """A file's type in words, by its `st_mode`."""
    kinds = ((stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISDIR, "directory"), (stat.S_ISREG, "file"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "device")
