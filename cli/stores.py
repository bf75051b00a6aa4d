"""Objects of a store, whole: list, get, put, delete.

A request that the server or the network fails is repeated, with growing pauses. Objects are put
and got whole, so that a repeated request changes nothing. `cli.s3` and `cli.gcs` make the requests.
No message holds what a server says beyond its error code.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from cli.errors import InputError
from cli.objects import ConditionFailed, Object, Place, Store, no_bucket

T = TypeVar("T")
ATTEMPTS = 7
"""Times that a request is made; the pauses between them come to about 13 s."""
CLAIM = ".claim.json"
"""Object in a work directory that says who works in it, see `cli.claims`."""


@functools.cache
def _store(scheme: str) -> Store:
    if scheme == "gs":
        from cli.gcs import GoogleCloudStorage

        return GoogleCloudStorage()
    from cli.s3 import S3

    return S3()


def _again(place: Place, act: Callable[[Store], T]) -> T:
    """Calls `act` until the store answers.

    Raises:
      FileNotFoundError: there is no such object.
      InputError: no such bucket, no permission, or no answer after `ATTEMPTS` attempts.
    """
    store = _store(place.scheme)
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(attempt)
        try:
            return act(store)
        except InputError:
            raise
        except Exception as error:
            problem = store.judge(place, error)
    raise InputError(
        f"{place.url}: {store.endpoint()} gives no answer after {ATTEMPTS} attempts ({problem});"
        " run the same command again when it does"
    )


def pause(attempt: int) -> None:
    """Waits before a request is made for the `attempt`-th time again."""
    time.sleep(min(4.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))


def find(place: Place) -> dict[str, Object]:
    """Lists the objects whose keys begin with the place's, by key, without claims.

    Raises:
      InputError: no such bucket, no permission, or no answer.
    """
    found: dict[str, Object] = {}
    after = ""
    while True:
        try:
            page, after = _page(place, after)
        except FileNotFoundError as error:
            raise no_bucket(place) from error
        found |= page
        if not after:
            return {key: it for key, it in found.items() if os.path.basename(key) != CLAIM}


def _page(place: Place, after: str) -> tuple[dict[str, Object], str]:
    return _again(place, lambda store: store.page(place, after))


def look(place: Place) -> Object | None:
    """Returns what the store says of one object; None where there is none. Raises InputError."""
    try:
        return _again(place, lambda store: store.look(place))
    except FileNotFoundError:
        return None


def get_file(place: Place, path: str) -> Object:
    """Writes an object to the file `path`. Raises FileNotFoundError, InputError or OSError."""
    return _again(place, lambda store: store.get(place, path))


def read(place: Place) -> tuple[bytes, str]:
    """Returns an object's content and tag. Raises FileNotFoundError or InputError."""
    return _again(place, lambda store: store.read(place))


def put_file(place: Place, path: str) -> Object:
    """Sends the file `path` as a whole object, and compares size and content with what arrived.

    Raises:
      InputError: the store does not take it.
      OSError: the file cannot be read.
    """
    return _again(place, lambda store: store.put(place, path))


def put_if(place: Place, content: bytes, tag: str = "") -> bool:
    """Replaces the object that has this tag; "": puts it only where there is none.

    Returns:
      Whether the condition held. An attempt whose answer got lost may have put the object already.

    Raises:
      InputError: the store does not take it.
    """
    with contextlib.suppress(ConditionFailed):
        _again(place, lambda store: store.put_if(place, content, tag))
        return True
    return False


def delete(place: Place) -> None:
    """Removes an object where there is one. Raises InputError."""
    with contextlib.suppress(FileNotFoundError):
        _again(place, lambda store: store.delete(place))
