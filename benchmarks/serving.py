"""Measures what serving costs: forgiving decoding, and the server against the bare graph.

    ./run_benchmarks.sh serving [--model=SERVING_DIR] [--requests=10000] [--clients=16] [--sweep]

prints a JSON object a line. The server is the development server. Its costs are CPU seconds an
image, which other work on the machine changes little. Bare graph and server take turns on the same
cores; the clients have the last core for themselves, where there are two or more. `--sweep` tries
other batching parameters. Without `--model` an untrained EfficientNet-B0 at 32 pixels with 10
classes is exported first.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import numpy as np
import PIL.Image
import tensorflow as tf

from benchmarks import report
from cli.errors import InputError
from cli.json_files import write_json
from cli.start import python_m
from data.preprocessing import Preprocessing, eval_image
from serving import BATCHING, export, metrics, settings
from serving.images import prepare
from training import model_dir
from training.model_dir import ModelSpec

BATCH = 32
ROUNDS = 5
GOAL = 1 / 1.7  # images a CPU second, server against bare graph
ALLOWED = "".join(f"allowed_batch_sizes: {size}\n" for size in settings.ALLOWED_BATCH_SIZES)
SWEEP = {
    f"{threads} threads, {micros} µs, {'padded' if allowed else 'not padded'}": (
        threads,
        micros,
        allowed,
    )
    for threads, micros, allowed in (
        (1, 0, ALLOWED),
        (1, 0, ""),
        (2, 0, ALLOWED),
        (4, 2000, ALLOWED),
    )
}
"""Batching parameters that `--sweep` tries, by their names in the results."""


def main(
    model: str | None = None,
    requests: int = 10_000,
    clients: int | None = None,
    sweep: bool = False,
) -> None:
    """Runs all of it, on the SERVING_DIR `model`.

    Raises:
      InputError: there is no model `classifier`, or there are too few requests.
    """
    counts = [clients] if clients else [16, 64]
    fewest = 2 * ROUNDS * max(counts)  # each connection's first request is timed apart
    if requests < fewest:
        raise InputError(
            f"--requests is {requests}; {max(counts)} clients send them in {ROUNDS} rounds, so at"
            f" least {fewest} are needed"
        )
    with tempfile.TemporaryDirectory() as scratch, pinned() as cores:
        folder = Path(scratch)
        serving_dir = Path(model).resolve() if model else exported(folder)
        served(serving_dir)  # before the minutes that decoding takes
        image = picture(64, 48)
        if sweep:
            for name, (threads, micros, allowed) in SWEEP.items():
                variant = with_batching(serving_dir, folder / "variant", threads, micros, allowed)
                load(variant, folder, image, requests, counts, cores, name)
            return
        decoding("serving/decode_jpeg_500x375", picture(500, 375))
        decoding("serving/decode_jpeg_64x48", image)
        apart("serving/decode_in_the_batch_500x375", serving_dir, picture(500, 375))
        apart("serving/decode_in_the_batch_64x48", serving_dir, image)
        load(serving_dir, folder, image, requests, counts, cores)


@contextlib.contextmanager
def pinned() -> Iterator[set[int] | None]:
    """Leaves the last core to the clients, and yields it; None where cores cannot be parted."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        yield None
        return
    before = os.sched_getaffinity(0)
    clients = {max(before)}
    os.sched_setaffinity(0, before - clients)  # before TensorFlow counts the cores
    try:
        yield clients
    finally:
        os.sched_setaffinity(0, before)


