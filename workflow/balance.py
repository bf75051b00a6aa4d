"""Stage: filters and balances the pseudo-labeled images (Noisy Student, section 3.1).

    ./run_balance.sh --config=… --workdir=… --data=… --predictions=…

The paper describes it under "Unlabeled dataset". The stage keeps the images with a confidence above
`threshold` and at most `max_confidence`. Of each class it keeps the `images_per_class` most
confident images. It fills up smaller classes with copies of random images of the class.

`share_per_class`, beyond the paper, first keeps a share of each class: its own threshold for
each class (Zou et al. 2018, class-balanced self-training). With `priors`, also beyond the paper,
the classes get other shares than equal ones (`noisy_student.priors`). The stage writes what it
keeps as training records, image and distribution:

    WORKDIR/pseudo_labeled-%05d-of-%05d   manifest.json   pseudo_labels.png   summary.json (last)

With `--selection=BALANCED` nothing is selected: the images and copies of that set get the labels of
the predictions (`relabel`).

The stage makes two passes over the shards, as Beam jobs (`shard_jobs`), with a selection between:

1. Predictions -> a few bytes per image: class, confidence, and a hash of (seed, key). The hash
   replaces every random choice.
2. `selection`: exact cuts per class, in memory bounded by classes × bins.
3. Predictions and images, joined by key -> the images kept, with their copies.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)

# isort: split

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cli import work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json
from data.manifest import Beside
from data.protos import label_copies, make_example, make_label
from data.records import Manifest, read_manifest, shard_name, write_manifest, write_shard
from noisy_student import priors, selection
from workflow import balance_figure, relabel, shard_jobs
from workflow.join import join_by_key, read_images, require_origin
from workflow.predictions import read_predictions, read_tops
from workflow.settings import check_section


def image_hashes(seed: int, keys: Iterable[bytes]) -> np.ndarray:
    """Returns 64 pseudo-random bits for each key (UTF-8), uint64 [n].

    They are a function of seed and key, the same on every machine.
    """
    # A copy takes two thirds of the time of a new hash.
    fresh = hashlib.blake2b(digest_size=8, key=str(seed).encode()).copy
    digests = []
    for key in keys:
        hash_of_key = fresh()
        hash_of_key.update(key)
        digests.append(hash_of_key.digest())
    return np.frombuffer(b"".join(digests), "<u8")


# Pass 1


@dataclasses.dataclass
class ScoreShards:
    """The job of pass 1: one shard of predictions -> its columns for the selection.

    Attributes:
      predictions: manifest of the predictions.
      directory: where the columns go. `NAME.npz` has classes, confidence, hash and position of the
        images that pass. `NAME.npy` has every image's hash, sorted.
      threshold: least confidence, exclusive, as the paper's "higher than 0.3"; see
        `predictions.Top.higher` for rounding.
      seed: seed of the hashes.
      max_confidence: greatest confidence, inclusive; below 1 for the first version's confidence
        bands (A.2).
      fraction: share of all images that is drawn, by their hashes (A.3).
    """

    predictions: Manifest
    directory: Path
    threshold: float
    seed: int
    max_confidence: float = 1.0
    fraction: float = 1.0

    def setup(self) -> None:
        """Loads nothing."""

    def columns_path(self, shard: int) -> Path:
        """Returns the file with the columns of the images above the threshold."""
        return self.directory / f"{self.predictions.files[shard]}.npz"

    def hashes_path(self, shard: int) -> Path:
        """Returns the file with the hashes of all images."""
        return self.directory / f"{self.predictions.files[shard]}.npy"

    def outputs(self, shard: int) -> list[str]:
        """Returns the two files of the shard."""
        return [str(self.columns_path(shard)), str(self.hashes_path(shard))]

    def run(self, shard: int) -> dict[str, Any]:
        """Reads one shard of predictions. Raises InputError where it cannot be read."""
        num_classes, num_records = self.predictions.num_classes, self.predictions.records[shard]
        classes = np.zeros(num_records, np.int32)
        confidence = np.zeros(num_records, np.float32)
        hashes = np.zeros(num_records, np.uint64)
        # Whether the confidence is higher than the threshold, and not higher than max_confidence.
        inside = np.zeros(num_records, bool)
        done = 0
        for top in read_tops(self.predictions, shard):
            rows = slice(done, done + len(top.keys))
            classes[rows], confidence[rows], hashes[rows] = (
                top.classes,
                top.confidence,
                image_hashes(self.seed, top.keys),
            )
            inside[rows] = top.higher(self.threshold) & ~top.higher(self.max_confidence)
            done = rows.stop
        confidence = np.minimum(confidence, np.float32(1.0))
        drawn = hashes <= np.uint64(min(int(self.fraction * 2**64), 2**64 - 1))
        above = drawn & inside
        _save(self.hashes_path(shard), np.sort(hashes))
        _save(
            self.columns_path(shard),
            classes=classes[above],
            confidence=confidence[above],
            hash=hashes[above],
            position=np.flatnonzero(above),
        )
        return {
            "images": num_records,
            "above": np.bincount(classes[above], minlength=num_classes).tolist(),
            "below": np.bincount(classes[drawn & ~above], minlength=num_classes).tolist(),
            "drawn": int(np.count_nonzero(drawn)),
        }


@dataclasses.dataclass(frozen=True)
class Columns:
    """The shards of pass 1 as `selection` reads them, one at a time.

    A column is read when it is asked for.
    """

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[selection.Shard]:
        for path in self.paths:
            with np.load(path) as shard:
                yield shard


@dataclasses.dataclass(frozen=True)
class Hashes:
    """All images' hashes, shard by shard.

    One file is open at a time, however many shards there are.
    """

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self.paths:
            yield np.load(path, mmap_mode="r")


def _save(path: Path, array: np.ndarray | None = None, **columns: Any) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        if array is not None:
            np.save(f, array)
        else:
            np.savez(f, **columns)


def require_unique_keys(job: ScoreShards) -> None:
    """Checks that no key occurs twice in the whole corpus; memory does not grow with it.

    Raises:
      InputError: a key occurs twice.
    """
    hashes = Hashes(tuple(map(job.hashes_path, range(len(job.predictions.files)))))
    for value in selection.shared_values(hashes):
        found: dict[str, str] = {}
        for shard, values in enumerate(hashes):
            if np.searchsorted(values, np.uint64(value)) == np.searchsorted(
                values, np.uint64(value), side="right"
            ):
                continue
            for key, _ in read_predictions(job.predictions, shard):
                if image_hashes(job.seed, [key.encode("utf-8")])[0] == value:
                    if key in found:
                        files = sorted({found[key], job.predictions.paths[shard]})
                        raise InputError(
                            f"image key {key} appears twice, in {' and '.join(files)}; make data"
                            " and predictions again"
                        )
                    found[key] = job.predictions.paths[shard]


# Pass 2


@dataclasses.dataclass
class WriteShards:
    """The job of pass 2: one shard of images and one of predictions -> one of training records.

    Attributes:
      images: manifest of the unlabeled split.
      scores: job of pass 1.
      chosen: the selection.
      directory: where the records go.
      copy_images: write whole training records; otherwise labels that stand beside their images.
    """

    images: Manifest
    scores: ScoreShards
    chosen: selection.Selection
    directory: Path
    copy_images: bool = True

    def setup(self) -> None:
        """Loads nothing."""

    def outputs(self, shard: int) -> list[str]:
        """Returns the file of the shard's training records."""
        return [str(self.directory / shard_name("pseudo_labeled", shard, len(self.images.files)))]

    def run(self, shard: int) -> dict[str, Any]:
        """Writes one shard. Raises InputError where images and predictions do not match."""
        with np.load(self.scores.columns_path(shard)) as columns:
            copies = self.chosen.record_copies(columns, self.images.records[shard])
        count, digest = write_shard(
            self.outputs(shard)[0],
            self._records(shard, copies),
            index=True,
            entries=None if self.copy_images else label_copies,
        )
        records, unique = int(copies.sum()), int(np.count_nonzero(copies))
        if count != (records if self.copy_images else unique):
            raise AssertionError(f"{count} records written, {records} of {unique} images selected")
        return {
            "images": self.images.records[shard],
            "records": records,
            "unique": unique,
            "sha256": digest,
        }

    def _records(self, shard: int, copies: np.ndarray) -> Iterator[bytes]:
        """Yields the records of the images kept, in the images' order.

        Copies stand side by side; the training reader shuffles them.
        """
        image_file, prediction_file = self.images.paths[shard], self.scores.predictions.paths[shard]
        images = read_images(self.images, shard)
        both = join_by_key(
            images, self._keyed_predictions(shard, copies), image_file, prediction_file
        )
        for place, (key, encoded, (position, probabilities)) in enumerate(both):
            if probabilities is not None and not self.copy_images:
                yield make_label(place, int(copies[position]), probabilities)
            elif probabilities is not None:
                record = make_example(encoded, key, probabilities=probabilities)
                for _ in range(copies[position]):
                    yield record

    def _keyed_predictions(
        self, shard: int, copies: np.ndarray
    ) -> Iterator[tuple[str, tuple[int, np.ndarray | None]]]:
        """Yields (key, (position, probabilities)); None for what is dropped.

        So a dropped prediction takes no memory while it waits for its image.
        """
        for position, (key, probabilities) in enumerate(
            read_predictions(self.scores.predictions, shard)
        ):
            yield key, (position, probabilities if copies[position] else None)


