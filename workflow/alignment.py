"""Distribution alignment: pseudo-labels whose classes are on average as frequent as the labels' are. Beyond Noisy Student's papers.

    q_i <- q_i · p / m, normalised again        (Berthelot et al. 2020, ReMixMatch, Section 3.1)

with p the share of each class among the labelled images and m the mean of q over the images kept, each as often as it is copied. The
normalisation moves the mean off p again by a little, as in its source: where all q are sure, nothing moves at all.

Sums are of integers, so m depends on the images only, not on their order or on how they are cut into shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli.errors import InputError
from cli.json_files import read_json
from data.records import Manifest, require_same_classes
from noisy_student.selection import Selection
from workflow.predictions import read_predictions

FRACTION_BITS = 40
"""Of a probability in the sums; a shard's stay below 2**63 for up to 8 million records."""


@dataclasses.dataclass
class SumShards:
    """The job: one shard of predictions -> the sum of those kept, in units of 2**-FRACTION_BITS.

    Attributes:
      predictions: their manifest.
      columns: of each shard, see `balance.ScoreShards`.
      chosen: the selection.
    """

    predictions: Manifest
    columns: tuple[Path, ...]
    chosen: Selection

    def setup(self) -> None:
        """Nothing to load."""

    def outputs(self, shard: int) -> list[str]:
        """None; the sum is noted."""
        return []

    def run(self, shard: int) -> dict[str, Any]:
        """Sums one shard. Raises InputError where it cannot be read."""
        size = self.predictions.records[shard]
        with np.load(self.columns[shard]) as columns:
            copies = self.chosen.record_copies(columns, size)
        total = np.zeros(self.predictions.num_classes, np.int64)
        for number, (_, probabilities) in zip(copies, read_predictions(self.predictions, shard)):
            if number:
                total += number * np.rint(probabilities.astype(np.float64) * 2.0**FRACTION_BITS).astype(np.int64)
        return {"images": size, "sum": total.tolist()}


def labeled_counts(data: Path, predictions: Manifest) -> list[int]:
    """Labelled images of each class in a finished data directory.

    Raises:
      InputError: its classes are not those of the predictions, or one has no image, and would lose all its pseudo-labels.
    """
    schema = {"splits": {"labeled": {"per_class": {str: int}}}}
    counts = read_json(data / "summary.json", schema)["splits"]["labeled"]["per_class"]
    require_same_classes(
        predictions.label_names, f"predictions {predictions.directory}", tuple(counts), f"config.balance.align_labels: {data}"
    )
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise InputError(
            f"config.balance.align_labels needs labelled images of every class, and {data} has none of {empty[0]}; turn it off"
        )
    return list(counts.values())


def class_factors(sums: Sequence[Sequence[int]], labeled: Sequence[int]) -> np.ndarray:
    """The ratio p / m of each class, float64 [K]; 1 for a class of which no image has any probability.

    Args:
      sums: of each shard, int [K].
      labeled: labelled images of each class, at least 1.
    """
    totals = [sum(column) for column in zip(*sums)]  # Python's integers: of any size
    images, whole = sum(labeled), sum(totals)
    return np.array([count * whole / (images * total) if total else 1.0 for count, total in zip(labeled, totals)])


def aligned(probabilities: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """A pseudo-label, float32 [K], rescaled by `factors`, float64 [K]; sums to 1."""
    scaled = probabilities.astype(np.float64) * factors
    return (scaled / scaled.sum()).astype(np.float32)