def with_batching(serving_dir: Path, folder: Path, threads: int, micros: int, allowed: str) -> Path:
    """Makes a copy of `serving_dir` with other batching parameters."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(serving_dir, folder)
    numbers = {
        "max_batch_size": BATCH,
        "batch_timeout_micros": micros,
        "num_batch_threads": threads,
        "max_enqueued_batches": 100,
    }
    text = "".join(f"{name} {{ value: {value} }}\n" for name, value in numbers.items())
    (folder / BATCHING).write_text(text + allowed, encoding="utf-8")
    return folder


def exported(folder: Path) -> Path:
    """Makes a SERVING_DIR with an untrained model."""
    names = tuple(str(i) for i in range(10))
    spec = ModelSpec(
        {"name": "b0", "width": 0.5, "depth": 0.5, "stem_stride": 1},
        Preprocessing(image_size=32),
        names,
    )
    model_dir.save(folder / "model", spec.build(), spec)
    write_json(folder / "summary.json", {})
    export.main(str(folder / "serving"), str(folder))
    return folder / "serving"


def served(serving_dir: Path) -> Path:
    """Returns the version that answers the clients. Raises InputError where there is none."""
    return serving_dir / export.NAME / str(settings.stable(serving_dir, export.NAME))


def picture(width: int, height: int) -> bytes:
    """Returns a JPEG with the detail of a photograph."""
    rng = np.random.Generator(np.random.PCG64([width, height]))
    pixels = PIL.Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    pixels.resize((width, height), PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def rate(call: Callable[[], Any], images: int, seconds: float = 2.0) -> float:
    """Returns images a second: the median of three rounds."""
    call()
    rounds = []
    for _ in range(3):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            call()
            count += images
        rounds.append(count / (time.perf_counter() - began))
    return float(np.median(rounds))


def decoding(name: str, image: bytes) -> None:
    """Compares `serving.images.prepare` with preprocessing that fails at its first bad image."""
    preprocessing = Preprocessing(image_size=32, style="imagenet")
    spec, pixels = [tf.TensorSpec([None], tf.string)], tf.TensorSpec([32, 32, 3], tf.float32)

    @tf.function(input_signature=spec, autograph=False)
    def plain(encoded: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda one: eval_image(one, preprocessing), encoded, fn_output_signature=pixels
        )

    @tf.function(input_signature=spec, autograph=False)
    def forgiving(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return prepare(encoded, preprocessing)

    batch = tf.constant([image] * BATCH)
    ours, peer = rate(lambda: forgiving(batch), BATCH), rate(lambda: plain(batch), BATCH)
    report.line(name, ours, peer, "tf.map_fn of eval_image", goal=0.9, unit="images/s")


def apart(name: str, serving_dir: Path, image: bytes) -> None:
    """Compares the graph in batches with decoding each image in a call of its own before the batch.

    The decoding is the graph's own function, and `predict_prepared` computes the batch.

    Raises:
      InputError: an old export without `predict_prepared`.
    """
    signatures = tf.saved_model.load(str(served(serving_dir))).signatures
    if "predict_prepared" not in signatures:
        raise InputError(f"{serving_dir} has no signature predict_prepared; export the model again")
    whole, network = signatures["serving_default"], signatures["predict_prepared"]
    size = network.structured_input_signature[1]["images"].shape[1]
    preprocessing, count = Preprocessing(image_size=size, style="imagenet"), BATCH // 2
    batch, single = tf.constant([image] * count), tf.constant([image])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return prepare(encoded, preprocessing)[0]

    def together() -> None:
        whole(image_bytes=batch)

    def alone() -> None:
        network(images=tf.constant(np.concatenate([decode(single) for _ in range(count)])))

    together()
    alone()
    found = report.interleaved(4 * ROUNDS, together=together, alone=alone)
    ours, peer = (count / found[way][1] for way in ("together", "alone"))
    report.line(name, ours, peer, "decoded one by one", goal=1, unit="images/CPU s", batch=count)


def load(
    serving_dir: Path,
    scratch: Path,
    image: bytes,
    requests: int,
    counts: list[int],
    cores: set[int] | None,
    variant: str = "shipped",
) -> None:
    """Measures the bare graph and the server under `counts` clients, in turns."""
    loaded = tf.saved_model.load(str(served(serving_dir)))
    serve = loaded.signatures["serving_default"]
    body = scratch / "body.json"
    body.write_text(
        json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}), encoding="utf-8"
    )
    share = requests // ROUNDS

    def bare(size: int) -> float:
        """Returns the CPU seconds an image of the graph in batches of `size`."""
        batch, began = tf.constant([image] * size), time.process_time()
        for _ in range(share // size + 1):
            serve(image_bytes=batch)
        return (time.process_time() - began) / size / (share // size + 1)

    with local(serving_dir) as (process, address, _):
        costs: dict[int, list[float]] = {count: [] for count in counts}
        first: dict[int, list[float]] = {count: [] for count in counts}
        seconds: dict[int, list[float]] = {count: [] for count in counts}
        sizes = {count: np.zeros(2) for count in counts}
        largest = {count: min(count, BATCH) for count in counts}  # batches that they can fill
        graph: dict[int, list[float]] = {size: [] for size in (BATCH, *largest.values())}
        memory = [_mib(process.pid)]
        bare(BATCH)
        for count in counts:
            ask(address, body, count * 5, count, cores)
        for _ in range(ROUNDS):
            for size, found in graph.items():
                found.append(bare(size))
            for count in counts:
                before, began = batches(address), cpu_seconds(process.pid)
                for one in ask(address, body, share, count, cores):
                    first[count] += one[:1]
                    seconds[count] += one[1:]
                costs[count].append((cpu_seconds(process.pid) - began) / share)
                sizes[count] += batches(address) - before
            memory.append(_mib(process.pid))
    for count in counts:
        p50, p99 = (1000 * float(np.percentile(seconds[count], p)) for p in (50, 99))
        ours, peer = 1 / float(np.median(costs[count])), 1 / float(np.median(graph[BATCH]))
        name, peer_name = f"serving/local_{count}_clients", f"SavedModel in batches of {BATCH}"
        notes = {
            "batching": variant,
            "cpu_ms_an_image": round(1000 / ours, 3),
            "bare_cpu_ms_an_image": round(1000 / peer, 3),
            f"bare_in_batches_of_{largest[count]}": round(
                1000 * float(np.median(graph[largest[count]])), 3
            ),
            "mean_batch": round(float(sizes[count][0] / max(sizes[count][1], 1)), 1),
            "requests": share * ROUNDS,
        }
        report.line(name, ours, peer, peer_name, goal=round(GOAL, 2), unit="images/CPU s", **notes)
        report.line(
            f"{name}_tail",
            p50,
            p99,
            "99 % of the requests",
            goal=0.5,
            unit="ms, half of the requests",
            batching=variant,
            median_of_first_requests=round(1000 * float(np.median(first[count])), 1),
            p99_with_first_requests=round(
                1000 * float(np.percentile(first[count] + seconds[count], 99)), 1
            ),
        )
    print(
        json.dumps({"details": "serving/local", "resident_mib_after_each_round": memory}),
        flush=True,
    )


@contextlib.contextmanager
def local(serving_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Starts the development server; yields it and its addresses HOST:PORT of REST and gRPC."""
    flags = [f"--serving_dir={serving_dir}", "--local", "--rest_port=0", "--grpc_port=0"]
    server = subprocess.Popen(python_m("cli", "serve", *flags), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        rest, grpc = re.findall(r"(?:http|grpc)://[^ ]+", server.stdout.readline())
        yield server, urlsplit(rest).netloc, urlsplit(grpc).netloc
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)