# The stage


def choose_images_per_class(
    above: np.ndarray, balance: bool, images_per_class: int | None, shares: np.ndarray | None = None
) -> int | None:
    """Returns the number of images that a class is to have, on average; None for no balancing.

    Args:
      above: int [K], images that may be kept.
      balance: False only filters.
      images_per_class: the config's; None takes the median (rounded down) of the classes that have
        any.
      shares: float [K], share of each class; None for equal ones. See `priors.median`.
    """
    if not balance or images_per_class is not None:
        return images_per_class if balance else None
    if shares is not None:
        return priors.median(shares, above)
    return int(np.median(above[above > 0]))


def _shares(settings: ConfigDict, data: Path, label_names: Sequence[str]) -> np.ndarray | None:
    """Returns the share of each class that `balance.priors` asks for; None for equal ones."""
    if not settings.balance or settings.priors == priors.UNIFORM:
        return None
    schema = {"splits": {"labeled": {"per_class": {str: int}}}}
    labeled = read_json(data / "summary.json", schema)["splits"]["labeled"]["per_class"]
    return priors.shares(settings.priors, labeled, label_names)


def draw(
    columns: Columns, chosen: selection.Selection, records: int, progress: Path
) -> selection.Sample:
    """Draws `records` of the selected records at random. Raises InputError if there are fewer."""
    selected = int(chosen.totals.sum())
    if records > selected:
        shard_jobs.forget(progress)  # the directory then accepts another number
        raise InputError(
            f"config.balance.sample_images is {records}, but the selection has only {selected} "
            "images, copies included"
        )
    return selection.sample(columns, chosen, records)


