"""Measures what each of several hosts reads of a training split, in bytes.

    ./run_benchmarks.sh several_hosts [--images=2048]

One, two and four processes read their own parts of each batch for two epochs of JPEGs of 500x375
pixels, without preparing them. A line gives the bytes that the busiest process read, by
/proc/self/io (Linux), as a share of the epochs' bytes / processes. The goal is at most 1.1; the
next window, of a shard, is read ahead and counts.
"""

from __future__ import annotations

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.input_pipeline import photographs
from data import pipeline, protos, records

BATCH, SHARDS, EPOCHS = 64, 32, 2


def main(images: int = 2048) -> None:
    """Measures with `images` JPEG files, rounded up to whole batches, and prints the lines."""
    count = -(-images // BATCH) * BATCH
    with tempfile.TemporaryDirectory() as directory:
        examples = (
            protos.make_example(encoded, str(i), label=0)
            for i, encoded in enumerate(photographs(count))
        )
        split = records.write_split(
            directory, "labeled", examples, SHARDS, count, kind="labeled", label_names=("a",)
        )
        total = EPOCHS * sum(Path(path).stat().st_size for path in split.paths)
        for hosts in (1, 2, 4):
            command = [sys.executable, "-m", "benchmarks.several_hosts", directory, str(hosts)]
            processes = [
                subprocess.Popen([*command, str(host)], stdout=subprocess.PIPE, text=True)
                for host in range(hosts)
            ]
            read = [int(process.communicate()[0]) for process in processes]
            row = {
                "benchmark": f"several_hosts/{hosts}",
                "bytes": max(read),
                "epochs_bytes": total,
                "goal": 1.1,
                "unit": "of the bytes / hosts",
            }
            print(json.dumps({**row, "share": round(max(read) * hosts / total, 3)}), flush=True)


def bytes_read() -> int:
    """Returns the bytes that this process has read from files so far."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def read_part(directory: str, hosts: int, host: int) -> int:
    """Reads one host's part of the epochs; returns the bytes read."""
    manifest = records.read_manifest(directory)
    expected_records, before = EPOCHS * manifest.num_records // hosts, bytes_read()
    stream = pipeline.own_stream(manifest, 0, pipeline.Share(BATCH, hosts, host), window=1)
    assert sum(1 for _ in stream.take(expected_records)) == expected_records
    return bytes_read() - before


if __name__ == "__main__":
    print(read_part(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
