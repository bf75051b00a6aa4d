"""ImageNet's validation images as prepared data of one split, which the suites read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cli import work_dirs
from cli.errors import InputError
from data import records
from data.archives import ArchiveImages
from data.imagenet import open_imagenet
from data.protos import make_example
from data.sources import Request
from data.tfrecords import RecordImages
from evaluation.imagenet import NUM_CLASSES, wnids

CLASSES = "classes.txt"
"""File with the WordNet ids of the classes, one a line."""


def prepare(imagenet: str, output: Path) -> Path:
    """Writes the validation images into `output` as the split `test`, or finds them there.

    Args:
      imagenet: directory with ImageNet's TFRecords or its official tar files (docs/data.md).
      output: directory to write; keys hold the files' own names, by which ReaL joins.

    Returns:
      `output`.

    Raises:
      InputError: no such images, classes in another order, or an image that cannot be read.
    """
    location = str(Path(imagenet).expanduser().resolve())
    if work_dirs.start(output, {"stage": "imagenet_validation", "imagenet": location}):
        return output
    images = open_imagenet(Request(location, "test"))
    count, names = len(images.labels), wnids()
    _require_order(images, names, imagenet)
    shards = records.num_shards_for(count)
    manifest = records.write_split(
        output / "test", "test", _examples(images), shards, count, kind="labeled", label_names=names
    )
    (output / CLASSES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    work_dirs.finish(
        output, {"splits": {"test": {"images": manifest.num_records}}, "label_names": list(names)}
    )
    return output


def _require_order(
    images: ArchiveImages | RecordImages, names: tuple[str, ...], imagenet: str
) -> None:
    """Raises InputError where a label is not one of the 1,000 classes, or has another name."""
    highest = int(images.labels.max())
    if highest >= NUM_CLASSES:
        raise InputError(
            f"--imagenet: {imagenet} has label {highest + 1}; ImageNet's are 1 to {NUM_CLASSES}"
        )
    known = set(names)
    for label, name in enumerate(images.label_names):
        if name in known and name != names[label]:
            raise InputError(
                f"--imagenet: {imagenet} has {name} as class {label}, which is {names[label]}; it"
                " is not the official file"
            )


def _examples(images: ArchiveImages | RecordImages) -> Iterator[bytes]:
    for index, encoded in enumerate(images.read(range(len(images.labels)))):
        if isinstance(encoded, str):
            raise InputError(f"--imagenet: {images.describe(index)}: {encoded}; get the file again")
        yield make_example(encoded, images.key(index), label=int(images.labels[index]))