def check_balance(settings: ConfigDict) -> None:
    """Raises InputError where a value of `config.balance` is impossible."""
    check_section("balance", settings)
    if settings.threshold >= settings.max_confidence:
        most = settings.max_confidence
        raise InputError(
            f"config.balance.max_confidence is {most}; it must be above threshold,"
            f" {settings.threshold}"
        )
    priors.check_priors(settings.priors)


def _check_partition(images: Manifest, predictions: Manifest) -> None:
    if images.records != predictions.records:
        raise InputError(
            f"{predictions.directory} was not made from {images.directory}:"
            f" {predictions.num_records} predictions in {len(predictions.files)} shards for"
            f" {images.num_records} images in {len(images.files)}; run run_pseudo_label.sh on this"
            " data"
        )


def _warn_of_empty(above: np.ndarray, label_names: Sequence[str], threshold: float) -> list[str]:
    """Logs and returns the names of the classes with no image above the threshold."""
    empty = [name for name, count in zip(label_names, above) if count == 0]
    if len(empty) == len(label_names):
        raise InputError(f"no image above threshold {threshold}; lower config.balance.threshold")
    if empty:
        shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        logging.warning(
            "no image above threshold %s for %d of %d classes: %s",
            threshold,
            len(empty),
            len(label_names),
            shown,
        )
    return empty


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
    predictions: str,
    beam_options: Sequence[str] = (),
    selection: str | None = None,
) -> None:
    """Runs the stage, see the module. With `selection` see `relabel`. Raises InputError."""
    if selection:
        relabel.main(workdir, selection, predictions, beam_options)
    else:
        _balance(config, workdir, data, predictions, beam_options)


