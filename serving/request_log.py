"""Requests and answers on disk, in TF Serving's format.

The images in them are the next unlabeled pool.

    ./run_serve.sh --serving_dir=SERVING_DIR --local --log_requests=DIR
    ./run_tool.sh logged_images --logs=DIR --output=FOLDER

DIR gets TFRecord files of `tensorflow.serving.PredictionLog`, as TF Serving's request logging and
its warm-up files have them. A file appears when it is whole, so a killed server loses its last one.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from cli.errors import InputError
from cli.files import atomic_path
from serving import metrics
from serving.batching import Arrays
from serving.loading import Signature, array_of
from serving.memory import Memory
from serving.refused import Refused

FILE_BYTES = 64 * 2**20
"""Size from which a file is finished, and the next one begins."""
WAITING = 1000
"""Requests that may wait to be written. Any more are not logged, but counted."""
WAITING_BYTES = 256 * 2**20
"""Bytes of requests and answers that may wait to be written."""

_KINDS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"GI": "gif", b"BM": "bmp"}


class RequestLog:
    """Writes predict requests and their answers, in its own thread.

    Args:
      folder: folder of the files; made where it is missing.
      measured: metrics that count records.

    Raises:
      InputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, measured: metrics.Metrics):
        self._folder, self._metrics = folder, measured
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}.part"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"--log_requests: {folder} cannot be written to ({error.strerror}); name another"
                " directory"
            ) from error
        self._queue: queue.Queue[tuple[Signature, Arrays, Arrays] | None] = queue.Queue(WAITING)
        self._waiting = Memory(WAITING_BYTES)
        self._thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._thread.start()

    def add(self, signature: Signature, inputs: Arrays, outputs: Arrays) -> None:
        """Takes a request and its answer, and never waits."""
        size = _bytes(inputs, outputs)
        if self._waiting.take(size):
            try:
                self._queue.put_nowait((signature, inputs, outputs))
                return
            except queue.Full:
                self._waiting.give(size)
        self._metrics.count(metrics.LOGGED, signature.model, "RESOURCE_EXHAUSTED")

    def _next(self) -> tuple[Signature, Arrays, Arrays] | None:
        """Waits for the next request; None: the log ends."""
        item = self._queue.get()
        if item is not None:
            self._waiting.give(_bytes(*item[1:]))
        return item

    def close(self) -> None:
        """Writes what waits, and finishes the file."""
        self._queue.put(None)
        self._thread.join()

    def _write(self) -> None:
        item, number = self._next(), 0
        while item is not None:
            name = time.strftime(
                f"requests-%Y%m%d-%H%M%S-{os.getpid()}-{number:05d}.tfrecord", time.gmtime()
            )
            try:
                with atomic_path(self._folder / name) as part:
                    item = self._write_file(part, item)
            except (InputError, OSError, tf.errors.OpError) as error:
                print(
                    f"note: requests are not logged any more: {error}", file=sys.stderr, flush=True
                )
                while item is not None:
                    self._metrics.count(metrics.LOGGED, item[0].model, "UNAVAILABLE")
                    item = self._next()
            number += 1

    def _write_file(
        self, path: Path, item: tuple[Signature, Arrays, Arrays] | None
    ) -> tuple[Signature, Arrays, Arrays] | None:
        """Writes records until the file is large or the log ends; returns the next request."""
        size = 0
        with tf.io.TFRecordWriter(str(path)) as writer:
            while item is not None and size < FILE_BYTES:
                record = _record(*item)
                writer.write(record)
                size += len(record)
                self._metrics.count(metrics.LOGGED, item[0].model, "OK")
                item = self._next()
        return item


def _bytes(*arrays: Arrays) -> int:
    values = [value for one in arrays for value in one.values()]
    strings = (item for value in values if value.dtype == object for item in value.flat)
    return sum(value.nbytes for value in values) + sum(map(len, strings))


def _record(signature: Signature, inputs: Arrays, outputs: Arrays) -> bytes:
    log = prediction_log_pb2.PredictionLog()
    spec = log.predict_log.request.model_spec
    spec.name, spec.signature_name, spec.version.value = (
        signature.model,
        signature.name,
        signature.version,
    )
    log.log_metadata.model_spec.CopyFrom(spec)
    log.predict_log.response.model_spec.CopyFrom(spec)
    for arrays, message in (
        (inputs, log.predict_log.request.inputs),
        (outputs, log.predict_log.response.outputs),
    ):
        for name, value in arrays.items():
            message[name].CopyFrom(
                tf.make_tensor_proto(value, tf.string if value.dtype == object else None)
            )
    content: bytes = log.SerializeToString()
    return content


def images_main(logs: str, output: str) -> None:
    """Writes each image of the finished log files in `logs` into the folder `output`, once.

    Raises:
      InputError: see `collect`.
    """
    collect(logs, output)


def collect(logs: str, output: str) -> Counter[str]:
    """Writes each image of the finished log files in `logs` into the folder `output`, once.

    An image is named by its SHA-256, so the same command adds what is new. Content that is not an
    image by its first bytes is left out.

    Returns:
      How many times each image was sent, by its file's name.

    Raises:
      InputError: there are no log files, one is damaged, or `output` cannot be made.
    """
    files = sorted(Path(logs).glob("*.tfrecord"))
    if not files:
        raise InputError(
            f"--logs: {logs} holds no *.tfrecord; log requests with run_serve.sh --local"
            " --log_requests=DIR"
        )
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output: {folder} cannot be made ({error.strerror}); name another folder"
        ) from error
    counts: Counter[str] = Counter()
    requests = new = known = others = 0
    for file in files:
        for images in _logged(file):
            requests += 1
            for image in images:
                kind = _KINDS.get(image[:2])
                path = folder / f"{hashlib.sha256(image).hexdigest()}.{kind}"
                if kind is None:
                    others += 1
                    continue
                counts[path.name] += 1
                if path.exists():
                    known += 1
                else:
                    with atomic_path(path) as temporary:
                        temporary.write_bytes(image)
                    new += 1
    print(
        f"{requests} requests: {new} new images in {folder}, {known} that were there, {others} that"
        " are none"
    )
    return counts


def _logged(file: Path) -> list[list[bytes]]:
    """Returns the `image_bytes` of each request in a log file.

    Raises InputError where the file is damaged.
    """
    found = []
    try:
        for record in tf.data.TFRecordDataset(str(file)):
            request = prediction_log_pb2.PredictionLog.FromString(
                record.numpy()
            ).predict_log.request
            if "image_bytes" in request.inputs:
                found.append(
                    [
                        bytes(one)
                        for one in np.ravel(array_of(request.inputs["image_bytes"], "image_bytes"))
                    ]
                )
    except (tf.errors.OpError, DecodeError, Refused) as error:
        raise InputError(
            f"{file} is damaged ({' '.join(str(error).split())[:200]}); move it away"
        ) from error
    return found
