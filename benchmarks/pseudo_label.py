"""Measures labeling images against the bare network and against Keras's own.

    ./run_benchmarks.sh pseudo_label [--images=512]

Labeling goes from TFRecord to finished prediction shards. EfficientNet-B0 at 224 with 1,000
classes and untrained weights labels JPEGs of 500x375 pixels, in one shard, by what a worker does of
the stage. The cases: as the stage does it by default, with BatchNorm folded (`optimize`), and so in
bfloat16. Each stands beside forward passes of the same graph on as many images in memory. It
also stands beside `tf.keras.applications.EfficientNetB0.predict` in float32 on the same records
(decoded whole, resized, batched and prefetched; it writes nothing).
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks import report
from benchmarks.input_pipeline import photographs
from data import protos, records
from data.pipeline import PARALLEL_CALLS, untuned
from data.preprocessing import Preprocessing
from training import model_dir
from training.model_dir import ModelSpec
from workflow.label_shards import LabelShards

SIZE, CLASSES, BATCH, ROUNDS = 224, 1000, 64, 3
GRAPHS: dict[str, dict[str, Any]] = {
    "float32": {},
    "optimized": {"optimize": True},
    "bfloat16": {"optimize": True, "precision": "mixed_bfloat16"},
}


def keras_predict(paths: tuple[str, ...]) -> Callable[[], Any]:
    """Returns the peer: Keras's model on the same records, by the pipeline that one would write."""

    def load(serialized: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(protos.parse_example(serialized)["image/encoded"], channels=3)
        return tf.image.resize(image, [SIZE, SIZE])

    images = tf.data.TFRecordDataset(list(paths)).map(load, num_parallel_calls=PARALLEL_CALLS)
    batches = untuned(images.batch(BATCH).prefetch(2))
    model = tf.keras.applications.EfficientNetB0(weights=None)
    return lambda: model.predict(batches, verbose=0)


def main(images: int = 512) -> None:
    """Measures with `images` JPEG files, rounded up to whole batches, and prints the lines."""
    count = -(-images // BATCH) * BATCH
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        examples = (
            protos.make_example(encoded, str(i)) for i, encoded in enumerate(photographs(count))
        )
        manifest = records.write_split(
            root / "images", "unlabeled", examples, 1, count, kind="unlabeled"
        )
        spec = ModelSpec(
            {"name": "b0"}, Preprocessing(SIZE, style="imagenet"), tuple(map(str, range(CLASSES)))
        )
        model_dir.save(root / "model", spec.build(), spec)
        batch = tf.random.stateless_uniform([BATCH, SIZE, SIZE, 3], [1, 2], maxval=255.0)

        work: dict[str, Callable[[], Any]] = {"keras": keras_predict(manifest.paths)}
        for name, settings in GRAPHS.items():
            job = LabelShards(manifest, str(root / "model"), root, BATCH, 5, **settings)
            job.setup()
            work[name] = lambda job=job: job.run(0)  # type: ignore[misc]
            work[f"bare {name}"] = lambda job=job: [
                job.forward(batch) for _ in range(count // BATCH)
            ]  # type: ignore[misc]
        for function in work.values():
            function()  # traces, and fills the page cache
        times = report.interleaved(ROUNDS, **work)
    for name in GRAPHS:
        for peer, peer_name, goal in (
            (f"bare {name}", "forward passes of the same graph", 0.95),
            ("keras", "EfficientNetB0.predict", 1.2),
        ):
            report.line(
                f"pseudo_label/{name}/{peer.split()[0]}",
                count / times[name][0],
                count / times[peer][0],
                peer_name,
                goal=goal,
                unit="images/s",
                ours_cpu_ms=round(times[name][1] / count * 1e3, 2),
                peer_cpu_ms=round(times[peer][1] / count * 1e3, 2),
            )
