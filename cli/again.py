"""Answers a repeated command: a finished stage says so without importing TensorFlow.

A command that ends writes `.done.json` into its work directory. The file holds what the command was
asked, what it read, and what it says when it is asked again. If all of that is unchanged, the next
start prints the text and ends. Otherwise the stage itself starts and makes all of its checks.

These must be unchanged:

- the command, the values of its flags and its recipe, the current directory, the project's code;
- each finished directory that it read, with the digest of its weights;
- its own summary, config and files;
- for prepared data, the source images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cli import work_dirs
from cli.commands import IMAGES_UNCHANGED, load
from cli.errors import InputError
from cli.flags import Command
from cli.json_files import read_json, to_json, write_json

FILE = ".done.json"
ROOT = Path(__file__).resolve().parent.parent

_SHARDS = ("config.json", "manifest.json", "*/manifest.json", "*-of-*", "*/*-of-*")
"""Patterns of an input's files that count, besides its summary and its model."""


class Request:
    """Request to a command, with what it reads, at one moment.

    Args:
      command: the command.
      values: value of each flag by name, and the recipe as `config`.
    """

    def __init__(self, command: Command, values: Mapping[str, Any]) -> None:
        self._command, self._values = command, values
        self._asked: dict[str, Any] | None = None
        if values.get("workdir"):
            with contextlib.suppress(InputError, OSError):  # the stage itself says what is wrong
                self._asked = _asked(command, values)

    @property
    def _directory(self) -> Path:
        return Path(self._values["workdir"]).expanduser()

    def answer(self) -> str | None:
        """Returns what the finished command says; None where the stage must start."""
        try:
            if self._asked is None or not (self._directory / FILE).exists():
                return None
            kept = read_json(self._directory / FILE, {"asked": dict, "own": str, "says": str})
            if kept["asked"] != self._asked or kept["own"] != self._own() or not self._prepared():
                return None
        except (InputError, OSError):
            return None
        return kept["says"]

    def keep(self) -> None:
        """Writes the request beside the finished stage's files, if the stage set its answer."""
        says = work_dirs.done_text(self._directory) if self._asked is not None else None
        if says is not None:
            # A directory that cannot be written stays as it is.
            with contextlib.suppress(InputError, OSError):
                write_json(
                    self._directory / FILE, {"asked": self._asked, "own": self._own(), "says": says}
                )

    def _own(self) -> str:
        return _digest(self._directory, ("summary.json", "config.json", *self._command.kept))

    def _prepared(self) -> bool:
        """Tells whether the source images are unchanged; True where the recipe does not ask."""
        # Another command prepared the data that --data names.
        if not self._command.prepared or self._values.get("data"):
            return True
        if self._values["config"].data.get("use_as_prepared", False):
            return True
        from ml_collections import ConfigDict

        data = self._directory / self._command.prepared
        settings = ConfigDict(read_json(data / "config.json", {"data": dict})["data"])
        return load(IMAGES_UNCHANGED)(data, settings)


def _asked(command: Command, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the request as JSON. Raises InputError for an input that is unfinished or damaged."""
    inputs = {
        flag.name: [_input(path) for path in _directories(values[flag.name])]
        if not flag.named
        else _named(values[flag.name])
        for flag in command.flags
        if flag.finished and values[flag.name]
    }
    plain = {
        name: value.to_dict() if hasattr(value, "to_dict") else value
        for name, value in values.items()
    }
    asked = {
        "command": command.name,
        "from": os.getcwd(),
        "values": plain,
        "inputs": inputs,
        "code": _code(),
    }
    return json.loads(to_json(asked))


def _directories(text: str) -> list[Path]:
    """Returns the directory, or the directories separated by commas."""
    return [
        Path(part).expanduser() for part in ([text] if os.path.exists(text) else text.split(","))
    ]


def _named(text: str) -> str:
    """Returns a text that changes with an input: a directory, a file or a name."""
    path = Path(text).expanduser()
    if path.is_file():
        return _state(path)
    return _input(path) if (path / "summary.json").exists() else text


def _input(path: Path) -> str:
    run = path.parent if path.name == "model" and not (path / "summary.json").exists() else path
    return f"{work_dirs.fingerprint(run)}-{_digest(run, _SHARDS)}"


def _code() -> str:
    """Returns a digest of the modules' names, sizes and modification times.

    Another version of the code thus starts its stages again.
    """
    return _of(f"{path.relative_to(ROOT)} {_state(path)}" for path in sorted(ROOT.glob("*/*.py")))


def _digest(directory: Path, patterns: Iterable[str]) -> str:
    """Returns a digest of the files that match: names, contents of JSON files, sizes of others."""
    found = sorted(
        {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    )
    return _of(f"{path.relative_to(directory)} {_content(path)}" for path in found)


def _content(path: Path) -> str:
    return (
        hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".json"
        else str(path.stat().st_size)
    )


def _state(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _of(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]
