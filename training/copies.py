"""Copies of a model, one on each device, that share out the batches of a job.

Labeling, evaluating and predicting need no communication between devices. So each device holds the
whole model, and takes the next batch when it is free.

A batch does not depend on the number of devices, and neither do its answers. They are equal bit for
bit if the devices are of one kind.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Optional, TypeVar

import tensorflow as tf

Device = Optional[str]
"""Name of a device; None stands for TensorFlow's own choice."""
Item = TypeVar("Item")
Made = TypeVar("Made")
AHEAD = 2
"""Number of batches, for each place on a device, that wait or are being computed."""


def on_each(devices: Sequence[Device], make: Callable[[], Made]) -> list[tuple[Device, Made]]:
    """Returns (device, what `make` made there) for each device. `make` builds or loads a model."""
    made = []
    for device in devices:
        with on(device):
            made.append((device, make()))
    return made


def on(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which variables are made, and functions run, on `device`."""
    return tf.device(device) if device else contextlib.nullcontext()


class Copies:
    """A function on several devices.

    Attributes:
      places: number of calls that are answered at the same time.
    """

    def __init__(
        self, copies: Sequence[tuple[Device, Callable[..., Any]]], at_once: int = 1
    ) -> None:
        """Takes the function of each device.

        Args:
          copies: (device, the function with its variables there), as `on_each` returns them.
          at_once: number of calls that a device answers at the same time.
        """
        self.places = len(copies) * at_once
        self._free: queue.SimpleQueue[tuple[Device, Callable[..., Any]]] = queue.SimpleQueue()
        for _ in range(at_once):
            for copy in copies:
                self._free.put(copy)
        self._threads = ThreadPoolExecutor(self.places)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function on the first device that is free. Several threads may call."""
        device, function = self._free.get()
        try:
            with on(device):
                return function(*arguments)
        finally:
            self._free.put((device, function))

    def map(
        self, arguments: Callable[[Item], tuple[Any, ...]], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Any]]:
        """Yields each item with the function's answer to `arguments(item)`, in the items' order.

        An error that `items` raises comes after the answers to the items before. Several threads
        may iterate over their own maps: they share the devices.
        """
        iterator, failure = iter(items), None
        waiting: deque[tuple[Item, Future[Any]]] = deque()
        try:
            while True:
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                except Exception as error:
                    failure = error
                    break
                waiting.append((item, self._threads.submit(self, *arguments(item))))
                if len(waiting) >= AHEAD * self.places:
                    item, answer = waiting.popleft()
                    yield item, answer.result()
            while waiting:
                item, answer = waiting.popleft()
                yield item, answer.result()
            if failure is not None:
                raise failure
        finally:
            for _, answer in waiting:
                answer.cancel()

    def close(self) -> None:
        """Ends every map after the batches that are being computed."""
        self._threads.shutdown(wait=False, cancel_futures=True)
