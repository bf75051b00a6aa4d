"""Checks the development server while its models change: no answer wrong or lost, memory flat.

    ./run_benchmarks.sh rollover [--requests=10000] [--clients=16] [--image_size=32]

Clients send mixed requests: REST and gRPC, good and bad, huge, compressed, in chunks. Meanwhile a
new version appears, is promoted and rolled back, a damaged version appears and is mended. In the
second half nothing changes. At the end the server gets SIGTERM while the clients go on. Each answer
must be that of a version that may answer at the time. Prints JSON lines, and fails where an answer
is wrong or lost. The models are untrained EfficientNets; from 64 pixels on it is B0 itself.
"""

from __future__ import annotations

import collections
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)

# isort: split

import numpy as np
import PIL.Image
import tensorflow as tf

from benchmarks import report
from benchmarks.mixed_requests import (
    CANARY,
    PIXELS,
    STABLE,
    Allowed,
    Client,
    Expected,
    Refusal,
    Unsent,
    Wrong,
    why_not_taken,
)
from benchmarks.serving import cpu_seconds, local, picture
from cli.json_files import write_json
from cli.start import python_m
from data.preprocessing import Preprocessing
from serving import export, settings
from serving.images import MAX_PIXELS
from serving.versions import SAVED_MODEL
from training import model_dir
from training.model_dir import ModelSpec

CLIENTS = 16
VERSIONS = 3
PATIENCE = 60.0
"""Seconds for the server to follow a change."""


