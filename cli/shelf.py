"""Room for the shards in the cache folder: the shards that were read longest ago go first.

`BUCKET_CACHE_GIB` in the environment is the limit. Shards that a reader has just asked for stay,
even beyond the limit. Every shard here is in its bucket, too, so none is lost.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from cli.errors import InputError

LIMIT, DEFAULT_LIMIT = "BUCKET_CACHE_GIB", "50"
"""Environment variable with the limit, in GiB; its default."""
SHARD = re.compile(r"(?!.*\.data-\d).+-\d{5,}-of-\d{5,}(\.index)?")
"""Names of shards and of their indexes, which are not fetched before they are read. The files of
TensorFlow's checkpoints and SavedModels (`.data-00000-of-00001`) are none."""
_GROUPS = 4
"""The last groups of files that each reader asked for: read now, the next two, and on their way."""


def limit() -> float:
    """Returns the limit in bytes. Raises InputError where the variable holds no number above 0."""
    text = os.environ.get(LIMIT) or DEFAULT_LIMIT
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"{LIMIT} is {text!r} in the environment; it must be a number above 0")
    return number * 2**30


class Reader:
    """Whoever reads shards one after another: an input pipeline, or a thread."""


class Shelf:
    """The shards below one folder, for all threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: weakref.WeakKeyDictionary[Reader, deque[list[str]]] = (
            weakref.WeakKeyDictionary()
        )
        self._bytes: int | None = None

    def want(self, paths: list[str], reader: Reader) -> None:
        """Notes which files a reader is about to read; its last `_GROUPS` groups stay."""
        with self._lock:
            self._wanted.setdefault(reader, deque(maxlen=_GROUPS)).append(paths)

    def add(self, size: int, folder: str, coming: Iterable[str] = ()) -> None:
        """Counts `size` new bytes, and makes room where the limit is passed.

        Args:
          size: of a shard that came below `folder`.
          folder: where the shards are.
          coming: paths of files that are being fetched; they stay.
        """
        with self._lock:
            most = limit()
            if self._bytes is not None:
                self._bytes += size
                if self._bytes <= most:
                    return
            shards = sorted(_shards(folder))
            self._bytes = sum(size for _, _, size in shards)
            kept = {path for groups in self._wanted.values() for paths in groups for path in paths}
            kept.update(coming)
            for _, path, size in shards if self._bytes > most else ():
                if self._bytes > 0.9 * most and path not in kept:
                    Path(path).unlink(missing_ok=True)  # another process may have been faster
                    self._bytes -= size


def _shards(folder: str) -> Iterable[tuple[int, str, int]]:
    """Yields when each shard was last read, its path and its size."""
    for inner, _, names in os.walk(folder):
        for name in names:
            if SHARD.fullmatch(name):
                path = os.path.join(inner, name)
                with contextlib.suppress(FileNotFoundError):
                    state = os.stat(path)
                    yield state.st_atime_ns, path, state.st_size
