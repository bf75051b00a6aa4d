"""Two logical CPU devices that label side by side, against one on the same cores.

    ./run_benchmarks.sh several_devices [--images=256]

EfficientNet-B0 at 224 with untrained weights labels JPEGs of 500x375 pixels in four shards. With
one device the shards come one after another; with two, two threads share the devices out, as in
`run_pseudo_label.sh --strategy=mirrored --cpu_devices=2`. Two devices on the same cores can gain
nothing, so the ratio says what sharing costs. The prediction shards must be the same bytes.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import dataclasses
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import report
from benchmarks.input_pipeline import photographs
from data import protos, records
from data.preprocessing import Preprocessing
from training import model_dir, strategy
from training.model_dir import ModelSpec
from workflow.label_shards import LabelShards

SIZE, CLASSES, BATCH, SHARDS, ROUNDS = 224, 1000, 32, 4, 3


def main(images: int = 256) -> None:
    """Measures in its own process: TensorFlow splits the CPU only before its first use."""
    subprocess.run([sys.executable, "-m", "benchmarks.several_devices", str(images)], check=True)


def _measure(count: int) -> None:
    strategy.devices("mirrored", 2)  # before anything else uses TensorFlow
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        examples = (
            protos.make_example(encoded, str(i)) for i, encoded in enumerate(photographs(count))
        )
        manifest = records.write_split(
            root / "images", "unlabeled", examples, SHARDS, count, kind="unlabeled"
        )
        spec = ModelSpec(
            {"name": "b0"}, Preprocessing(SIZE, style="imagenet"), tuple(map(str, range(CLASSES)))
        )
        model_dir.save(root / "model", spec.build(), spec)
        two = LabelShards(
            manifest, str(root / "model"), root / "two", BATCH, 5, devices=("mirrored", 2, "")
        )
        one = dataclasses.replace(two, directory=root / "one", devices=("one_device", 2, ""))
        for job in (two, one):
            job.directory.mkdir()
            job.setup()

        def side_by_side() -> None:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(two.run, range(SHARDS)))

        work = {"two": side_by_side, "one": lambda: [one.run(shard) for shard in range(SHARDS)]}
        for function in work.values():
            function()  # traces, and fills the page cache
        times = report.interleaved(ROUNDS, **work)
        same = all(
            Path(a).read_bytes() == Path(b).read_bytes()
            for i in range(SHARDS)
            for a, b in zip(one.outputs(i), two.outputs(i))
        )
    report.line(
        "several_devices/labeling",
        count / times["two"][0],
        count / times["one"][0],
        "one device on the same cores",
        goal=0.9,
        unit="images/s",
        ours_cpu_ms=round(times["two"][1] / count * 1e3, 2),
        peer_cpu_ms=round(times["one"][1] / count * 1e3, 2),
        same_bytes=same,
    )


if __name__ == "__main__":
    _measure(int(sys.argv[1]))