def ask(
    address: str, body: Path, requests: int, clients: int, cores: set[int] | None
) -> list[list[float]]:
    """Sends `requests` by `clients` connections from `cores`; returns the seconds of each one's."""
    host, port = address.rsplit(":", 1)
    command = python_m("benchmarks.clients", host, port, str(body), str(requests), str(clients))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if cores:
        os.sched_setaffinity(process.pid, cores)
    output = process.communicate(timeout=600)[0]
    if process.returncode:
        raise RuntimeError(f"the clients ended with {process.returncode}")
    seconds: list[list[float]] = json.loads(output)
    answered = sum(map(len, seconds))
    if answered != requests:
        raise RuntimeError(f"{answered} of {requests} requests were answered")
    return seconds


def batches(address: str) -> np.ndarray:
    """Returns the images in batches, and the batches, that the server has computed so far."""
    with urllib.request.urlopen(f"http://{address}{metrics.PATH}", timeout=60) as response:
        text = response.read().decode()
    found = [
        re.search(rf"^{metrics.BATCH}_{what}\S* (\S+)$", text, re.MULTILINE)
        for what in ("sum", "count")
    ]
    return np.array([float(match[1]) if match else 0.0 for match in found])


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds of a process so far, by /proc (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mib(pid: int) -> int:
    return round(1024 * report.memory(pid))
