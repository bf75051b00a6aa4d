"""Stage: images -> training records.

    python -m data.prepare --config=configs/noisy_student/digits.py --workdir=W
    python -m data.prepare --config=configs/noisy_student/image_folder.py --labeled=DIR --unlabeled=DIR [--test=DIR] --workdir=W

Leaves W/labeled, W/unlabeled, W/test and, where the config asks for one, W/validation, each a split directory (see `data.records`), and
W/summary.json, last. W/config.json holds no more of the config than the seed and the section `data`, so that experiments which differ in
anything else can share W. Unusable input is found before anything is written. After an interruption the same command begins again and
ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import tensorflow as tf

from data import records, sources
from data.sources import Image, Source, Split
from stages import app
from stages import workdir as work
from stages.errors import InputError
from stages.progress import progress

FOLDERS = ("labeled", "unlabeled", "test")


def resolve(config: ml_collections.ConfigDict, folders: Mapping[str, str | None]) -> ml_collections.ConfigDict:
    """`config` with the folders given as flags in `config.data`, all of them absolute.

    Raises:
      InputError: a value of the config cannot be used, whatever the source.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name in FOLDERS:
            folder = folders.get(name) or config.data.get(name)
            config.data[name] = os.path.abspath(os.path.expanduser(folder)) if folder else None
    data = config.data
    for name, value in (("config.seed", config.seed), ("config.data.test_seed", data.test_seed)):
        if value < 0:
            raise InputError(f"{name} is {value}; it must be at least 0")
    if data.label_offset < 0:
        raise InputError(f"config.data.label_offset is {data.label_offset}; it must be at least 0")
    if data.num_shards is not None and not 1 <= data.num_shards <= 99_999:
        raise InputError(f"config.data.num_shards is {data.num_shards}; it must be from 1 to 99999, or None")
    if data.on_error not in ("fail", "skip"):
        raise InputError(f"config.data.on_error is {data.on_error!r}; it can be fail or skip")
    return config


def main(
    config: ml_collections.ConfigDict,
    workdir: str,
    labeled: str | None = None,
    unlabeled: str | None = None,
    test: str | None = None,
    arguments: list[str] | None = None,
) -> None:
    """Runs the stage; see the module's docstring."""
    if arguments:
        raise InputError(f"unexpected argument {arguments[0]}; folders go to --labeled, --unlabeled and --test")
    config = resolve(config, {"labeled": labeled, "unlabeled": unlabeled, "test": test})
    directory = Path(workdir)
    new = [path for path in (directory, *directory.parents) if not path.exists()]  # innermost first
    fresh = not (directory / "config.json").exists()
    summary = work.start(directory, {"seed": config.seed, "data": config.data.to_dict()})
    if summary is not None:
        print(f"{directory}: done before; {_in_words(summary)}")
        return
    try:
        summary = write(sources.open_source(config), config, directory)
    except InputError:
        if fresh:
            _remove_traces(directory, new)
        raise
    work.finish(directory, summary)
    print(table(summary))
    print(f"{directory}: done; {_in_words(summary)}")


def _remove_traces(directory: Path, new: list[Path]) -> None:
    """Leaves the file system as it was before this run, which was the first one in `directory`."""
    for name in sources.SPLITS:
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / "config.json").unlink(missing_ok=True)
    for path in new:
        path.rmdir()


def write(source: Source, config: ml_collections.ConfigDict, directory: Path) -> dict[str, Any]:
    """Writes the splits of `source` into `directory`.

    Returns:
      The summary: `label_names`, `splits` (for each: images, shards, and images per class), and the source's facts.

    Raises:
      InputError: an image cannot be read any more, a label is out of range, or a key comes twice.
    """
    records.remove_temporaries(directory)
    data = config.data
    splits: dict[str, dict[str, Any]] = {}
    for name, split in source.splits().items():
        counts: Counter[int] = Counter()
        with_labels = name != "unlabeled"
        manifest = records.write_split(
            directory / name,
            name,
            progress(
                _examples(split, name, len(source.label_names) if with_labels else 0, data.label_offset, counts),
                len(split),
                f"write {name}",
            ),
            num_shards=min(data.num_shards or records.num_shards_for(len(split)), len(split)),
            num_records=len(split),
            kind="labeled" if with_labels else "unlabeled",
            label_names=source.label_names if with_labels else (),
            label_offset=data.label_offset if with_labels else 0,
            extra={"source": data.source},
        )
        splits[name] = {"images": manifest.num_records, "shards": len(manifest.files)}
        if with_labels:
            splits[name]["per_class"] = {label_name: counts[label] for label, label_name in enumerate(source.label_names)}
    return {"source": data.source, "label_names": list(source.label_names), "splits": splits, **source.facts}


def _examples(split: Split, name: str, num_classes: int, label_offset: int, counts: Counter[int]) -> Iterator[bytes]:
    """The records of a split; counts the labels on the way. `num_classes` is 0 for the unlabelled split, which must have no labels."""
    keys: set[str] = set()
    for image in split:
        if image.key in keys:
            raise InputError(f"two images of split {name} have the key {image.key}; rename one of them")
        keys.add(image.key)
        yield records.make_example(image.encoded, image.key, _stored_label(image, name, num_classes, label_offset))
        if image.label is not None:
            counts[image.label] += 1


def _stored_label(image: Image, name: str, num_classes: int, label_offset: int) -> int | None:
    if num_classes == 0:
        if image.label is not None:
            raise ValueError(f"{image.key}: an image of the unlabelled split has a label")
        return None
    if image.label is None or not 0 <= image.label < num_classes:
        raise InputError(f"{image.key} (split {name}) has label {image.label}; the {num_classes} classes are 0..{num_classes - 1}")
    return image.label + label_offset


def table(summary: Mapping[str, Any]) -> str:
    """A small table for people: split, images, classes, shards."""
    rows = [("split", "images", "classes", "shards")]
    for name, split in summary["splits"].items():
        classes = f"{sum(1 for count in split['per_class'].values() if count)}" if "per_class" in split else "-"
        rows.append((name, f"{split['images']:,}", classes, f"{split['shards']:,}"))
    return "\n".join(f"{row[0]:<12}{row[1]:>12}{row[2]:>10}{row[3]:>8}" for row in rows)


def _in_words(summary: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{split['images']:,} {name}" for name, split in summary["splits"].items())
    skipped = f"; files skipped: {len(summary['skipped']):,} (listed in summary.json)" if summary["skipped"] else ""
    return f"{counts}; {len(summary['label_names']):,} classes{skipped}"


if __name__ == "__main__":
    tf.config.set_visible_devices([], "GPU")  # decoding needs none, and another stage may be training on it
    app.run(
        main,
        {
            "workdir": "The data directory to make.",
            "labeled": "Folder of labelled images, DIR/<class>/...; config.data.labeled.",
            "unlabeled": "Folder of unlabelled images; config.data.unlabeled.",
            "test": "Folder of test images, DIR/<class>/...; config.data.test. Without it, some labelled images are held out.",
        },
        optional=dict.fromkeys(FOLDERS),
    )
