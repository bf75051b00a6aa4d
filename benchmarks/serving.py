"""What serving costs: decoding that forgives, and a server in front of a model, against the bare functions.

    ./run_benchmarks.sh serving [--model=SERVING_DIR] [--requests=10000] [--clients=16]

prints a JSON object a line (ratio > 1: better than the bare function), then one with latencies and memory. Without `--model`
an untrained EfficientNet-B0 at 32 pixels with 10 classes is exported first. Everything runs on this machine, over loopback;
the clients take their share of the same cores.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

# isort: split

import numpy as np
import PIL.Image
import tensorflow as tf

from benchmarks import report
from cli.errors import InputError
from cli.json_files import write_json
from cli.start import python_m
from data.preprocessing import Preprocessing, eval_image
from serving import export
from serving.images import prepare
from serving.versions import resolve
from training import model_dir
from training.model_dir import ModelSpec

BATCH = 32


def main(model: str | None = None, requests: int = 10_000, clients: int = 16) -> None:
    """Runs all of it, on the SERVING_DIR `model`. Raises InputError where there is none, or for too few requests."""
    if requests < 10:
        raise InputError(f"--requests is {requests}; they are sent in ten parts, so at least 10")
    with tempfile.TemporaryDirectory() as scratch:
        serving_dir = Path(model).resolve() if model else exported(Path(scratch))
        resolve(serving_dir)  # before the minutes that decoding takes
        image = picture(64, 48)
        decoding("serving/decode_jpeg_500x375", picture(500, 375))
        decoding("serving/decode_jpeg_64x48", image)
        bare = bare_rates(serving_dir, image, clients)
        for batching in (True, False):
            load(serving_dir, image, bare, requests, clients, batching)


def exported(folder: Path) -> Path:
    """A SERVING_DIR with an untrained model."""
    names = tuple(str(i) for i in range(10))
    spec = ModelSpec({"name": "b0", "width": 0.5, "depth": 0.5, "stem_stride": 1}, Preprocessing(image_size=32), names)
    model_dir.save(folder / "model", spec.build(), spec)
    write_json(folder / "summary.json", {})
    export.main(str(folder / "serving"), str(folder))
    return folder / "serving"


def picture(width: int, height: int) -> bytes:
    """A JPEG with the detail of a photograph."""
    rng = np.random.Generator(np.random.PCG64([width, height]))
    pixels = PIL.Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    file = io.BytesIO()
    pixels.resize((width, height), PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def rate(call: Callable[[], Any], images: int, seconds: float = 2.0) -> float:
    """Images a second: the median of three rounds."""
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
    """`serving.images.prepare` against the same preprocessing that fails with its first bad image."""
    preprocessing = Preprocessing(image_size=32, style="imagenet")
    spec, pixels = [tf.TensorSpec([None], tf.string)], tf.TensorSpec([32, 32, 3], tf.float32)

    @tf.function(input_signature=spec, autograph=False)
    def plain(encoded: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda one: eval_image(one, preprocessing), encoded, fn_output_signature=pixels)

    @tf.function(input_signature=spec, autograph=False)
    def forgiving(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return prepare(encoded, preprocessing)

    batch = tf.constant([image] * BATCH)
    ours, peer = rate(lambda: forgiving(batch), BATCH), rate(lambda: plain(batch), BATCH)
    report.line(name, ours, peer, "tf.map_fn of eval_image", goal=0.9, unit="images/s")


def bare_rates(serving_dir: Path, image: bytes, threads: int) -> dict[str, float]:
    """Images a second of the SavedModel itself: in batches, one at a time, and one at a time from many threads."""
    loaded = tf.saved_model.load(str(resolve(serving_dir)))
    serve = loaded.signatures["serving_default"]
    batch, one = tf.constant([image] * BATCH), tf.constant([image])
    rates = {"batches": rate(lambda: serve(image_bytes=batch), BATCH), "singly": rate(lambda: serve(image_bytes=one), 1)}
    count, until = [0] * threads, time.perf_counter() + 4.0

    def work(i: int) -> None:
        while time.perf_counter() < until:
            serve(image_bytes=one)
            count[i] += 1

    began = time.perf_counter()
    together([threading.Thread(target=work, args=(i,)) for i in range(threads)])
    return {**rates, "threads": sum(count) / (time.perf_counter() - began)}


def together(threads: Sequence[threading.Thread]) -> None:
    """Starts the threads and waits for them."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def load(serving_dir: Path, image: bytes, bare: dict[str, float], requests: int, clients: int, batching: bool) -> None:
    """Asks the server for development `requests` times from `clients` connections."""
    name = "serving/local_batching" if batching else "serving/local_nobatching"
    flags = [f"--serving_dir={serving_dir}", "--local", "--rest_port=0", "--grpc_port=0", *([] if batching else ["--nobatching"])]
    server = subprocess.Popen(python_m("cli", "serve", *flags), stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = urlsplit(re.findall(r"http://[^ ]+", server.stdout.readline())[0]).netloc
        ask(address, image, clients * 20, clients)  # warm
        memory, latencies, began = [_mib(server.pid)], [], time.perf_counter()
        for _ in range(10):
            latencies += ask(address, image, requests // 10, clients)
            memory.append(_mib(server.pid))
        seconds = time.perf_counter() - began
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
    ours, singly = len(latencies) / seconds, f"SavedModel one image at a time, {clients} threads"
    report.line(name, ours, bare["batches"], f"SavedModel in batches of {BATCH}", goal=0.5, unit="images/s")
    report.line(f"{name}_singly", ours, bare["threads"], singly, goal=1.0, unit="images/s")
    p50, p95, p99 = (round(1000 * float(np.percentile(latencies, p)), 1) for p in (50, 95, 99))
    detail = {
        "requests": len(latencies),
        "clients": clients,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "bare_singly": round(bare["singly"], 1),
    }
    print(json.dumps({"details": name, **detail, "resident_mib_after_each_tenth": memory}), flush=True)


def ask(address: str, image: bytes, requests: int, clients: int) -> list[float]:
    """The seconds that each request took."""
    body = json.dumps({"instances": [{"image_bytes": {"b64": base64.b64encode(image).decode()}}]})
    seconds: list[float] = []

    def work(share: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        for _ in range(share):
            began = time.perf_counter()
            connection.request("POST", "/v1/models/classifier:predict", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            seconds.append(time.perf_counter() - began)
            if response.status != 200 or answer["predictions"][0]["status"] != 0:
                raise RuntimeError(f"{response.status}: {answer}")
        connection.close()

    shares = [requests // clients + (i < requests % clients) for i in range(clients)]
    together([threading.Thread(target=work, args=(share,)) for share in shares])
    if len(seconds) != requests:
        raise RuntimeError(f"{len(seconds)} of {requests} requests were answered")
    return seconds


def _mib(pid: int) -> int:
    return round(1024 * report.memory(pid))
