"""Measures filtering and balancing at scale: exact selection, reading and memory.

The selection stands beside a numpy sort, reading beside bare reading, and memory beside the
corpus's size. The stage is its first pass, the check for doubled keys and the selection.
`balance/write` is its second pass, which joins the images with their predictions and writes the
training records, over one shard of images of 110 kB.

    ./run_benchmarks.sh balance                       10 million records of top-5 over 1,000 classes
    ./run_benchmarks.sh balance --records=1000000     fewer

Each size runs in its own process, so that its peak memory is its own.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import report
from data import records
from data.protos import make_example, make_prediction
from data.records import Manifest, shard_name
from noisy_student import selection
from workflow import balance, predictions

CLASSES, TOP_K, SHARD = 1000, 5, 100_000
IMAGES, IMAGE_BYTES = 2_000, 110_000
THRESHOLD = 0.3


def synthetic(count: int, shard: int) -> Iterator[bytes]:
    """Yields the prediction records of one shard, all of one length.

    Each is a real record with key, classes and probabilities replaced.
    """
    rng = np.random.Generator(np.random.PCG64([7, shard]))
    marks = np.array([0.5, 0.25, 0.125, 0.0625, 0.03125], np.float32)
    sample = np.zeros(CLASSES, np.float32)
    sample[[900, 901, 902, 903, 904]] = marks
    sample[:2] = (1 - marks.sum()) / 2  # less than any of the marks, which are stored
    template = bytearray(make_prediction("k" * 12, sample, TOP_K))
    key, classes, floats = (
        template.index(b"k" * 12),
        template.index(b"\x84\x07\x85\x07"),
        template.index(marks.tobytes()),
    )
    # Skewed classes, as in a real pool; from 128 up, so that their varints take two bytes.
    drawn = 128 + (rng.random([count, 1]) ** 3 * 868).astype(np.int64) + np.arange(TOP_K)
    top = rng.beta(2, 2, count).astype(np.float32)
    values = np.stack(
        [top] + [(1 - top) * np.float32(0.4 / 2**i) for i in range(TOP_K - 1)], axis=1
    )
    rows = np.tile(np.frombuffer(bytes(template), np.uint8), (count, 1))
    digits = (shard * SHARD + np.arange(count))[:, None] // 10 ** np.arange(11, -1, -1) % 10
    rows[:, key : key + 12] = digits + ord("0")
    rows[:, classes : classes + 2 * TOP_K] = np.stack(
        [drawn & 127 | 128, drawn >> 7], axis=-1
    ).reshape(count, -1)
    rows[:, floats : floats + 4 * TOP_K] = values.astype("<f4").view(np.uint8).reshape(count, -1)
    return (row.tobytes() for row in rows)


def write(directory: Path, total: int) -> Manifest:
    """Writes shards of 100,000 predictions."""
    num_shards = -(-total // SHARD)
    files = tuple(shard_name("predictions", i, num_shards) for i in range(num_shards))
    sizes = tuple(min(SHARD, total - i * SHARD) for i in range(num_shards))
    digests = [
        records.write_shard(directory / name, synthetic(size, i))[1]
        for i, (name, size) in enumerate(zip(files, sizes))
    ]
    return Manifest(
        directory,
        "predictions",
        files,
        sizes,
        tuple(map(str, range(CLASSES))),
        0,
        "predictions",
        {},
        tuple(digests),
    )


def bare(manifest: Manifest) -> None:
    """Reads and parses every record, and nothing else."""
    for path in manifest.paths:
        for _ in predictions.parsed_batches(path).as_numpy_iterator():
            pass


def stage(manifest: Manifest, work: Path) -> tuple[selection.Selection, np.ndarray]:
    """Runs pass 1, the check for doubled keys and the selection."""
    job = balance.ScoreShards(manifest, work, THRESHOLD, 0)
    above = np.sum([job.run(shard)["above"] for shard in range(len(manifest.files))], axis=0)
    balance.require_unique_keys(job)
    return select(job, above), above


def select(job: balance.ScoreShards, above: np.ndarray) -> selection.Selection:
    """Runs the selection alone, from pass 1's columns."""
    columns = balance.Columns(tuple(map(job.columns_path, range(len(job.predictions.files)))))
    return selection.select(columns, above, int(np.median(above[above > 0])), THRESHOLD)


