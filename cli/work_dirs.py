"""The life of a work directory: `config.json` first, `summary.json` last.

A stage trusts only a directory with `summary.json`. The same command on a finished directory says
so and does nothing. Another config on a started directory is refused.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli import buckets
from cli.errors import InputError, one_line
from cli.files import file_digest, read_file
from cli.json_files import read_json, reading, to_json, write_json


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        rows = []
        for key in sorted(old.keys() | new.keys()):
            name = f"{prefix}.{key}" if prefix else key
            if key not in old or key not in new:
                rows.append(f"{name} {'added' if key in new else 'removed'}")
            else:
                rows += _differences(old[key], new[key], name)
        return rows
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]


def start(
    workdir: str | Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path] | None = None,
    *,
    of_parts: bool = False,
    shared: bool = False,
    summary_schema: Any = dict,
) -> dict[str, Any] | None:
    """Claims `workdir` for a run of `config`, or recognizes that it was done.

    Args:
      workdir: created where missing.
      config: the resolved config of the stage, JSON-serializable.
      inputs: finished directories that the stage reads, by name. Their fingerprints become part of
        the config, so that a new teacher in the same place is noticed.
      of_parts: whether the run is made of stages, each with its own directory. Each stage compares
        its part of the config. So an unfinished run may go on with a corrected config.
      shared: whether other processes of the same run work in it, too. Otherwise this process holds
        it until `finish`, or until the process ends.
      summary_schema: what `summary.json` must hold; see `json_files.read_json`.

    Returns:
      The content of `summary.json` where the stage is finished, else None: run the stage, or go on
      with it.

    Raises:
      InputError: `workdir` cannot be written, or holds another config's files or a damaged
        file; another process is at work in it; or an input is not a finished directory.
    """
    workdir = Path(workdir)
    resolved = json.loads(to_json(dict(config)))
    if inputs:
        resolved["inputs"] = {name: fingerprint(path) for name, path in inputs.items()}
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir: {workdir} is a file; name a directory")
    if re.search(r"(^|/)(gs|s3|hdfs|https?):/", str(workdir)):
        raise InputError(f"--workdir: {workdir} is an address; mount it, and give the local path")
    try:
        str(workdir).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"--workdir: {workdir} is not UTF-8, which TensorFlow needs; name another directory"
        ) from error
    summary = workdir / "summary.json"
    if not shared and workdir.exists() and not summary.exists():
        _hold(workdir)
    if path.exists():
        before = read_json(path, dict)
        differences = _differences(before, resolved)
        # If an earlier start failed validation, only `config.json` exists: the corrected config
        # replaces it.
        alone = all(other == path or other.name.startswith(".") for other in workdir.iterdir())
        open_yet = alone or (of_parts and not (workdir / "summary.json").exists())
        if differences and not (open_yet and before.keys() == resolved.keys()):
            shown = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
            raise InputError(
                f"{workdir} holds a run of another config ({shown}); name another --workdir or"
                " delete this one"
            )
        if differences:
            write_json(path, resolved)
    else:
        try:
            write_json(path, resolved)
        except OSError as error:
            raise InputError(
                f"--workdir: {workdir} cannot be written ({one_line(error)}); name another"
                " directory"
            ) from error
        if not shared:
            _hold(workdir)
    return read_json(summary, summary_schema) if summary.exists() else None


def shown(workdir: str | Path, summary: Mapping[str, Any], table: Callable[[Any], str]) -> str:
    """Returns the `table` of a finished directory's summary. Raises InputError if it fails."""
    with reading(Path(workdir) / "summary.json"):
        return table(summary)


def finish(workdir: str | Path, summary: Mapping[str, Any], done: str | None = None) -> None:
    """Writes `summary.json`, the mark of a finished directory. Call it last.

    Args:
      workdir: claimed with `start`.
      summary: its content.
      done: what the same command says when it is given again; see `say_done`.
    """
    buckets.publish_tree(workdir)  # what was not written by `atomic_path`
    write_json(Path(workdir) / "summary.json", dict(summary))
    if done is None:
        _done.pop(Path(workdir).resolve(), None)
    else:
        _done[Path(workdir).resolve()] = done
    held = _held.pop(Path(workdir).resolve(), None)
    if held is not None:
        os.close(held)


