"""One selection labeled again, at scale: time a record, and memory against the set's size.

    ./run_benchmarks.sh relabel                      10 million records of 10 classes
    ./run_benchmarks.sh relabel --records=1000000    fewer

The set is made up: images of a few bytes; every third image has copies, up to four. The stage
reads it and as many predictions as it has images, joins them by key, and writes the set again.
Beside it stands reading the same records and writing them as they are. An independent count by
NumPy must agree with the summary. Each size runs in its own process, so that its peak memory
is its own.
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
from cli.json_files import read_json, write_json
from data import records
from data.protos import make_example, make_prediction
from data.records import Manifest, shard_name, write_manifest
from workflow import relabel

CLASSES, SHARD = 10, 20_000
KEY = 12


def _drawn(shard: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns classes before and after [n] and copies [n] of a shard's images.

    `size` is the number of the shard's records.
    """
    rng = np.random.Generator(np.random.PCG64([11, shard]))
    before, after = rng.integers(0, CLASSES, [2, size])
    copies = np.where(rng.random(size) < 1 / 3, rng.integers(2, 5, size), 1)
    last = int(np.searchsorted(np.cumsum(copies), size))
    copies[last] -= int(copies[: last + 1].sum()) - size  # cut at the shard's end
    return before[: last + 1], after[: last + 1], copies[: last + 1]


def _templates(kind: str) -> list[tuple[bytearray, int]]:
    """Returns a record of each class, and where its key stands."""
    made = []
    for label in range(CLASSES):
        p = np.full(CLASSES, 0.05, np.float32)
        p[label] += 0.5
        key = "k" * KEY
        record = (
            make_example(b"an image", key, probabilities=p)
            if kind == "pseudo_labeled"
            else make_prediction(key, p, 0)
        )
        made.append((bytearray(record), record.index(key.encode())))
    return made


def _filled(
    templates: list[tuple[bytearray, int]], labels: np.ndarray, shard: int
) -> Iterator[bytes]:
    for number, label in enumerate(labels.tolist()):
        record, place = templates[label]
        record[place : place + KEY] = b"%012d" % (shard * SHARD + number)
        yield bytes(record)


def write(root: Path, total: int) -> None:
    """Writes `root/set`, balanced records, and `root/predictions`, one for each image."""
    num_shards, names = -(-total // SHARD), tuple(map(str, range(CLASSES)))
    selected: Manifest | None = None
    for kind in ("pseudo_labeled", "predictions"):
        directory = root / ("set" if kind == "pseudo_labeled" else kind)
        directory.mkdir()
        files, templates, written = (
            tuple(shard_name(kind, i, num_shards) for i in range(num_shards)),
            _templates(kind),
            [],
        )
        for shard, name in enumerate(files):
            before, after, copies = _drawn(shard, min(SHARD, total - shard * SHARD))
            filled = _filled(templates, before if kind == "pseudo_labeled" else after, shard)
            if kind == "pseudo_labeled":
                filled = (record for record, n in zip(filled, copies) for _ in range(n))
            written.append(records.write_shard(directory / name, filled))
        counts, digests = zip(*written)
        extra = {"images": selected.digest} if selected else {}
        selected = Manifest(directory, kind, files, counts, names, 0, kind, extra, digests)
        write_manifest(selected)
        write_json(directory / "summary.json", {})


def expected(total: int) -> dict[str, object]:
    """Counts what the summary must say, by NumPy, from the numbers drawn."""
    rows = {name: np.zeros(CLASSES, np.int64) for name in ("selected", "total", "unique")}
    changed = 0
    for shard in range(-(-total // SHARD)):
        before, after, copies = _drawn(shard, min(SHARD, total - shard * SHARD))
        rows["selected"] += np.bincount(before, copies, CLASSES).astype(np.int64)
        rows["total"] += np.bincount(after, copies, CLASSES).astype(np.int64)
        rows["unique"] += np.bincount(after, minlength=CLASSES)
        changed += int((before != after).sum())
    return {
        **{name: row.tolist() for name, row in rows.items()},
        "changed": changed,
        "num_records": total,
    }


def child(total: int) -> None:
    """Measures one size, in this process, and prints its figures as JSON."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        write(root, total)
        with report.Timer() as bare:
            for path in sorted((root / "set").glob("*-of-*")):
                records.write_shard(root / "copy", records.read_shard(path))
        with report.Timer() as timer:
            relabel.main(str(root / "again"), str(root / "set"), str(root / "predictions"))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        summary, wanted = read_json(root / "again" / "summary.json"), expected(total)
        assert {name: summary[name] for name in wanted} == wanted, "the counts are not exact"
        result = {
            "wall": timer.wall,
            "cpu": timer.cpu,
            "bare": bare.wall,
            "bare_cpu": bare.cpu,
            "rss": rss,
        }
        print(json.dumps({**result, "images": summary["num_unique"]}))


def main(records: int = 10_000_000) -> None:
    """Measures a tenth of `records` and all; prints the lines. Raises InputError for too few."""
    small, large = report.at_two_sizes("benchmarks.relabel", records)
    report.line(
        "relabel/stage",
        records / large["wall"],
        records / large["bare"],
        "reading the set and writing it as it is",
        goal=0.1,
        unit="records/s",
        ours_cpu_us=round(large["cpu"] / records * 1e6, 2),
        peer_cpu_us=round(large["bare_cpu"] / records * 1e6, 2),
        records=records,
        images=large["images"],
    )
    report.memory_line("relabel", small["rss"], large["rss"], records)


if __name__ == "__main__":
    child(int(sys.argv[1]))
