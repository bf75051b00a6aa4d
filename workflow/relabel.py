"""Labels a balanced set again: the same images with the same copies, and another teacher's labels.

    ./run_pseudo_label.sh --config=… --workdir=PREDICTIONS --data=… --teacher=… --selection=BALANCED
    ./run_balance.sh --config=… --workdir=… --data=… --predictions=PREDICTIONS --selection=BALANCED

In the paper an EfficientNet-B0 selects 130 million images once, and every later teacher labels that
set (Xie et al. 2020, Section 3.1). Nothing is filtered or cut here. An image stays, and keeps its
copies, whatever the new label and its confidence are. So the labels of the model that selected
balance the classes, as in the release.

There is one prediction record for each different image. Predictions join the balanced set by key.
The output has the shards of the balanced set, record by record in the same order:

    WORKDIR/pseudo_labeled-%05d-of-%05d   manifest.json   pseudo_labels.png   summary.json (last)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cli import work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from data.protos import label_copies, make_example, make_label
from data.records import Manifest, read_manifest, require_same_classes, write_manifest, write_shard
from workflow import balance_figure, shard_jobs
from workflow.join import join_by_key, read_copied, require_origin
from workflow.predictions import read_predictions


@dataclasses.dataclass
class RelabelShards:
    """The job: one shard of a balanced set and one of predictions -> the shard with new labels.

    Attributes:
      selection: manifest of the balanced set.
      predictions: manifest of the predictions.
      directory: where the records go.
    """

    selection: Manifest
    predictions: Manifest
    directory: Path

    def setup(self) -> None:
        """Loads nothing."""

    def outputs(self, shard: int) -> list[str]:
        """Returns the file of the shard's training records."""
        return [str(self.directory / self.selection.files[shard])]

    def run(self, shard: int) -> dict[str, Any]:
        """Writes one shard. Raises InputError where balanced set and predictions do not match."""
        counts = _Counts(self.predictions.num_classes)
        beside = self.selection.beside
        count, digest = write_shard(
            self.outputs(shard)[0],
            self._records(shard, counts),
            index=True,
            entries=label_copies if beside else None,
        )
        records = int(counts.total.sum())
        if (
            records != self.selection.records[shard]
            or count != (beside.labels if beside else self.selection.records)[shard]
        ):
            raise AssertionError(
                f"{count} written, {records} of {self.selection.records[shard]} selected"
            )
        return {
            "images": int(counts.unique.sum()),
            "records": records,
            "sha256": digest,
            **counts.to_dict(),
        }

    def _records(self, shard: int, counts: _Counts) -> Iterator[bytes]:
        selected = self.selection.paths[shard], self.predictions.paths[shard]
        images, answers = (
            read_copied(self.selection, shard),
            read_predictions(self.predictions, shard),
        )
        for key, image, probabilities in join_by_key(images, answers, *selected):
            counts.add(image.label, int(np.argmax(probabilities)), image.copies)
            if self.selection.beside:
                yield make_label(image.position, image.copies, probabilities)
                continue
            record = make_example(image.encoded, key, probabilities=probabilities)
            for _ in range(image.copies):
                yield record


class _Counts:
    """Counts of a shard, class by class.

    Attributes:
      selected: int64 [K], records by the labels of the balanced set.
      total: int64 [K], records by the new labels.
      unique: int64 [K], different images by the new labels.
      changed: number of different images that have another class than before.
    """

    def __init__(self, num_classes: int) -> None:
        self.selected, self.total, self.unique = (np.zeros(num_classes, np.int64) for _ in range(3))
        self.changed = 0

    def add(self, before: int, label: int, copies: int) -> None:
        self.selected[before] += copies
        self.total[label] += copies
        self.unique[label] += 1
        self.changed += before != label

    def to_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON."""
        rows = {name: getattr(self, name).tolist() for name in ("selected", "total", "unique")}
        return {**rows, "changed": self.changed}


def main(workdir: str, selection: str, predictions: str, beam_options: Sequence[str] = ()) -> None:
    """Runs the stage.

    Args:
      workdir: work directory of the stage.
      selection: a balanced set, a finished directory of run_balance.sh.
      predictions: a finished directory of run_pseudo_label.sh on that set.
      beam_options: options of `shard_jobs.run`.

    Raises:
      InputError: unusable input.
    """
    # Absolute, since a worker may have another current folder.
    workdir, selection, predictions = (
        str(Path(path).expanduser().resolve()) for path in (workdir, selection, predictions)
    )
    work_dirs.require_finished(selection, "--selection", "run_balance.sh")
    work_dirs.require_finished(predictions, "predictions", "run_pseudo_label.sh")
    chosen, labels = (
        read_manifest(selection, "pseudo_labeled"),
        read_manifest(predictions, "predictions"),
    )
    require_same_classes(
        labels.label_names, predictions, chosen.label_names, f"--selection={selection}"
    )
    if len(chosen.files) != len(labels.files):
        raise InputError(
            f"{predictions} has {len(labels.files)} shards, but {selection} has "
            f"{len(chosen.files)}; run run_pseudo_label.sh with this --selection"
        )
    require_origin(chosen, labels)
    directory, progress = Path(workdir), Path(workdir) / "progress"
    done = f"{workdir}: the selection is labeled again already"
    inputs = {"selection": selection, "predictions": predictions}
    if work_dirs.start(directory, {"stage": "relabel"}, inputs) is not None:
        shard_jobs.forget(progress)
        work_dirs.say_done(directory, done)
        return

    job, counts = RelabelShards(chosen, labels, directory), [int] * labels.num_classes
    note = {
        "images": int,
        "records": int,
        "sha256": str,
        "selected": counts,
        "total": counts,
        "unique": counts,
        "changed": int,
    }
    results = shard_jobs.run(job, len(chosen.files), progress, beam_options, note)
    manifest = dataclasses.replace(
        chosen,
        directory=directory,
        records=tuple(result["records"] for result in results),
        extra={**chosen.extra, "selection": chosen.digest},
        digests=tuple(result["sha256"] for result in results),
    )
    summary = summarize(results, labels.label_names)
    if manifest.records != chosen.records or summary["num_unique"] != labels.num_records:
        written = f"{manifest.num_records} records of {summary['num_unique']} images"
        raise AssertionError(f"{written} for {chosen.num_records} of {labels.num_records}")
    write_manifest(manifest)
    with atomic_path(directory / "pseudo_labels.png") as temporary:
        before, after = (np.array(summary[name]) for name in ("selected", "total"))
        temporary.write_bytes(
            balance_figure.figure(
                before, after, labels.label_names, ("as selected", "labeled again")
            )
        )
    work_dirs.finish(directory, summary, done)
    shard_jobs.forget(progress)
    logging.info(
        "%d records of %d images labeled again; %d images have another class",
        summary["num_records"],
        summary["num_unique"],
        summary["changed"],
    )


def summarize(results: Sequence[dict[str, Any]], label_names: Sequence[str]) -> dict[str, Any]:
    """Returns the stage's summary from its shards' results."""
    rows = {
        name: np.sum([result[name] for result in results], axis=0).tolist()
        for name in ("selected", "total", "unique")
    }
    return {
        "label_names": list(label_names),
        **rows,
        "num_unique": sum(result["images"] for result in results),
        "num_records": sum(result["records"] for result in results),
        "changed": sum(result["changed"] for result in results),
        "classes_without_images": [
            name for name, count in zip(label_names, rows["total"]) if not count
        ],
    }