def say_done(workdir: str | Path, text: str) -> None:
    """Prints that a directory is finished.

    Next time `cli.again` prints the text, without starting the stage.
    """
    _done[Path(workdir).resolve()] = text
    print(text, flush=True)


def done_text(workdir: str | Path) -> str | None:
    """Returns what a finished directory's command says, if this process knows it; else None."""
    return _done.get(Path(workdir).resolve())


_done: dict[Path, str] = {}
"""Directories that this process found or left finished, and what their commands say."""

_held: dict[Path, int] = {}
"""Directories that this process works in: their file descriptors, which carry the lock."""


def _hold(workdir: Path) -> None:
    """Locks a directory for this process.

    Raises:
      InputError: another process has it, perhaps a stage that its killed loop has left.
    """
    key = workdir.resolve()
    if key in _held:
        return
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(
            f"--workdir: another process is at work in {workdir}; wait until it ends, or end it"
        ) from error
    except OSError:  # a file system without locks
        os.close(descriptor)
    else:
        _held[key] = descriptor


def require_finished(
    directory: str | Path, what: str, made_by: str, schema: Any = dict
) -> dict[str, Any]:
    """Returns the summary of a finished directory; it must fit `schema`, see `read_json`.

    Raises:
      InputError: there is no such directory, the stage that makes it has not finished, or its
        summary is damaged.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{what} {directory} does not exist; make it with {made_by}")
    if not (directory / "summary.json").exists():
        raise InputError(
            f"{what} {directory} is not finished (no summary.json); finish it with {made_by}"
        )
    return read_json(directory / "summary.json", schema)


def is_work_directory(directory: str | Path) -> bool:
    """Tells by the contract's file names whether a run or an evaluation worked in a directory.

    It need not have finished.
    """
    if not any(
        os.path.exists(os.path.join(directory, name)) for name in ("config.json", "report.html")
    ):
        return False  # without listing the directory, which may hold millions of images
    try:
        names = {name for name in os.listdir(directory) if not name.startswith(".")}
    except OSError:
        return False
    if "report.html" in names and names & {"summary.json", "progress.jsonl"}:
        return True
    if "config.json" not in names:
        return False
    if names & {"summary.json", "checkpoints", "metrics.jsonl", "commands.txt"}:
        return True
    if names - {"config.json", "labeled", "unlabeled", "test", "validation", "pseudo_labeled"}:
        return False
    try:  # data in preparation; a user's own folders may have these names
        config = json.loads(read_file(Path(directory) / "config.json"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"seed", "data"} <= config.keys()


def fingerprint(directory: str | Path) -> str:
    """Returns a short digest of a finished directory: of its summary and of its model, if any.

    A model of an earlier version does not count: its `model.json` states no digest of the
    weights: work begun with it goes on.

    Raises:
      InputError: it is not finished, or its weights differ from what its `model.json` describes.
    """
    path = Path(directory) / "summary.json"
    if not path.exists():
        raise InputError(f"{directory} is not a finished work directory (no summary.json)")
    content, model = path.read_bytes(), path.parent / "model"
    if (model / MODEL).exists() and verify_weights(model):
        content += (model / MODEL).read_bytes()  # with the digest of the weights
    return hashlib.sha256(content).hexdigest()[:16]


MODEL, WEIGHTS, WEIGHTS_DIGEST = "model.json", "model.weights.h5", "weights_sha256"
"""Description and weights of a `model/` directory, and the description's key of their SHA-256."""


def verify_weights(directory: Path) -> bool:
    """Compares the weights of a `model/` directory with the digest in its description.

    Returns:
      False where the description, of an earlier version, states no digest.

    Raises:
      InputError: the weights are missing, or differ from the description.
    """
    description, path = read_json(directory / MODEL), directory / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{path} is missing or is not a regular file; copy the whole directory again, or make "
            "it again"
        )
    stated = description.get(WEIGHTS_DIGEST) if isinstance(description, dict) else None
    if stated is None:
        return False
    state = path.stat()
    if _digest(path, (state.st_ino, state.st_size, state.st_mtime_ns)) != stated:
        raise InputError(
            f"{path} does not hold the weights of {MODEL} (its SHA-256 differs: damaged or"
            " replaced); copy the whole directory again, or make it again"
        )
    return True


@functools.lru_cache(maxsize=64)
def _digest(path: Path, state: tuple[int, ...]) -> str:
    """Returns the SHA-256 of a file, computed once in a process for each `state` of it."""
    return file_digest(path)
