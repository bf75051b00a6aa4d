"""Progress of a long loop: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0

T = TypeVar("T")


def progress(iterable: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields the items of `iterable` and shows on stderr how many of `total` are done.

    Args:
      iterable: the work.
      total: how many items it has.
      what: a word or two for the reader, such as "check images".
    """
    if sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=what, unit="", smoothing=0.1)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            rate = done / (now - started)
            print(
                f"{what}: {done:,} of {total:,}, {rate:,.0f} a second,"
                f" {(total - done) / rate:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