def main(requests: int = 10_000, clients: int = CLIENTS, image_size: int = 32) -> None:
    """Runs the check; see the module.

    Raises:
      RuntimeError: an answer that is wrong or lost, a server that does not follow, or one that
        does not end with 0.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        staged = [exported(folder, number, image_size) for number in range(1, VERSIONS + 1)]
        data = folder / "data"
        digits = ["--config=configs/noisy_student/digits.py", f"--workdir={data}"]
        command("prepare_data", *digits)
        expected = answers(staged)
        serving_dir = folder / "serving"
        publish(serving_dir, staged[0])
        with local(serving_dir) as (process, address, grpc_address):
            run = Run(process, address, grpc_address, expected, requests, clients)
            changes = changes_of(run, serving_dir, data, staged)
            run.play(changes)
        run.tell(image_size)


class Run:
    """The clients, what they found, and the server's memory.

    Attributes:
      allowed: versions that may answer.
    """

    def __init__(
        self,
        process: subprocess.Popen[str],
        address: str,
        grpc_address: str,
        expected: Expected,
        requests: int,
        clients: int,
    ):
        self.allowed = Allowed()
        self._process, self._requests = process, requests
        self._clients = [
            Client(address, grpc_address, expected, self.allowed, seed) for seed in range(clients)
        ]
        self._watcher = Client(address, grpc_address, expected, self.allowed, -1)
        self._answered: collections.Counter[str] = collections.Counter()
        self._wrong: list[str] = []
        self._refused: collections.Counter[str] = collections.Counter()
        self._memory: dict[str, int] = {}
        self._stopping = threading.Event()
        self._code: int | None = None
        self._cpu_seconds = 0.0

    def play(self, changes: dict[str, Callable[[], None]]) -> None:
        """Makes the changes in the first half of the requests, and stops the server at the end."""
        threads = [threading.Thread(target=self._ask, args=(one,)) for one in self._clients]
        began = cpu_seconds(self._process.pid)
        for thread in threads:
            thread.start()
        try:
            for i, (name, change) in enumerate(changes.items(), start=1):
                self._wait(self._requests * i // (2 * len(changes) + 2))
                self._memory.setdefault("before the changes", self._mib())
                change()
                self._memory[f"after: {name}"] = self._mib()
            for tenths in range(6, 10):
                self._wait(self._requests * tenths // 10)
                self._memory[f"after {tenths} tenths"] = self._mib()
            self._wait(self._requests)
            self._memory["at the end"] = self._mib()
            self._cpu_seconds = cpu_seconds(self._process.pid) - began
            self._memory["at most"] = round(1024 * report.memory(self._process.pid, "VmHWM"))
        finally:
            self._stopping.set()
            self._process.send_signal(signal.SIGTERM)
            self._code = self._process.wait(timeout=60)
            for thread in threads:
                thread.join()

    def follow(self, name: str, version: int) -> None:
        """Waits until the server answers with a version, and then allows no other one."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                if self._watcher.version(name) == version:
                    break
            except Refusal as error:
                found = str(error)
            else:
                found = "another version answers"
            if time.monotonic() > until:
                raise RuntimeError(f"{name} does not become version {version}: {found}")
            time.sleep(0.1)
        self.allowed.narrow(name, version)

    def tell(self, image_size: int) -> None:
        """Prints what was found. Raises RuntimeError where something is wrong or lost."""
        print(
            json.dumps(
                {
                    "details": "serving/rollover",
                    "image_size": image_size,
                    "clients": len(self._clients),
                    "answered": sum(self._answered.values()),
                    "cpu_ms_a_request": round(1000 * self._cpu_seconds / self._requests, 1),
                    "by_kind": dict(sorted(self._answered.items())),
                    "wrong_or_lost": len(self._wrong),
                    "refused_in_the_stop": dict(self._refused),
                    "exit_code": self._code,
                    "resident_mib": self._memory,
                }
            ),
            flush=True,
        )
        if self._wrong or self._code:
            raise RuntimeError("; ".join([*self._wrong[:10], f"exit code {self._code}"]))
        before, after = self._memory["after 6 tenths"], self._memory["at the end"]
        name, peer = "serving/rollover_memory", "after six tenths of the requests"
        report.line(name, 1024 / after, 1024 / before, peer, goal=0.95, unit="1 / GiB resident")

    def _mib(self) -> int:
        return round(1024 * report.memory(self._process.pid))

    def _wait(self, answered: int) -> None:
        while sum(self._answered.values()) < answered:
            if self._wrong or self._process.poll() is not None:
                raise RuntimeError(f"the server fails: {self._wrong[:10]}")
            time.sleep(0.05)

    def _ask(self, client: Client) -> None:
        """Asks until the server has gone."""
        while True:
            stopping = self._stopping.is_set()
            try:
                self._answered[client.ask()] += 1
                continue
            except (Refusal, Unsent, OSError, http.client.HTTPException) as error:
                reason, known = f"{type(error).__name__}: {error}", why_not_taken(error)
                # A stop may begin while the request is under way.
                stopping = stopping or self._stopping.wait(5)
            except Wrong as error:
                reason, known = f"wrong: {error}", None
            except Exception as error:  # a bug here must not look like a server without faults
                reason, known = f"{type(error).__name__}: {error}", None
            if stopping and known:
                self._refused[known] += 1
            else:
                self._wrong.append(reason[:300])
            client.close()
            return


def changes_of(
    run: Run, serving_dir: Path, data: Path, staged: list[Path]
) -> dict[str, Callable[[], None]]:
    """Returns what happens to the models, in its order."""

    def appear() -> None:
        publish(serving_dir, staged[1])  # until the server follows, nobody asks for the name
        run.follow(CANARY, 2)

    def promote() -> None:
        run.allowed.widen(STABLE, 2)
        limits = ["--drop=100", "--agreement=0.001", "--slower=1000"]
        command("tool", "promote", f"--serving_dir={serving_dir}", f"--data={data}", *limits)
        run.follow(STABLE, 2)

    def roll_back() -> None:
        run.allowed.widen(STABLE, 1)
        command("tool", "rollback", f"--serving_dir={serving_dir}")
        run.follow(STABLE, 1)

    def damage() -> None:
        publish(serving_dir, staged[2], damaged=True)
        time.sleep(3)  # the server looks each second; the canary stays what it is

    def mend() -> None:
        run.allowed.widen(CANARY, 3)
        file = serving_dir / export.NAME / "3" / SAVED_MODEL
        shutil.copy(staged[2] / SAVED_MODEL, file.with_name(".whole"))
        os.replace(file.with_name(".whole"), file)
        run.follow(CANARY, 3)

    return {
        "version 2 as canary": appear,
        "promotion": promote,
        "rollback": roll_back,
        "damaged version 3": damage,
        "version 3 mended": mend,
    }


