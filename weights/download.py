"""Downloads a file with progress and a check, and continues after a cut connection."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.errors import InputError
from cli.progress import progress

ATTEMPTS = 3
SECONDS = 30
"""Seconds without an answer after which a connection counts as cut."""
_BLOCK = 1 << 20


def fetch(url: str, path: Path, checksum: str = "") -> None:
    """Downloads `url` to `path`, or does nothing where `path` is there and fits `checksum`.

    A cut connection or a killed run leaves `path`.part, and the next call goes on there.

    Args:
      url: address of the file.
      path: where the file belongs; its folder is made.
      checksum: ALGORITHM:HEXADECIMAL, with a name of `hashlib`; empty: not known.

    Raises:
      InputError: there is no network, the server has no such file, the connection was cut too
        often, or the checksum differs. The message says which file to put where by hand.
    """
    by_hand = f"or fetch {url} elsewhere and put it at {path}"
    if path.exists():
        require(
            path,
            checksum,
            f"{path} is damaged; delete it and run the same command again, {by_hand}",
        )
        return
    part = path.with_name(f"{path.name}.part")
    with _own(part):
        if path.exists():  # another process was faster
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _go_on(url, part)
                break
            except urllib.error.HTTPError as error:
                answer = f"the server answers {error.code} {error.reason}"
                raise InputError(f"{url}: {answer}; put the file at {path} by hand") from error
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                if attempt == ATTEMPTS:
                    why = getattr(error, "reason", None) or error
                    what = f"{url} cannot be downloaded ({why})"
                    raise InputError(
                        f"{what}; run the same command again to go on, {by_hand}"
                    ) from error
        try:
            require(
                part,
                checksum,
                f"{url} does not hold the expected file, so the download is deleted; try again, "
                f"{by_hand}",
            )
        except InputError:
            part.unlink()
            raise
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.rename(path)


@contextlib.contextmanager
def _own(part: Path) -> Iterator[None]:
    """Keeps other processes from the same download until this one has ended. Raises InputError."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(part.with_name(f".{part.name}.lock"), os.O_CREAT | os.O_WRONLY)
    except OSError as error:
        raise InputError(
            f"{part.parent} cannot be written ({error.strerror}); make it writable"
        ) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _go_on(url: str, part: Path) -> None:
    """Downloads what `part` still lacks. Raises OSError or HTTPException where it is cut."""
    held = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not held:
            raise
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if size == str(held):  # nothing was left to download
            return
        part.unlink()
        raise ConnectionError(
            "the file on the server has changed since the download began"
        ) from error
    with answer:
        goes_on = answer.status == http.client.PARTIAL_CONTENT
        rest = int(answer.headers.get("Content-Length") or 0)
        with open(part, "ab" if goes_on else "wb") as file:
            written = 0
            for block in progress(
                _blocks(answer), -(-rest // _BLOCK), f"download {url.rpartition('/')[2]} (MiB)"
            ):
                written += file.write(block)
    if rest and written < rest:
        raise ConnectionError(f"the connection was cut after {written:,} of {rest:,} bytes")


def _blocks(answer: Any) -> Iterator[bytes]:
    while block := answer.read(_BLOCK):
        yield block


def require(path: Path, checksum: str, otherwise: str) -> None:
    """Raises InputError with the text `otherwise` where a file has another checksum."""
    if not checksum:
        return
    algorithm, _, expected = checksum.partition(":")
    digest = (
        hashlib.new(algorithm, usedforsecurity=False)
        if algorithm == "md5"
        else hashlib.new(algorithm)
    )
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise InputError(f"{otherwise} ({algorithm} {digest.hexdigest()}, not {expected})")
