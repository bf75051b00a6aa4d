"""The claim of a work directory in a bucket: one command at a time works there."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from cli import stores
from cli.errors import InputError
from cli.objects import Place
from cli.stores import CLAIM

TOKEN = "BUCKET_CLAIM"
"""Environment variable by which the stages of a run know its claim: JSON, [scheme, bucket, key,
token]."""
_CHECK_EVERY = 10.0
"""Seconds for which a claim counts as held after it was seen."""


@contextlib.contextmanager
def claimed(folder: Place, force: bool) -> Iterator[None]:
    """Claims a folder for this process and its child processes, by one conditional put.

    A claim that a process of this machine has left, and that is gone, is taken over. So is any
    other with `force`.

    Raises:
      InputError: another process has it.
    """
    place, token = folder.below(CLAIM), uuid.uuid4().hex
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = json.dumps({**_me(), "since": now, "token": token}).encode()
    if not stores.put_if(place, content):
        holder, tag = _read(place)
        free = force or _is_gone(holder) or holder.get("token") == token  # an answer was lost
        if not free or not stores.put_if(place, content, tag):
            raise InputError(
                f"--workdir: {holder.get('host')}, process {holder.get('pid')}, has been at work in"
                f" {folder.url} since {holder.get('since')}; wait until it ends, or, if it is dead,"
                " add --force"
            )
    if stores.put_if(place, content):
        stores.delete(place)
        raise InputError(
            f"--workdir: the store of {folder.url} ignores the conditions of puts, so two commands"
            " could work in one directory; mount the bucket, and give the path"
        )
    os.environ[TOKEN] = json.dumps([*place, token])
    _seen.clear()
    try:
        yield
    finally:
        del os.environ[TOKEN]
        with contextlib.suppress(InputError):  # the next one finds this process gone
            if _read(place)[0].get("token") == token:
                stores.delete(place)


def _read(place: Place) -> tuple[dict[str, Any], str]:
    """Returns what a claim says, and its tag; nothing where there is none."""
    try:
        content, tag = stores.read(place)
        claim = json.loads(content)
    except FileNotFoundError:
        return {}, ""
    except ValueError:
        return {}, tag
    return (claim if isinstance(claim, dict) else {}), tag


_seen: dict[str, float] = {}
"""Claim -> when this process last saw that it is its own."""
_seeing = threading.Lock()


def require_claim() -> None:
    """Raises InputError where another command has taken over the work directory of this run."""
    own_token = os.environ.get(TOKEN)
    if not own_token:
        return
    with _seeing:
        if time.monotonic() - _seen.get(own_token, -_CHECK_EVERY) < _CHECK_EVERY:
            return
        *names, token = json.loads(own_token)
        place = Place(*names)
        holder = _read(place)[0]
        if holder.get("token") != token:
            raise InputError(
                f"{os.path.dirname(place.url)} has been taken over by"
                f" {holder.get('host', 'somebody')}; this run ends"
            )
        _seen[own_token] = time.monotonic()


def _me() -> dict[str, Any]:
    """Says which process this is, so that another one of the machine can tell whether it lives."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "kernel": _kernel(),
        "began": _began(os.getpid()),
    }


def _kernel() -> str:
    """Names the running system and its numbering of processes; "" where it has no such names."""
    with (
        contextlib.suppress(OSError),
        open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as f,
    ):
        return f"{f.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _began(pid: int) -> str:
    """Returns when a process began, in the kernel's ticks; "" without such a process."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        return f.read().rpartition(")")[2].split()[19]
    return ""


def _is_gone(holder: Mapping[str, Any]) -> bool:
    """Tells whether a claim's process ran on this machine and does not run any more."""
    here = bool(_kernel()) and holder.get("kernel") == _kernel()
    if not here or not isinstance(holder.get("pid"), int):
        return not holder  # a claim that was removed meanwhile
    return _began(holder["pid"]) != holder.get("began")
