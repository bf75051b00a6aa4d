"""The manifest of a split directory: the shards and what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from cli import buckets
from cli.errors import InputError
from cli.json_files import read_json, write_json

MANIFEST = "manifest.json"
KINDS = ("labeled", "unlabeled", "pseudo_labeled", "predictions")
SCHEMA = {
    "name": str,
    "kind": str,
    "num_records": int,
    "files": [{"name": str, "records": int, "sha256": str}],
    "label_names": [str],
    "label_offset": int,
    "extra": dict,
    "beside?": {"directory": str, "digest": str, "labels": [int]},
}
"""Schema of `manifest.json`."""

INDEX_ENDING = ".index"
"""Ending of the name of a shard's index (`data.index`), after the shard's own name."""

_NAME = re.compile(r"(?!\.{1,2}$)[^/\0]+")
"""A file name without a directory."""


class Beside(NamedTuple):
    """The images of pseudo-labels: they stand beside the labels, in separate shards.

    Attributes:
      images: manifest of the image shards; shard i has the images of label shard i.
      labels: number of labels in each shard.
    """

    images: Manifest
    labels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Contents of a split directory.

    Attributes:
      directory: directory of the shards.
      name: name of the split; the shards' file names begin with it.
      files: the shards' file names, in order.
      records: number of records in each shard.
      label_names: name of each class, in order; empty if unknown (unlabeled images).
      label_offset: stored `image/class/label` minus the class counted from 0.
      kind: one of `KINDS`.
      extra: further facts from the writer (JSON).
      digests: SHA-256 of each file, hexadecimal.
      trusted: whether readers take the shards as they are, without looking at `digests`.
      beside: the images, if the shards hold labels alone. `records` then counts images with their
        copies, as if the shards held them.
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
    beside: Beside | None = None

    @property
    def num_records(self) -> int:
        """Returns the number of records of all shards."""
        return sum(self.records)

    @property
    def num_classes(self) -> int:
        """Returns the number of classes; 0 if they are unknown."""
        return len(self.label_names)

    @property
    def digest(self) -> str:
        """Returns the hexadecimal SHA-256 of all digests: the same only for the same shards."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()

    @property
    def paths(self) -> tuple[str, ...]:
        """Returns the shards' full paths, in order."""
        return tuple(str(self.directory / name) for name in self.files)


def write_manifest(manifest: Manifest) -> None:
    """Writes `manifest.json` into the manifest's directory, atomically.

    Call it when every shard is in place.
    """
    if manifest.kind not in KINDS:
        raise ValueError(f"kind {manifest.kind!r} is not one of {KINDS}")
    if not len(manifest.files) == len(manifest.records) == len(manifest.digests):
        raise ValueError("files, records and digests have different numbers of entries")
    beside = {}
    if manifest.beside:
        images, labels = manifest.beside
        # Relative, since both directories may move together.
        relative = os.path.relpath(images.directory, manifest.directory)
        beside = {
            "beside": {"directory": relative, "digest": images.digest, "labels": list(labels)}
        }
    write_json(
        manifest.directory / MANIFEST,
        {
            **beside,
            "name": manifest.name,
            "kind": manifest.kind,
            "num_records": manifest.num_records,
            "label_names": list(manifest.label_names),
            "label_offset": manifest.label_offset,
            "extra": manifest.extra,
            "files": [
                {"name": f, "records": n, "sha256": d}
                for f, n, d in zip(manifest.files, manifest.records, manifest.digests)
            ],
        },
    )


def read_manifest(directory: str | Path, expect: str | None = None) -> Manifest:
    """Reads a split directory's manifest and checks that its shards are there.

    Args:
      directory: the split directory.
      expect: the kind that the caller can use, one of `KINDS`; None takes any.

    Raises:
      InputError: no such directory, no manifest, an unreadable one, another kind, or a shard is
        missing.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError(
            f"{directory} does not exist; it should be a directory of shards and their {MANIFEST}"
        )
    if not path.is_file():
        raise InputError(
            f"{directory} has no {MANIFEST}: it is not a directory of shards, or the stage that "
            "writes it has not finished"
        )
    content = read_json(path, SCHEMA)
    manifest = _checked(content, directory)
    if expect is not None and manifest.kind != expect:
        raise InputError(
            f"{directory} holds {manifest.kind} records, but {expect} records are needed here"
        )
    missing = buckets.missing(directory, manifest.files)
    if missing:
        raise InputError(
            f"{directory} lacks {len(missing)} of {len(manifest.files)} shards (first:"
            f" {missing[0]}); make the directory again"
        )
    return (
        dataclasses.replace(manifest, beside=_beside(manifest, content["beside"]))
        if "beside" in content
        else manifest
    )


def _beside(manifest: Manifest, entry: dict[str, Any]) -> Beside:
    """Opens the images that stand beside labels.

    Raises:
      InputError: the images are missing, or are others than the labels'.
    """
    directory, labels = (
        os.path.normpath(manifest.directory.resolve() / entry["directory"]),
        entry["labels"],
    )
    try:
        images = read_manifest(directory, "unlabeled")
    except InputError as error:
        raise InputError(
            f"{manifest.directory} holds only labels, for the images in {directory}: {error}"
        ) from error
    if images.digest != entry["digest"] or not len(images.files) == len(manifest.files) == len(
        labels
    ):
        raise InputError(
            f"{manifest.directory} holds labels of other images than {images.directory} has now; "
            "run run_balance.sh again"
        )
    return Beside(images, tuple(labels))


def _checked(value: dict[str, Any], directory: Path) -> Manifest:
    """Returns the manifest of a `value` that fits `SCHEMA`.

    Raises:
      InputError: the entries contradict each other.
    """
    names = [file["name"] for file in value["files"]]
    total = sum(file["records"] for file in value["files"])
    wrong = [
        f"{name!r} is not the name of a file in the directory"
        for name in names
        if not _NAME.fullmatch(name)
    ]
    wrong += [
        f"{name} is listed {count} times" for name, count in Counter(names).items() if count > 1
    ]
    for file in value["files"]:
        if file["records"] < 0:
            wrong.append(f"{file['name']} has {file['records']} records")
        if not re.fullmatch("[0-9a-f]{64}", file["sha256"]):
            wrong.append(f"{file['name']} has the SHA-256 {file['sha256'][:70]!r}")
    if value["kind"] not in KINDS:
        wrong.append(f"its kind is {value['kind'][:60]!r}")
    if not 0 <= value["label_offset"] < 2**31:
        wrong.append(f"label_offset is {value['label_offset']}")
    if value["num_records"] != total:
        wrong.append(f"num_records is {value['num_records']}, but its files have {total}")
    if wrong:
        raise InputError(
            f"{directory / MANIFEST} is damaged: {wrong[0]}; create it or fetch it again"
        )
    return Manifest(
        directory=directory,
        name=value["name"],
        files=tuple(names),
        records=tuple(file["records"] for file in value["files"]),
        label_names=tuple(value["label_names"]),
        label_offset=value["label_offset"],
        kind=value["kind"],
        extra=value["extra"],
        digests=tuple(file["sha256"] for file in value["files"]),
        trusted=os.environ.get("TRUST_SHARDS", "0") not in ("", "0"),
    )
