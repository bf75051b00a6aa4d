r"""Stage: images -> training records.

    ./run_prepare_data.sh --config=configs/noisy_student/digits.py --workdir=W
    ./run_prepare_data.sh --config=configs/noisy_student/image_folder.py \
        --labeled=DIR --unlabeled=DIR [--test=DIR] --workdir=W
    ./run_prepare_data.sh --config=… --source=imagenet \
        --labeled=DIR --test=DIR --unlabeled=tar:DIR --workdir=W

docs/data.md has every format, and what each directory must look like. The stage writes W/labeled,
W/unlabeled, W/test and, if the config asks for one, W/validation. Each is a split directory (see
`data.records`). W/summary.json comes last. Of the config, W/config.json holds only the seed and the
section `data`, so that experiments which differ in anything else can share W. Unusable input is
found before anything is written. After an interruption the same command begins again and ends with
the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import tensorflow as tf

from cli import buckets, settings, work_dirs
from cli.errors import InputError
from cli.files import remove_temporaries
from cli.progress import progress
from data import digits, fingerprint, protos, records, repeats, sources, splits, tfrecords
from data.duplicates import KnownImages
from data.examination import Examination
from data.settings import FORMATS, READ
from data.sources import Image, Source, Split

LOCATIONS = ("labeled", "unlabeled", "test", "labels", "pseudo_labeled")
_ALWAYS = {"pseudo_labeled": "tfrecord", "labels": "manifest"}
"""Formats of locations that name one, whatever the source."""


def open_source(config: ml_collections.ConfigDict) -> Source:
    """Opens the source named by `config.data.source`.

    It is the digits, or the format of the locations that name no format.

    Raises:
      InputError: there is no such source, or its input is not usable.
    """
    opening: dict[str, Callable[[ml_collections.ConfigDict], Source]] = {
        "digits": digits.digits,
        **dict.fromkeys(FORMATS, splits.split),
    }
    settings.check_settings(config, READ)
    if config.data.labels and config.data.source == "digits":
        raise InputError(
            "--labels corrects images in files only, and the embedded digits are not files"
        )
    return opening[config.data.source](config)


def with_locations(
    config: ml_collections.ConfigDict, flags: Mapping[str, str | None]
) -> ml_collections.ConfigDict:
    """Returns `config` with the source and the locations of the flags in `config.data`.

    All paths are absolute.

    Raises:
      InputError: a value of the config cannot be used, whatever the source.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.source = flags.get("source") or config.data.source
        for name in LOCATIONS:
            location = flags.get(name) or config.data.get(name)
            default = _ALWAYS.get(name, config.data.source)
            config.data[name] = sources.absolute(location, default) if location else None
        location = config.data.labeled
        if (
            location
            and not config.data.test
            and sources.split_location(location, config.data.source)[0] in sources.WITH_TEST
        ):
            config.data.test = location
    settings.check_settings(config, READ)
    return config


def main(
    config: ml_collections.ConfigDict,
    workdir: str,
    labeled: str | None = None,
    unlabeled: str | None = None,
    test: str | None = None,
    pseudo_labeled: str | None = None,
    source: str | None = None,
    labels: str | None = None,
) -> None:
    """Runs the stage; see the module's docstring."""
    flags = {
        "labeled": labeled,
        "unlabeled": unlabeled,
        "test": test,
        "pseudo_labeled": pseudo_labeled,
    }
    flags |= {"source": source, "labels": labels}
    config = with_locations(config, flags)
    directory = Path(workdir)
    new = [path for path in (directory, *directory.parents) if not path.exists()]  # innermost first
    fresh = not (directory / "config.json").exists()
    for name in (*sources.SPLITS, "pseudo_labeled") if fresh else ():
        # The user's images, perhaps the ones to be read.
        if (directory / name).exists():
            raise InputError(
                f"--workdir: {directory / name} exists and was not made by this stage; name "
                "another directory"
            )
    data = {
        name: value for name, value in config.data.to_dict().items() if name != "use_as_prepared"
    }
    summary = work_dirs.start(directory, {"seed": config.seed, "data": data})
    if summary is not None:
        _require_shards(directory, summary)
        fingerprint.require_unchanged(directory, config.data)
        work_dirs.say_done(directory, _done(directory, summary, config.data))
        return
    try:
        opened = open_source(config)
        pseudo = (
            PseudoLabeled.open(config.data, len(opened.label_names), opened.held_out())
            if config.data.pseudo_labeled
            else None
        )
        summary = write(opened, config, directory)
        read_from = dict(opened.read_from)
        if pseudo is not None:
            summary["pseudo_labeled"] = pseudo.write(opened.label_names, directory)
            summary["skipped"] = [*summary["skipped"], *pseudo.skipped]
            read_from["pseudo_labeled"] = pseudo.read_from
            summary[f"{repeats.LEFT_OUT}pseudo_labeled"] = pseudo.duplicates
    except InputError:
        if fresh:
            _remove_traces(directory, new)
        raise
    fingerprint.write(directory, read_from)
    work_dirs.finish(directory, summary, _done(directory, summary, config.data))
    print(table(summary))
    print(f"{directory} is done: {_in_words(summary)}")


