"""Training's input from a bucket, against the same shards on the local disk.

    ./run_benchmarks.sh buckets [--images=1200]

The store is a process that answers as S3 does, 20 ms late, from files. The cache folder has room
for half of the shards, so each epoch fetches again. A window is an eighth of the images; the next
one is fetched while one is read. `batches` decodes and augments JPEG files of 500x375 pixels for
224 pixels. Both sides are read in turn, in one process; what they yield is compared first.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

# isort: split

import contextlib
import email.utils
import http.server
import multiprocessing
import os
import shutil
import tempfile
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks import report
from benchmarks.input_pipeline import BATCH, NOISE, consume, ours, photographs
from cli import buckets, shelf
from data import pipeline
from data.manifest import Manifest, read_manifest
from data.protos import make_example, parse_example
from data.records import write_split

LATENCY, SHARDS, WINDOWS, ROUNDS = 0.02, 16, 8, 3
"""Seconds before an answer; shards of the images; windows of an epoch; passes of each side."""


class Store(http.server.SimpleHTTPRequestHandler):
    """Lists and reads the files of the current directory as S3 does objects."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers after `LATENCY` seconds."""
        time.sleep(LATENCY)
        address = urllib.parse.urlsplit(self.path)
        prefix = urllib.parse.parse_qs(address.query).get("prefix", [""])[0]
        path = Path(urllib.parse.unquote(address.path).partition("/bucket")[2].lstrip("/"))
        if path.is_file():
            size, tag, modified = self._of(path)
            self._begin({"Content-Length": size, "ETag": tag, "Last-Modified": modified})
            with open(path, "rb") as file:
                self.connection.sendfile(file)
            return
        rows = [
            f"<Contents><Key>{escape(str(file))}</Key><Size>{file.stat().st_size}</Size>"
            f"<ETag>{escape(self._of(file)[1])}</ETag>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self._time(file)))}"
            "</LastModified></Contents>"
            for file in sorted(Path().rglob("*"))
            if file.is_file() and str(file).startswith(prefix)
        ]
        text = f"<ListBucketResult>{''.join(rows)}</ListBucketResult>".encode()
        self._begin({"Content-Length": len(text)})
        self.wfile.write(text)

    @staticmethod
    def _time(path: Path) -> int:
        return int(path.stat().st_mtime)

    def _of(self, path: Path) -> tuple[int, str, str]:
        tag = f'"{zlib.crc32(str(path).encode()):032x}"'
        return path.stat().st_size, tag, email.utils.formatdate(self._time(path), usegmt=True)

    def _begin(self, headers: dict[str, Any]) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def serve(directory: str, ports: Any) -> None:
    """Serves the files of a directory for ever; puts its port into the queue `ports`."""
    os.chdir(directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    ports.put(server.server_port)
    server.serve_forever()


@contextlib.contextmanager
def store(directory: Path) -> Iterator[None]:
    """Yields a store with the files of a directory, as the environment's endpoint."""
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve, args=(str(directory), ports), daemon=True)
    process.start()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{ports.get()}",
        AWS_ACCESS_KEY_ID="any",
        AWS_SECRET_ACCESS_KEY="any",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        yield
    finally:
        process.kill()
        process.join()


def stream(manifest: Manifest, epochs: int) -> Any:
    """Returns the serialized examples, one by one."""
    window = manifest.num_records // WINDOWS
    examples = pipeline.example_stream(manifest, 0, window=window)
    return pipeline.untuned(examples.take(epochs * manifest.num_records))


def batches(manifest: Manifest, epochs: int) -> Any:
    """Batches of a training."""
    prepare, window = ours(NOISE), manifest.num_records // WINDOWS
    return pipeline.prepared_batches(
        pipeline.example_stream(manifest, 0, window=window),
        lambda position, record: prepare(position, parse_example(record)["image/encoded"]),
        BATCH,
    ).take(epochs * manifest.num_records // BATCH)


def main(images: int = 1200) -> None:
    """Prints a line."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        files = enumerate(photographs(images))
        examples = (make_example(encoded, f"{i:012d}", i % 10) for i, encoded in files)
        names = tuple(map(str, range(10)))
        options: dict[str, Any] = {"kind": "labeled", "label_names": names}
        local = write_split(root / "there/data", "labeled", examples, SHARDS, images, **options)
        size = sum(Path(path).stat().st_size for path in local.paths)
        os.environ[buckets.CACHE] = str(root / "cache")
        os.environ[shelf.LIMIT] = str(size / 2 / 2**30)
        with store(root / "there"):
            path = buckets.local_path("s3://bucket/data")
            buckets.refresh(path, own=False)
            away = read_manifest(path)
            for one, other in zip(stream(local, 2), stream(away, 2)):
                assert one[1] == other[1], "the two sides differ"
            shutil.rmtree(path)
            buckets.refresh(path, own=False)
            work = {
                name: consume(batches(of, 2)) for name, of in (("local", local), ("ours", away))
            }
            times = report.interleaved(ROUNDS, **work)
    count = BATCH * (2 * images // BATCH - 1)
    (wall, cpu), (peer_wall, peer_cpu) = times["ours"], times["local"]
    report.line(
        "buckets/batches",
        count / wall,
        count / peer_wall,
        "local shards",
        goal=0.97,
        unit="images/s",
        ours_cpu_us=round(cpu / count * 1e6, 1),
        peer_cpu_us=round(peer_cpu / count * 1e6, 1),
        latency_ms=1000 * LATENCY,
    )
