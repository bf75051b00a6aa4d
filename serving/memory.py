"""Bounds the memory that all requests together take, over every connection and protocol."""

from __future__ import annotations

import threading

import grpc

from serving.refused import Refused

MAX_HELD = 512 * 2**20
"""Bytes of the requests that have arrived in part or whole and wait for their answers."""


class Memory:
    """Counts bytes that are held at a time. Safe to call from any thread.

    Args:
      most: bytes that may be held.
    """

    def __init__(self, most: int):
        self._most, self._held = most, 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Counts `size` more bytes, and returns whether there was room for them."""
        with self._lock:
            if self._held + size > self._most:
                return False
            self._held += size
            return True

    def give(self, size: int) -> None:
        """Counts `size` bytes less."""
        with self._lock:
            self._held -= size


class Share:
    """Bytes of one request, given back at the end of its block."""

    def __init__(self, memory: Memory):
        self._memory, self._size = memory, 0

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.give(self._size)

    def add(self, size: int) -> None:
        """Counts `size` more bytes. Raises Refused where all requests together hold too many."""
        if not self._memory.take(size):
            message = "the requests in flight hold too many bytes; ask again later"
            raise Refused(grpc.StatusCode.UNAVAILABLE, message)
        self._size += size