def _done(directory: Path, summary: Mapping[str, Any], data: ml_collections.ConfigDict) -> str:
    """Says what the stage reports of a finished directory."""
    text = f"{directory} was done before: {_in_words(summary)}"
    if data.get("use_as_prepared", False):
        text += (
            "\nconfig.data.use_as_prepared is True: the images were not compared with those that"
            " were prepared"
        )
    return text


def _require_shards(directory: Path, summary: Mapping[str, Any]) -> None:
    """Checks that a finished directory still has its shards.

    Raises:
      InputError: a shard is missing.
    """
    for name in summary["splits"]:
        try:
            records.read_manifest(directory / name)
        except InputError as error:
            raise InputError(
                f"{error}: delete {directory}, and the same command prepares it again"
            ) from error


def _remove_traces(directory: Path, new: list[Path]) -> None:
    """Leaves the file system as it was before this run, which was the first one in `directory`."""
    for name in (*sources.SPLITS, "pseudo_labeled"):
        buckets.remove_tree(directory / name)
    buckets.remove(directory / "config.json", missing_ok=True)
    for path in new:
        path.rmdir()


def write(source: Source, config: ml_collections.ConfigDict, directory: Path) -> dict[str, Any]:
    """Writes the splits of `source` into `directory`.

    Returns:
      The summary: `label_names`, `splits` (for each: images, shards, and images per class), and the
      source's facts.

    Raises:
      InputError: an image cannot be read any more, or a label is out of range.
    """
    remove_temporaries(directory)
    data = config.data
    written: dict[str, dict[str, Any]] = {}
    for name, split in source.splits().items():
        counts: Counter[int] = Counter()
        with_labels = name != "unlabeled"
        chosen: list[str] | None = (
            [] if name == "labeled" and data.labeled_per_class is not None else None
        )
        manifest = records.write_split(
            directory / name,
            name,
            progress(
                _examples(
                    split,
                    name,
                    len(source.label_names) if with_labels else 0,
                    data.label_offset,
                    counts,
                    chosen,
                ),
                len(split),
                f"write {name}",
            ),
            num_shards=min(data.num_shards or records.num_shards_for(len(split)), len(split)),
            num_records=len(split),
            kind="labeled" if with_labels else "unlabeled",
            label_names=source.label_names if with_labels else (),
            label_offset=data.label_offset if with_labels else 0,
            # The images that a subset consists of. The list is filled while the examples are
            # written, and the manifest is written last.
            extra=(
                {"source": data.source}
                if chosen is None
                else {"source": data.source, "keys": chosen}
            ),
        )
        written[name] = {"images": manifest.num_records, "shards": len(manifest.files)}
        if with_labels:
            written[name]["per_class"] = {
                label_name: counts[label] for label, label_name in enumerate(source.label_names)
            }
    return {
        "source": data.source,
        "label_names": list(source.label_names),
        "splits": written,
        **source.facts,
    }


def _examples(
    split: Split,
    name: str,
    num_classes: int,
    label_offset: int,
    counts: Counter[int],
    chosen: list[str] | None,
) -> Iterator[bytes]:
    """Yields the records of a split, and counts the labels on the way.

    `num_classes` is 0 for the unlabeled split, which must have no labels. If `chosen` is given, it
    gets the keys.
    """
    for image in split:
        if chosen is not None:
            chosen.append(image.key)
        yield protos.make_example(
            image.encoded, image.key, _stored_label(image, name, num_classes, label_offset)
        )
        if image.label is not None:
            counts[image.label] += 1