def _balance(
    config: ConfigDict, workdir: str, data: str, predictions: str, beam_options: Sequence[str]
) -> None:
    settings = config.balance
    check_balance(settings)
    # Absolute, since a worker may have another current folder.
    workdir, data, predictions = (
        str(Path(path).expanduser().resolve()) for path in (workdir, data, predictions)
    )
    work_dirs.require_finished(data, "data", "run_prepare_data.sh")
    work_dirs.require_finished(predictions, "predictions", "run_pseudo_label.sh")
    images, labels = (
        read_manifest(Path(data) / "unlabeled", "unlabeled"),
        read_manifest(predictions, "predictions"),
    )
    _check_partition(images, labels)
    require_origin(images, labels)
    shares = _shares(settings, Path(data), labels.label_names)
    directory, progress = Path(workdir), Path(workdir) / "progress"
    done = f"{workdir}: pseudo-labels are balanced already"
    resolved = {"stage": "balance", "seed": config.seed, "balance": settings.to_dict()}
    if work_dirs.start(directory, resolved, {"data": data, "predictions": predictions}) is not None:
        shard_jobs.forget(progress)
        work_dirs.say_done(directory, done)
        return

    num_shards = len(images.files)
    scores = ScoreShards(
        labels,
        progress / "columns",
        settings.threshold,
        config.seed,
        max_confidence=settings.max_confidence,
        fraction=settings.fraction,
    )
    counts = [int] * labels.num_classes
    note = {"above": counts, "below": counts, "drawn": int}
    results = shard_jobs.run(scores, num_shards, progress / "scores", beam_options, note)
    require_unique_keys(scores)
    above = np.sum([result["above"] for result in results], axis=0)  # (K,)
    below = np.sum([result["below"] for result in results], axis=0)  # (K,)
    drawn = sum(result["drawn"] for result in results)
    if above.sum() + below.sum() != drawn or (
        settings.fraction == 1 and drawn != images.num_records
    ):
        raise AssertionError(
            f"{above.sum()} + {below.sum()} of {drawn} predictions for {images.num_records} images"
        )
    if not above.any():
        shard_jobs.forget(progress)  # the directory then accepts another threshold
    empty = _warn_of_empty(above, labels.label_names, settings.threshold)

    most = np.ceil(settings.share_per_class * above).astype(np.int64)  # (K,)
    images_per_class = choose_images_per_class(
        most, settings.balance, settings.images_per_class, shares
    )
    targets = None
    if shares is not None and images_per_class:
        targets = priors.quotas(shares, images_per_class * len(shares))  # (K,)
    columns = Columns(tuple(map(scores.columns_path, range(num_shards))))
    chosen = selection.select(
        columns,
        above,
        images_per_class if targets is None else targets,
        settings.threshold,
        most,
    )
    if settings.sample_images is not None:
        chosen = draw(columns, chosen, settings.sample_images, progress)
    job = WriteShards(images, scores, chosen, directory, settings.copy_images)
    note = {"records": int, "unique": int, "sha256": str}
    results = shard_jobs.run(job, num_shards, progress / "records", beam_options, note)

    records, unique = (
        sum(result["records"] for result in results),
        sum(result["unique"] for result in results),
    )
    if records != chosen.totals.sum() or unique != chosen.kept.sum():
        raise AssertionError(
            f"{records} records of {unique} images written, {chosen.totals.sum()} of"
            f" {chosen.kept.sum()} selected"
        )
    write_manifest(
        Manifest(
            directory=directory,
            name="pseudo_labeled",
            files=tuple(
                Path(path).name for shard in range(num_shards) for path in job.outputs(shard)
            ),
            records=tuple(result["records"] for result in results),
            label_names=labels.label_names,
            label_offset=0,
            kind="pseudo_labeled",
            extra={"threshold": settings.threshold, "images_per_class": images_per_class},
            digests=tuple(result["sha256"] for result in results),
            beside=(
                None
                if settings.copy_images
                else Beside(images, tuple(result["unique"] for result in results))
            ),
        )
    )
    with atomic_path(directory / "pseudo_labels.png") as temporary:
        temporary.write_bytes(balance_figure.figure(above, chosen.totals, labels.label_names))
    work_dirs.finish(
        directory,
        {
            "images": images.num_records,
            "drawn": drawn,
            "threshold": settings.threshold,
            "images_per_class": images_per_class,
            "targets": None if targets is None else targets.tolist(),
            "label_names": list(labels.label_names),
            "below_threshold": below.tolist(),  # or above max_confidence
            "above_threshold": above.tolist(),
            "unique": chosen.kept.tolist(),
            "total": chosen.totals.tolist(),
            "num_unique": unique,
            "num_records": records,
            "classes_without_images": empty,
        },
        done,
    )
    shard_jobs.forget(progress)
    logging.info(
        "%d records of %d images kept, of %d; %s a class",
        records,
        unique,
        images.num_records,
        f"{images_per_class}{'' if targets is None else ' on average'}"
        if images_per_class
        else "no fixed number",
    )
