"""Computes requests together: while the model computes one batch, the next one collects.

A thread that is free takes everything that waits for one signature, up to `max_batch_size` rows.
So batches grow with the load, and a single request is computed at once. After a batch of several
requests their clients often ask again. The thread then waits as long as requests keep coming, at
most half the time that the batch took. (With `batch_timeout_micros` above 0 a batch that is not
full waits that long, as in TF Serving.)
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from cli.errors import InputError
from serving import metrics
from serving.refused import Refused

Arrays = dict[str, np.ndarray]

STEP = 0.003
"""Seconds without a new request after which no more are expected from the clients of a batch."""


def parameters(path: Path) -> dict[str, Any]:
    """Reads the numbers of `batching_parameters.txt`.

    The message itself is not part of tensorflow-serving-api; these fields are all that its text
    needs.

    Returns:
      `num_batch_threads`, `max_batch_size`, `batch_timeout_micros`, `max_enqueued_batches` as int,
      and the list `allowed_batch_sizes`, which may be empty.

    Raises:
      InputError: there is no such file, or it lacks one of the numbers.
    """
    try:
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; make it with run_export.sh") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text; mend it, or delete it and export again"
        ) from error
    number = r"(\d{1,18})\b"  # TensorFlow takes no number with more digits
    found = re.findall(rf"(\w+)\s*\{{\s*value\s*:\s*{number}\s*\}}", text)
    numbers = {name: int(value) for name, value in found}
    try:
        names = (
            "num_batch_threads",
            "max_batch_size",
            "batch_timeout_micros",
            "max_enqueued_batches",
        )
        values: dict[str, Any] = {name: numbers[name] for name in names}
    except KeyError as error:
        raise InputError(
            f"{path} does not say {error.args[0]}; mend it, or delete it and export again"
        ) from error
    for name in ("num_batch_threads", "max_batch_size", "max_enqueued_batches"):
        if values[name] < 1:
            raise InputError(f"{path} says {name} is {values[name]}; it must be at least 1")
    allowed = re.findall(rf"allowed_batch_sizes\s*:\s*{number}", text)
    return {**values, "allowed_batch_sizes": [int(value) for value in allowed]}


class Work(NamedTuple):
    """Description of requests of one kind, which may be computed together.

    Attributes:
      model, signature: names for the metrics.
      compute: arrays by input's name -> arrays by output's name. Each row of the outputs belongs to
        the same row of the inputs.
    """

    model: str
    signature: str
    compute: Callable[[Arrays], Arrays]


class _Request(NamedTuple):
    inputs: Arrays
    rows: int  # 0: without rows that could be joined with others
    arrived: float  # of time.monotonic
    answer: Future[Arrays]


class _Queue(NamedTuple):
    work: Work
    requests: deque[_Request]


class Scheduler:
    """Computes requests in batches, in its own threads.

    Args:
      numbers: as `parameters` reads them; None: each request is computed by itself.
      measured: metrics that count sizes and times.
    """

    def __init__(self, numbers: dict[str, Any] | None, measured: metrics.Metrics):
        alone: dict[str, Any] = {
            "num_batch_threads": os.cpu_count() or 1,
            "max_enqueued_batches": 1000,
        }
        self._most: int | None = numbers["max_batch_size"] if numbers else None
        numbers = numbers or alone
        self._threads_wanted: int = numbers["num_batch_threads"]
        self._limit: int = numbers["max_enqueued_batches"] * (self._most or 1)
        self._patience: float = numbers.get("batch_timeout_micros", 0) / 1e6
        self._allowed: list[int] = sorted(numbers.get("allowed_batch_sizes", []))
        self._metrics = measured
        self._waiting: dict[Any, _Queue] = {}  # by what may be computed together; the oldest first
        self._rows = 0  # of all requests that wait
        self._submitted = 0  # requests so far
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    def submit(self, work: Work, inputs: Arrays) -> Future[Arrays]:
        """Returns the future answer to `inputs`.

        Raises:
          Refused: the request has more rows than a batch may hold, or too many batches wait.
        """
        sizes = {value.shape[0] if value.ndim else None for value in inputs.values()}
        rows = (sizes.pop() if len(sizes) == 1 else 0) or 0
        if self._most and rows > self._most:
            message = (
                f"the request has {rows} rows; at most {self._most} are accepted in one request"
            )
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        request = _Request(inputs, rows, time.monotonic(), Future())
        # Nobody may cancel it: other requests share its batch.
        request.answer.set_running_or_notify_cancel()
        key: Any = object()
        if self._most and rows:
            key = (work, *(value.shape[1:] for value in inputs.values()))
        with self._changed:
            if self._rows + rows > self._limit:
                message = f"{self._rows} images wait already; ask again later"
                raise Refused(grpc.StatusCode.UNAVAILABLE, message)
            self._rows += rows
            self._submitted += 1
            self._waiting.setdefault(key, _Queue(work, deque())).requests.append(request)
            if len(self._threads) < self._threads_wanted:
                name = f"batches-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
                self._threads[-1].start()
            self._changed.notify()
        return request.answer

    def _serve(self) -> None:
        while True:
            work, batch = self._take()
            began = time.monotonic()
            self._compute(work, batch)
            together = len(batch) > 1
            # A version that is dropped must not stay in memory until the next request.
            del (
                work,
                batch,
            )
            if together:
                self._settle((time.monotonic() - began) / 2)

    def _settle(self, seconds: float) -> None:
        """Waits while requests keep coming, for at most `seconds`, or until they fill a batch."""
        until = time.monotonic() + seconds
        before = -1
        while (
            self._submitted != before
            and self._rows < (self._most or 1)
            and time.monotonic() < until
        ):
            before = self._submitted
            time.sleep(STEP)

    def _take(self) -> tuple[Work, list[_Request]]:
        """Waits for requests, and returns those of the next batch."""
        with self._changed:
            while True:
                now, first = time.monotonic(), None
                for key, queue in self._waiting.items():
                    ready = queue.requests[0].arrived + self._patience
                    full = sum(request.rows for request in queue.requests) >= (self._most or 1)
                    if ready <= now or full:
                        return queue.work, self._pop(key)
                    first = min(first or ready, ready)
                self._changed.wait(None if first is None else first - now)

    def _pop(self, key: Any) -> list[_Request]:
        queue = self._waiting.pop(key)
        batch = [queue.requests.popleft()]
        rows = batch[0].rows
        while queue.requests and rows + queue.requests[0].rows <= (self._most or 1):
            batch.append(queue.requests.popleft())
            rows += batch[-1].rows
        self._rows -= rows
        if queue.requests:  # behind the others, so that no kind of request starves
            self._waiting[key] = queue
            self._changed.notify()
        return batch

    def _compute(self, work: Work, batch: Sequence[_Request]) -> None:
        rows = sum(request.rows for request in batch)
        began = time.monotonic()
        try:
            if len(batch) == 1 and (not rows or rows in self._allowed or not self._allowed):
                size, answers = rows, [work.compute(batch[0].inputs)]
            else:
                size = next((size for size in self._allowed if size >= rows), rows)
                answers = _together(work, batch, size)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            # One faulty request fails the whole batch. Computed alone, only that one fails.
            for request in batch:
                self._compute(work, [request])
            return
        self._measure(work, batch, rows, size, began)
        for request, answer in zip(batch, answers):
            request.answer.set_result(answer)

    def _measure(
        self, work: Work, batch: Sequence[_Request], rows: int, size: int, began: float
    ) -> None:
        name, microseconds = (work.model, work.signature), 1e6 * (time.monotonic() - began)
        self._metrics.observe(metrics.RUNTIME, microseconds, work.model, "Predict", "TF2")
        if self._most is None:
            return
        self._metrics.observe(metrics.BATCH, rows, *name)
        self._metrics.count(metrics.PROCESSED, *name, str(size))
        for request in batch:
            delay = 1e6 * (began - request.arrived)
            self._metrics.observe(metrics.DELAY, delay, *name, str(size))


def _together(work: Work, batch: Sequence[_Request], size: int) -> list[Arrays]:
    """Returns the answer to each request of a batch that is filled up to `size` rows.

    Raises:
      ValueError: an output does not have a row for each row of the inputs.
    """
    rows = sum(request.rows for request in batch)
    inputs = {}
    for name in batch[0].inputs:
        parts = [request.inputs[name] for request in batch]
        if size > rows:
            parts.append(np.repeat(parts[-1][-1:], size - rows, axis=0))
        inputs[name] = np.concatenate(parts)
    outputs = work.compute(inputs)
    if any(value.shape[:1] != (size,) for value in outputs.values()):
        if len(batch) == 1:
            return [work.compute(batch[0].inputs)]
        raise ValueError("an output without a row for each input")
    answers, start = [], 0
    for request in batch:
        answers.append(
            {name: value[start : start + request.rows] for name, value in outputs.items()}
        )
        start += request.rows
    return answers
