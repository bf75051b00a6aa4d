"""The manifest of a split directory: which shards it has, and what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from stages.errors import InputError, one_line
from stages.files import read_json, write_json

MANIFEST = "manifest.json"
KINDS = ("labeled", "unlabeled", "pseudo_labeled", "predictions")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a split directory holds.

    Attributes:
      directory: where the shards are.
      name: of the split; the shards' file names begin with it.
      files: the shards' file names, in order.
      records: number of records in each.
      label_names: name of each class, in order; empty where unknown (unlabelled images).
      label_offset: stored `image/class/label` minus the class counted from 0.
      kind: one of `KINDS`.
      extra: whatever else the writer wants known (JSON).
      digests: SHA-256 of each file, hexadecimal.
      trusted: whether readers take the shards as they are, without looking at `digests`.
    """

    directory: Path
    name: str
    files: tuple[str, ...]
    records: tuple[int, ...]
    label_names: tuple[str, ...]
    label_offset: int
    kind: str
    extra: dict[str, Any]
    digests: tuple[str, ...]
    trusted: bool = False

    @property
    def num_records(self) -> int:
        """Over all shards."""
        return sum(self.records)

    @property
    def num_classes(self) -> int:
        """0 where the classes are unknown."""
        return len(self.label_names)

    @property
    def digest(self) -> str:
        """SHA-256 of the shards' digests, hexadecimal: the same only for the same shards."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()

    @property
    def paths(self) -> tuple[str, ...]:
        """The shards' full paths, in order."""
        return tuple(str(self.directory / name) for name in self.files)


def write_manifest(manifest: Manifest) -> None:
    """Writes `manifest.json` into the manifest's directory, atomically; call it when every shard is in place."""
    if manifest.kind not in KINDS:
        raise ValueError(f"kind {manifest.kind!r} is none of {KINDS}")
    if not len(manifest.files) == len(manifest.records) == len(manifest.digests):
        raise ValueError("files, records and digests differ in length")
    write_json(
        manifest.directory / MANIFEST,
        {
            "name": manifest.name,
            "kind": manifest.kind,
            "num_records": manifest.num_records,
            "label_names": list(manifest.label_names),
            "label_offset": manifest.label_offset,
            "extra": manifest.extra,
            "files": [{"name": f, "records": n, "sha256": d} for f, n, d in zip(manifest.files, manifest.records, manifest.digests)],
        },
    )


def read_manifest(directory: str | Path, expect: str | None = None) -> Manifest:
    """Reads a split directory's manifest and sees that its shards are there.

    Args:
      directory: the split directory.
      expect: the kind that the caller can use, one of `KINDS`; None takes any.

    Raises:
      InputError: no such directory, no manifest, an unreadable one, another kind, or a shard is missing.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError(f"{directory} does not exist; it should be a directory of shards and their {MANIFEST}")
    if not path.is_file():
        raise InputError(f"{directory} has no {MANIFEST}: it is no directory of shards, or the stage that writes it has not finished")
    try:
        manifest = _parsed(read_json(path), directory)
    except (OSError, ValueError, RecursionError) as error:
        why = str(error) if type(error) is ValueError else one_line(error)
        raise InputError(f"{path} cannot be read ({why}); make the directory again") from error
    if expect is not None and manifest.kind != expect:
        raise InputError(f"{directory} holds {manifest.kind} records; {expect} ones are needed here")
    missing = [name for name in manifest.files if not (directory / name).is_file()]
    if missing:
        raise InputError(
            f"{directory} lacks {len(missing)} of {len(manifest.files)} shards (first: {missing[0]}); make the directory again"
        )
    return manifest


def _parsed(value: Any, directory: Path) -> Manifest:
    """The manifest in the JSON `value`. Raises ValueError, which names the first wrong entry."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_shown(value)}, not an object")
    files = _entry(value, "files", list)
    for file in files:
        name = _entry(file, "name", str) if isinstance(file, dict) else _entry({"files": file}, "files", dict)
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{_shown(name)} is no name of a file in the directory")
        if _entry(file, "records", int) < 0:
            raise ValueError(f"{name} has {file['records']} records")
        if not re.fullmatch("[0-9a-f]{64}", _entry(file, "sha256", str)):
            raise ValueError(f"{name} has the SHA-256 {_shown(file['sha256'])}")
    names = [file["name"] for file in files]
    if len(set(names)) != len(names):
        raise ValueError(f"{Counter(names).most_common(1)[0][0]} is listed twice")
    for name in _entry(value, "label_names", list):
        if not isinstance(name, str):
            raise ValueError(f"{_shown(name)} is no name of a class")
    if _entry(value, "kind", str) not in KINDS:
        raise ValueError(f"its kind is {_shown(value['kind'])}")
    total = sum(file["records"] for file in files)
    if _entry(value, "num_records", int) != total:
        raise ValueError(f"num_records is {value['num_records']}, but its files have {total}")
    return Manifest(
        directory=directory,
        name=_entry(value, "name", str),
        files=tuple(names),
        records=tuple(file["records"] for file in files),
        label_names=tuple(value["label_names"]),
        label_offset=_entry(value, "label_offset", int),
        kind=value["kind"],
        extra=_entry(value, "extra", dict),
        digests=tuple(file["sha256"] for file in files),
        trusted=os.environ.get("TRUST_SHARDS", "0") not in ("", "0"),
    )


def _entry(values: dict[str, Any], name: str, kind: type) -> Any:
    """`values[name]`, which must be of type `kind`. Raises ValueError."""
    if name not in values:
        raise ValueError(f"it lacks {name}")
    if type(values[name]) is not kind or (kind is int and not -(2**63) <= values[name] < 2**63):
        raise ValueError(f"{name} is {_shown(values[name])}")
    return values[name]


def _shown(value: Any) -> str:
    """A value of a JSON file in a message: on one line, and short."""
    return json.dumps(value)[:60]