def second_pass() -> None:
    """Prints the line of the second pass.

    It stands beside reading all images' records and writing those kept.
    """
    with tempfile.TemporaryDirectory() as directory:
        root, rng = Path(directory), np.random.default_rng(0)
        scores = balance.ScoreShards(
            write(root / "predictions", IMAGES), root / "columns", THRESHOLD, 0
        )
        encoded = rng.bytes(IMAGE_BYTES)
        (root / "images").mkdir()
        name = shard_name("unlabeled", 0, 1)
        _, digest = records.write_shard(
            root / "images" / name, (make_example(encoded, f"{i:012d}") for i in range(IMAGES))
        )
        images = Manifest(
            root / "images", "unlabeled", (name,), (IMAGES,), (), 0, "unlabeled", {}, (digest,)
        )
        chosen = select(scores, np.array(scores.run(0)["above"]))
        job = balance.WriteShards(images, scores, chosen, root / "out")
        with np.load(scores.columns_path(0)) as columns:
            copies = chosen.record_copies(columns, IMAGES)

        def bare_copy() -> None:
            read = records.read_shard(images.paths[0])
            records.write_shard(
                root / "copy", (record for record, n in zip(read, copies) for _ in range(n))
            )

        times = report.interleaved(3, ours=lambda: job.run(0), peer=bare_copy)
    (wall, cpu), (peer_wall, peer_cpu) = times["ours"], times["peer"]
    report.line(
        "balance/write",
        IMAGES / wall,
        IMAGES / peer_wall,
        "reading all and writing the kept",
        goal=0.25,
        unit="images/s",
        ours_cpu_us=round(cpu / IMAGES * 1e6),
        peer_cpu_us=round(peer_cpu / IMAGES * 1e6),
        kept=round(float(np.count_nonzero(copies)) / IMAGES, 3),
        written=int(copies.sum()),
    )


def lexsort(
    classes: np.ndarray, confidence: np.ndarray, hashes: np.ndarray, per_class: int
) -> np.ndarray:
    """Counts how many of each class are kept, as one would write it: all in memory, one sort."""
    order = np.lexsort((hashes, -confidence, classes))
    kept = classes[order]
    first = np.searchsorted(kept, np.arange(CLASSES))
    rank = np.arange(len(kept)) - first[kept]
    return np.bincount(kept[rank < per_class], minlength=CLASSES)


def child(total: int, with_peers: bool) -> None:
    """Measures one size, in this process, and prints its figures as JSON."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        manifest = write(root / "predictions", total)
        result: dict[str, float] = {}
        if with_peers:
            bare(manifest)  # the first reading also loads what TensorFlow loads late
            with report.Timer() as timer:
                bare(manifest)
            result.update(bare=timer.wall, bare_cpu=timer.cpu)
        with report.Timer() as timer:
            chosen, above = stage(manifest, root / "columns")
        result.update(
            stage=timer.wall,
            stage_cpu=timer.cpu,
            rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        per_class = int(np.median(above[above > 0]))
        expected = np.where(above > 0, per_class, 0)
        assert (chosen.totals == expected).all(), "the counts are not exact"
        if with_peers:
            job = balance.ScoreShards(manifest, root / "columns", THRESHOLD, 0)
            with report.Timer() as timer:
                select(job, above)
            result["select"] = timer.wall
            parts = [np.load(job.columns_path(shard)) for shard in range(len(manifest.files))]
            columns = [
                np.concatenate([part[name] for part in parts])
                for name in ("classes", "confidence", "hash")
            ]
            with report.Timer() as timer:
                kept = lexsort(*columns, per_class)
            result.update(lexsort=timer.wall, above=float(above.sum()))
            assert (kept == chosen.kept).all(), "the sort keeps other numbers"
    print(json.dumps(result))


def main(records: int = 10_000_000) -> None:
    """Measures a tenth of `records` and all; prints the lines. Raises InputError for too few."""
    small, large = report.at_two_sizes("benchmarks.balance", records)
    second_pass()
    report.line(
        "balance/select",
        large["above"] / large["select"],
        large["above"] / large["lexsort"],
        "numpy.lexsort",
        goal=1.0,
        unit="records/s",
    )
    report.line(
        "balance/stage",
        records / large["stage"],
        records / large["bare"],
        "TFRecord read and parse",
        goal=0.8,
        unit="records/s",
        ours_cpu_us=round(large["stage_cpu"] / records * 1e6, 2),
        peer_cpu_us=round(large["bare_cpu"] / records * 1e6, 2),
        records=records,
    )
    report.memory_line("balance", small["rss"], large["rss"], records)
    report.line(
        "balance/linear",
        records / large["stage"],
        records / 10 / small["stage"],
        f"{records // 10:,} records",
        goal=1.0,
        unit="records/s",
    )


if __name__ == "__main__":
    child(int(sys.argv[1]), sys.argv[1] == sys.argv[2])