def exported(folder: Path, number: int, image_size: int) -> Path:
    """Exports an untrained model with its own seed, and returns the version's directory."""
    names = tuple(str(i) for i in range(10))
    small = {"width": 0.5, "depth": 0.5, "stem_stride": 1} if image_size < 64 else {}
    spec = ModelSpec({"name": "b0", **small}, Preprocessing(image_size=image_size), names)
    training = folder / f"model_{number}"
    model_dir.save(training / "model", varied(spec, number), spec)
    write_json(training / "summary.json", {})
    export.main(str(folder / f"export_{number}"), str(training))
    return folder / f"export_{number}" / export.NAME / "1"


def varied(spec: ModelSpec, seed: int) -> tf.keras.Model:
    """Builds a model with answers that depend on the image, and a little on the seed."""
    model, rng = spec.build(0), np.random.Generator(np.random.PCG64(0))
    size = spec.preprocessing.image_size
    images = tf.image.resize(rng.uniform(0, 255, (16, 4, 4, 3)), [size, size])
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.3
    for _ in range(6):
        model(images, training=True)
    logits, classifier = model(images, training=False).numpy(), model.get_layer("predictions")
    scale = 0.5 / logits.std(axis=0)  # more would magnify the rounding, too
    own = np.random.Generator(np.random.PCG64(seed)).normal(0, 0.1, spec.num_classes)
    classifier.set_weights([classifier.kernel * scale, own - logits.mean(axis=0) * scale])
    return model


def answers(staged: list[Path]) -> Expected:
    """Asks each version's graph about all images."""
    side = int(MAX_PIXELS**0.5)
    file = io.BytesIO()
    ramp = np.broadcast_to(np.linspace(0, 255, side, dtype=np.uint8), (side, side))
    PIL.Image.fromarray(ramp).convert("CMYK").save(file, "JPEG", progressive=True)
    good = [
        picture(width, height) for width, height in ((64, 48), (300, 200), (500, 375), (33, 90))
    ]
    images = [*good, b"no image", bomb(good[0]), good[1][:500], file.getvalue()]
    found = {}
    for number, path in enumerate(staged, start=1):
        signatures = tf.saved_model.load(str(path)).signatures
        given = {
            name: {"image_bytes": tf.constant(images)} for name in ("serving_default", "embed")
        }
        given["predict_images_uint8"] = {"images": tf.constant(PIXELS)}
        found[number] = {
            name: {key: value.numpy() for key, value in signatures[name](**inputs).items()}
            for name, inputs in given.items()
        }
        for outputs in found[number].values():
            for key in ("classes", "labels"):  # two classes of one probability may change places
                outputs.pop(key, None)
    return Expected(images, len(images) - 1, found)


def bomb(jpeg: bytes) -> bytes:
    """Returns a JPEG that declares 100 million pixels."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + (9999).to_bytes(2, "big") + (10000).to_bytes(2, "big") + jpeg[start + 4 :]


def publish(serving_dir: Path, version: Path, damaged: bool = False) -> None:
    """Puts a version beside its place, renames it and writes the settings, as an export does."""
    folder = serving_dir / export.NAME
    folder.mkdir(parents=True, exist_ok=True)
    number, temporary = 1 + sum(path.name.isdecimal() for path in folder.iterdir()), folder / ".new"
    shutil.copytree(version, temporary)
    if damaged:
        content = (temporary / SAVED_MODEL).read_bytes()
        (temporary / SAVED_MODEL).write_bytes(content[: len(content) // 2])
    os.replace(temporary, folder / str(number))
    settings.write(serving_dir, export.NAME)


def command(*arguments: str) -> None:
    """Runs a command of the project. Raises RuntimeError where it fails."""
    done = subprocess.run(python_m("cli", *arguments), capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]}: {done.stderr[-500:]}")
