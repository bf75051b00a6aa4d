"""Measures what a teacher's distributions lose by compact storage, or by faster graphs.

    ./run_tool.sh fidelity --data=W/data --teacher=W/teacher [--images=10000]

The tool labels images of `DATA/unlabeled` in float32, with distributions p. It compares them with
distributions q: those read back from records of each form, and those of the stage's faster graphs.
For each it prints KL(q ‖ p) in nats, which is how far q is off as a target of the student. It also
prints how often the most probable class is the same.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)

# isort: split

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cli import work_dirs
from data.protos import make_prediction, read_prediction
from data.records import RECORD_OVERHEAD, Manifest, read_manifest
from data.verification import verify_shard
from training import model_dir
from workflow.label_shards import LabelShards, image_batches

BATCH = 64
STORED = {"all, float16": 0, "top 5": 5, "top 3": 3, "top 1": 1}
"""Name of a form -> its `top_k`."""
GRAPHS: dict[str, dict[str, Any]] = {
    "all, optimized graph": {"optimize": True},
    "all, optimized graph in bfloat16": {"optimize": True, "precision": "mixed_bfloat16"},
}


def divergence(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Returns KL(q ‖ p) of each row in nats, float64 [n], of distributions float [n, K].

    A p of 0 counts as float32's smallest normal number.
    """
    p = np.maximum(p.astype(np.float64), np.finfo(np.float32).tiny)
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.sum(
        np.where(q > 0, q * np.log(np.maximum(q, np.finfo(np.float64).tiny) / p), 0.0), axis=1
    )


def stored(keys: list[str], p: np.ndarray, top_k: int) -> tuple[np.ndarray, float]:
    """Returns (distributions float32 [n, K] read back from records, bytes a record in a file)."""
    records = [make_prediction(key, row, top_k) for key, row in zip(keys, p)]
    q = np.stack([read_prediction(record, p.shape[1])[1] for record in records])
    return q, float(np.mean([len(record) for record in records])) + RECORD_OVERHEAD


def label(images: Manifest, teacher: str, count: int, **graph: Any) -> tuple[list[str], np.ndarray]:
    """Returns (keys, distributions float32 [n, K]) of the first `count` images."""
    job, preprocessing = (
        LabelShards(images, teacher, Path(), BATCH, 0, **graph),
        model_dir.read_spec(teacher).preprocessing,
    )
    job.setup()
    keys: list[str] = []
    rows: list[np.ndarray] = []
    for shard in range(len(images.files)):
        for names, pixels in image_batches(verify_shard(images, shard), preprocessing, BATCH):
            keys += [name.decode("utf-8") for name in names]
            rows.append(job.forward(pixels[:, 0]))
            if len(keys) >= count:
                return keys[:count], np.concatenate(rows)[:count]
    return keys, np.concatenate(rows)


def compare(
    images: Manifest, teacher: str, count: int
) -> Iterator[tuple[str, float | None, np.ndarray, np.ndarray]]:
    """Compares each form and each graph with the float32 distributions.

    Yields:
      (name, bytes a record or None, KL [n], whether the class is the same [n]).
    """
    keys, p = label(images, teacher, count)
    found: list[tuple[str, float | None, np.ndarray]] = []
    for name, top_k in STORED.items():
        if top_k < p.shape[1]:
            q, size = stored(keys, p, top_k)
            found.append((name, size, q))
    found += [
        (name, None, label(images, teacher, count, **graph)[1]) for name, graph in GRAPHS.items()
    ]
    for name, bytes_or_none, q in found:
        yield name, bytes_or_none, divergence(q, p), q.argmax(axis=1) == p.argmax(axis=1)


def main(data: str, teacher: str, images: int) -> None:
    """Prints the table. Raises InputError."""
    work_dirs.require_finished(data, "data", "run_prepare_data.sh")
    work_dirs.require_finished(teacher, "teacher", model_dir.MADE_BY)
    manifest = read_manifest(Path(data) / "unlabeled", "unlabeled")
    print(f"{min(images, manifest.num_records):,} images\n")
    print(
        "| distribution | bytes a record | KL, mean | KL, largest | same class"
        " |\n|---|---|---|---|---|"
    )
    for name, size, kl, same in compare(manifest, teacher, images):
        print(
            f"| {name} | {'' if size is None else f'{size:.0f}'} | {kl.mean():.2g} |"
            f" {kl.max():.2g} | {100 * same.mean():.2f} % |"
        )
