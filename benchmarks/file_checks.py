"""Measures what the checks of users' files cost, in CPU time.

    ./run_benchmarks.sh file_checks [--images=512]

- `digests`: SHA-256 of shards beside preparing their images for training, without the training
  step.
- `listing`: the fingerprint of a folder of 100,000 empty files, which a later start takes to notice
  changes.
- `first_bytes`: deciding by its first bytes whether a file of unknown ending is an image.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import dataclasses
import tempfile
from pathlib import Path

import ml_collections

from benchmarks import report
from benchmarks.input_pipeline import BATCH, NOISE, photographs
from cli.files import file_digest, read_file
from data import fingerprint, formats, protos, records
from data.pipeline import train_batches

FILES = 100_000
ROUNDS = 3


def digests(directory: Path, count: int) -> None:
    """Prints images a CPU second of hashing shards, and of preparing the images.

    The goal: hashing takes 3 % of the time of preparing.
    """
    examples = (
        protos.make_example(image, str(i), i % 10) for i, image in enumerate(photographs(count))
    )
    names = tuple(map(str, range(10)))
    manifest = records.write_split(
        directory,
        "labeled",
        examples,
        num_shards=4,
        num_records=count,
        kind="labeled",
        label_names=names,
    )
    trusted = dataclasses.replace(manifest, trusted=True)

    def prepare() -> None:
        for _ in train_batches(trusted, NOISE, batch_size=BATCH, seed=0).take(count // BATCH):
            pass

    times = report.interleaved(
        ROUNDS,
        hash=lambda: [file_digest(directory / name) for name in manifest.files],
        prepare=prepare,
    )
    hashing, preparing = (count / times[name][1] for name in ("hash", "prepare"))
    report.line(
        "file_checks/digests", hashing, preparing, "preparing", goal=33.0, unit="images/CPU s"
    )


def listing(directory: Path) -> None:
    """Prints files a CPU second of listing a folder with its fingerprint."""
    for i in range(FILES):
        (directory / str(i % 10)).mkdir(exist_ok=True)
        (directory / str(i % 10) / f"{i}.jpg").touch()
    data = ml_collections.ConfigDict(
        {"source": "image_folder", "labeled": str(directory), "label_offset": 0, "on_error": "fail"}
    )
    times = report.interleaved(
        ROUNDS,
        ours=lambda: fingerprint.listed("labeled", data),
        walk=lambda: [path.stat() for path in directory.rglob("*.jpg")],
    )
    ours, walk = (FILES / times[name][1] for name in ("ours", "walk"))
    report.line(
        "file_checks/listing", ours, walk, "pathlib's rglob and stat", goal=0.5, unit="files/CPU s"
    )


def first_bytes(directory: Path, count: int) -> None:
    """Prints files a CPU second of reading and judging first bytes."""
    paths = [directory / str(i) for i in range(count)]
    for path, image in zip(paths, photographs(count)):
        path.write_bytes(image)
    times = report.interleaved(
        ROUNDS,
        ours=lambda: [formats.kind_of(read_file(path, formats.HEAD)) for path in paths],
        whole=lambda: [path.read_bytes() for path in paths],
    )
    ours, whole = (count / times[name][1] for name in ("ours", "whole"))
    report.line(
        "file_checks/first_bytes",
        ours,
        whole,
        "reading the whole file",
        goal=1.0,
        unit="files/CPU s",
    )


def main(images: int = 512) -> None:
    """Prints the lines."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("shards", "listed", "first"):
            (Path(temporary) / name).mkdir()
        digests(Path(temporary) / "shards", images)
        listing(Path(temporary) / "listed")
        first_bytes(Path(temporary) / "first", images)
