"""Training's input from labels beside images, against the same from copied records.

    ./run_benchmarks.sh labels_beside [--images=1200]

The pool is JPEG files of 500x375 pixels. As in the paper 27 % of them are selected (81 of 300
million). With copies the set has 43 % as many records as the pool has images (130). `stream` is the
shuffled stream of serialized examples alone; `batches` also decodes and augments them for 224
pixels. Both forms are read in turn, in one process; what they yield is compared bit by bit first.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.input_pipeline import NOISE, consume, photographs
from data import pipeline
from data.manifest import Beside, Manifest, read_manifest, write_manifest
from data.protos import make_example, make_label
from data.records import shard_name, write_shard, write_split

CLASSES, SHARDS, BATCH, ROUNDS = 1000, 4, 64, 3
UNIQUE, RECORDS = 0.27, 0.43


def write(root: Path, count: int) -> dict[str, Manifest]:
    """Writes the pool, and one balanced set of it in both forms."""
    files, rng = photographs(count), np.random.Generator(np.random.PCG64(1))
    kept = np.sort(rng.choice(count, int(UNIQUE * count), replace=False))
    copies = np.zeros(count, np.int64)
    copies[kept] = 1
    np.add.at(copies, rng.choice(kept, int(RECORDS * count) - len(kept)), 1)
    q = rng.dirichlet(np.full(CLASSES, 0.01), count).astype(np.float32)
    pool = (make_example(encoded, f"{i:012d}") for i, encoded in enumerate(files))
    images = write_split(root / "pool", "unlabeled", pool, SHARDS, count, kind="unlabeled")
    names, edges = tuple(map(str, range(CLASSES))), [i * count // SHARDS for i in range(SHARDS + 1)]
    made = {}
    for form in ("copied", "beside"):
        (root / form).mkdir()
        shards, written, sizes = (
            tuple(shard_name("pseudo_labeled", i, SHARDS) for i in range(SHARDS)),
            [],
            [],
        )
        for first, end, name in zip(edges, edges[1:], shards):
            used = [i for i in range(first, end) if copies[i]]
            if form == "copied":
                records = [
                    make_example(files[i], f"{i:012d}", probabilities=q[i])
                    for i in used
                    for _ in range(copies[i])
                ]
            else:
                records = [make_label(i - first, int(copies[i]), q[i]) for i in used]
            written.append(write_shard(root / form / name, records))
            sizes.append(int(copies[first:end].sum()))
        counts, digests = zip(*written)
        beside = Beside(images, counts) if form == "beside" else None
        write_manifest(
            Manifest(
                root / form,
                "pseudo_labeled",
                shards,
                tuple(sizes),
                names,
                0,
                "pseudo_labeled",
                {},
                digests,
                beside=beside,
            )
        )
        made[form] = read_manifest(root / form)
    return made


def stream(manifest: Manifest, steps: int) -> Any:
    """Returns batches of serialized examples."""
    return pipeline.untuned(pipeline.example_stream(manifest, 0).batch(BATCH).take(steps))


def batches(manifest: Manifest, steps: int) -> Any:
    """Returns batches of a training."""
    return pipeline.train_batches(
        manifest, NOISE, batch_size=BATCH, seed=0, targets="probabilities"
    ).take(steps)


def main(images: int = 1200) -> None:
    """Prints a line for each of `stream` and `batches`."""
    with tempfile.TemporaryDirectory() as directory:
        forms = write(Path(directory), images)
        steps = max(4, 2 * forms["copied"].num_records // BATCH)  # two epochs
        for one, other in zip(batches(forms["copied"], 4), batches(forms["beside"], 4)):
            assert all((x.numpy() == y.numpy()).all() for x, y in zip(one, other)), (
                "the two forms differ"
            )
        for name, make, epochs in (("stream", stream, 20), ("batches", batches, 1)):
            work = {
                form: consume(make(manifest, epochs * steps)) for form, manifest in forms.items()
            }
            times = report.interleaved(ROUNDS, **work)
            count = BATCH * (epochs * steps - 1)
            (wall, cpu), (peer_wall, peer_cpu) = times["beside"], times["copied"]
            report.line(
                f"labels_beside/{name}",
                count / wall,
                count / peer_wall,
                "copied records",
                goal=0.97,
                unit="images/s",
                ours_cpu_us=round(cpu / count * 1e6, 1),
                peer_cpu_us=round(peer_cpu / count * 1e6, 1),
                cpu_ratio=round(peer_cpu / cpu, 3),
            )