@dataclasses.dataclass(frozen=True)
class PseudoLabeled:
    """Pseudo-labeled shards of the release, with every record checked.

    Attributes:
      location: location of the shards.
      images: their records.
      usable: indices of the records that can be used.
      skipped: records that cannot be used, with `config.data.on_error` = "skip".
      duplicates: records of held-out images.
      read_from: the files; see `data.fingerprint`.
    """

    location: str
    images: tfrecords.RecordImages
    usable: Sequence[int]
    skipped: list[dict[str, str]]
    duplicates: list[dict[str, Any]]
    read_from: Mapping[str, Any]

    @classmethod
    def open(
        cls, data: ml_collections.ConfigDict, num_classes: int, held_out: KnownImages
    ) -> PseudoLabeled:
        """Opens the shards of `config.data.pseudo_labeled`, without the images `held_out`.

        Raises:
          InputError: there are none; a record has no distribution over `num_classes` classes, or an
            image that cannot be decoded.
        """
        request = sources.Request(
            data.pseudo_labeled, "pseudo_labeled", on_error=data.on_error, num_classes=num_classes
        )
        images = tfrecords.open_records(request)
        found = Examination(
            data.on_error, {"pseudo_labeled": fingerprint.listed("pseudo_labeled", data)}
        )
        usable = found.unseen(images, "pseudo_labeled", held_out)
        if not usable:
            raise request.error(
                f"has no usable image; {repeats.none_left(found.duplicates, 'leave the flag out')}"
            )
        return cls(
            data.pseudo_labeled,
            images,
            usable,
            found.skipped,
            found.duplicates,
            found.read_from["pseudo_labeled"] or {},
        )

    def write(self, label_names: Sequence[str], directory: Path) -> dict[str, Any]:
        """Writes the records as `DIRECTORY/pseudo_labeled`, for `run_student.sh --pseudo_labeled=`.

        Returns images and shards, for the summary.
        """
        total = len(self.usable)
        manifest = records.write_split(
            directory / "pseudo_labeled",
            "pseudo_labeled",
            progress(
                tfrecords.pseudo_labeled(self.images, self.usable), total, "write pseudo_labeled"
            ),
            num_shards=records.num_shards_for(total),
            num_records=total,
            kind="pseudo_labeled",
            label_names=label_names,
            extra={"source": self.location},
        )
        digest = records.file_digest(manifest.directory / records.MANIFEST)
        work_dirs.finish(
            manifest.directory, {"num_records": total, "source": self.location, "sha256": digest}
        )
        return {"images": total, "shards": len(manifest.files)}


def _stored_label(image: Image, name: str, num_classes: int, label_offset: int) -> int | None:
    if num_classes == 0:
        if image.label is not None:
            raise ValueError(f"{image.key}: an image of the unlabeled split has a label")
        return None
    if image.label is None or not 0 <= image.label < num_classes:
        raise InputError(
            f"{image.key} (split {name}) has label {image.label}; the {num_classes} classes are"
            f" 0..{num_classes - 1}"
        )
    return image.label + label_offset


def table(summary: Mapping[str, Any]) -> str:
    """Returns a table for people: split, images, classes, shards."""
    rows = [("split", "images", "classes", "shards")]
    for name, split in summary["splits"].items():
        classes = (
            f"{sum(1 for count in split['per_class'].values() if count)}"
            if "per_class" in split
            else "-"
        )
        rows.append((name, f"{split['images']:,}", classes, f"{split['shards']:,}"))
    return "\n".join(f"{row[0]:<12}{row[1]:>12}{row[2]:>10}{row[3]:>8}" for row in rows)


def _in_words(summary: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{split['images']:,} {name}" for name, split in summary["splits"].items())
    words = f"{counts}; {len(summary['label_names']):,} classes"
    if summary["skipped"]:
        words += f"; files skipped: {len(summary['skipped']):,} (listed in summary.json)"
    if summary.get("out_of_long_tail"):
        words += f"; left out for the long tail: {summary['out_of_long_tail']:,}"
    left_out = sum(
        len(summary.get(f"{repeats.LEFT_OUT}{role}", ()))
        for role in ("unlabeled", "pseudo_labeled")
    )
    if left_out:
        words += (
            f"; left out because they are held out for testing: {left_out:,} (listed in "
            "summary.json)"
        )
    return "\n".join([words, *repeats.in_words(summary)])


def run(**values: Any) -> None:
    """Runs the stage in its own process.

    Decoding needs no GPU, and another stage may be training on it.
    """
    tf.config.set_visible_devices([], "GPU")
    main(**values)
