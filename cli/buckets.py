"""Directories in a bucket: a cache folder holds local copies of what is in use.

    s3://BUCKET/KEY  <->  $BUCKET_CACHE/s3/BUCKET/KEY
    gs://BUCKET/KEY  <->  $BUCKET_CACHE/gs/BUCKET/KEY

Stages see the local paths alone. A file that is published below the cache folder goes to the
bucket first and gets its local name last. So the bucket has every file with a final name. A store
shows an object whole or not at all. So a bucket always looks as a local directory did at some
moment.

A local copy has a modification time that is made of the object's time and tag. A copy with
another time is outdated. Shards are fetched when they are read, see `cli.shelf`.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cli import claims, stores
from cli.errors import InputError, write_failure
from cli.objects import SCHEMES, Object, Place
from cli.shelf import SHARD, Reader, Shelf

CACHE, DEFAULT_CACHE = "BUCKET_CACHE", "~/.cache/noisy_student/buckets"
"""Environment variable that names the cache folder; its default."""
THREADS = 16
"""Objects that are fetched or sent at the same time."""
MARKS = (
    *("checkpoint", "config.json", "model.json", "export.json", "manifest.json"),
    *("saved_model.pb", "summary.json"),
)
"""Names of files that say that others are there: sent last and in this order, removed first."""
_TRIES = 3
"""Times that a shard is looked for in its bucket."""
_PASSING = re.compile(r"\..*\.tmp(-.*)?|.*_temp|.*\.part|.*\.lock")
"""Names of files and folders that a stage is still writing."""


def cache() -> str:
    """Returns the cache folder, without symbolic links."""
    return _real(os.environ.get(CACHE) or DEFAULT_CACHE)


@functools.lru_cache(maxsize=8)
def _real(folder: str) -> str:
    return os.path.realpath(os.path.expanduser(folder))


def local_path(url: str) -> str:
    """Returns where the local copy of `s3://BUCKET/KEY` is or will be. Raises InputError."""
    match = re.fullmatch(rf"({'|'.join(SCHEMES)})://([^/]+)/+(.+?)/*", url)
    parts = match[3].split("/") if match else []
    if match is None or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{url} names no folder of a bucket; write {url[:2]}://BUCKET/FOLDER")
    return os.path.join(cache(), match[1], match[2], *parts)


def place_of(path: str | os.PathLike[str]) -> Place | None:
    """Returns the place of a path below the cache folder; None for any other path."""
    start, text = f"{cache()}/", os.path.abspath(path)
    if not text.startswith(start):
        return None
    parts = text[len(start) :].split("/", 2)
    return Place(*parts) if len(parts) == 3 and parts[0] in SCHEMES and parts[2] else None


def holds(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path stands for a place in a bucket."""
    return place_of(path) is not None


def as_urls(text: str) -> str:
    """Returns a text with URLs instead of the paths of local copies."""
    for scheme in SCHEMES:
        text = text.replace(f"{cache()}/{scheme}/", f"{scheme}://")
    return text


def as_paths(text: str) -> str:
    """Undoes `as_urls`."""
    for scheme in SCHEMES:
        text = text.replace(f"{scheme}://", f"{cache()}/{scheme}/")
    return text


# To the bucket


def publish(path: str | os.PathLike[str], content: str | os.PathLike[str] | None = None) -> None:
    """Sends a file before it gets the name `path`; does nothing outside of the cache folder.

    Args:
      path: what the file is or will be called.
      content: the file; None: it has its name already.

    Raises:
      InputError: the store does not take it, or another command has the work directory now.
    """
    place = place_of(path)
    if place is None or _is_passing(place.key):
        return
    claims.require_claim()
    file = os.fspath(path if content is None else content)
    sent = stores.put_file(place, file)
    os.utime(file, ns=(time.time_ns(), _stamp(sent)))
    if SHARD.fullmatch(os.path.basename(path)):
        _shelf.add(sent.size, cache())


def publish_tree(
    directory: str | os.PathLike[str], content: str | os.PathLike[str] | None = None
) -> None:
    """Sends what is new in a directory, marks last; does nothing outside of the cache folder.

    Args:
      directory: what the directory is or will be called.
      content: the directory; None: it has its name already.

    Raises:
      InputError: see `publish`.
    """
    place = place_of(directory)
    if place is None:
        return
    there, source = _listed(place), Path(directory if content is None else content)
    names = [name for name in _files(source) if not _is_passing(name)]
    new = [name for name in names if not _is_copy(source / name, there.get(name))]
    ordinary = [name for name in new if not _is_mark(name)]
    _at_once(lambda name: publish(Path(directory, name), source / name), ordinary)
    for name in sorted(set(new).difference(ordinary), key=_rank):
        publish(Path(directory, name), source / name)


def remove(path: str | os.PathLike[str], missing_ok: bool = False) -> None:
    """Removes a file, in its bucket first."""
    place = place_of(path)
    if place is not None:
        claims.require_claim()
        stores.delete(place)
        missing_ok = True  # it may be in the bucket alone
    Path(path).unlink(missing_ok=missing_ok)


def remove_tree(directory: str | os.PathLike[str]) -> None:
    """Removes a directory where there is one, in its bucket first, and marks first of all."""
    place = place_of(directory)
    if place is not None:
        claims.require_claim()
        names = _listed(place)
        for name in sorted(filter(_is_mark, names), key=_rank, reverse=True):
            stores.delete(place.below(name))
        rest = [name for name in names if not _is_mark(name)]
        _at_once(lambda name: stores.delete(place.below(name)), rest)
    shutil.rmtree(directory, ignore_errors=True)


def _is_mark(name: str) -> bool:
    return os.path.basename(name) in MARKS


def _rank(name: str) -> tuple[int, int, str]:
    """Orders marks: those of inner folders first, then as in `MARKS`."""
    return -name.count("/"), MARKS.index(os.path.basename(name)), name


def _is_passing(name: str) -> bool:
    return any(_PASSING.fullmatch(part) for part in name.split("/"))


# From the bucket


def refresh(path: str, *, own: bool, whole: bool = False) -> None:
    """Makes the local copy of a place in a bucket what the bucket has now.

    Args:
      path: local path of a folder, of a file, or of what the names of some files begin with.
      own: this process has claimed the folder, so all that the bucket lacks is removed. Else
        another process may be writing there, and only outdated marks and shards are.
      whole: fetch shards and checkpoints, too.

    Raises:
      InputError: the store cannot be read, or nothing is there (unless `own`).
    """
    place = place_of(path)
    assert place is not None, path
    there = _listed(place)
    if not there and not own:
        there = _alike(place)
        if not there:
            raise InputError(f"{as_urls(path)} does not exist; check its name")
        path = os.path.dirname(path)
    else:
        _drop_outdated(path, there, own)

    def fetched(name: str) -> bool:
        later = SHARD.fullmatch(os.path.basename(name)) or _is_of_training(name, there, own)
        return (whole or not later) and not _is_passing(name)

    wanted = [os.path.join(path, name) for name in there if fetched(name)]
    _at_once(_download, [file for file in wanted if not os.path.exists(file)])


def _alike(place: Place) -> dict[str, Object]:
    """Lists the object of that name, or those whose names begin so, as a checkpoint's do."""
    folder, name = os.path.dirname(place.key), os.path.basename(place.key)
    found = stores.find(place)
    listed = {key[len(folder) :].lstrip("/"): value for key, value in found.items()}
    if name in listed:
        return {name: listed[name]}
    return {key: value for key, value in listed.items() if key.startswith(f"{name}.")}


def _is_of_training(name: str, there: dict[str, Object], own: bool) -> bool:
    """Tells whether a file matters only to a training that has ended, or that is another's."""
    match = re.fullmatch(r"(.*/|)(checkpoints|tensorboard)/.+", name)
    return match is not None and (not own or f"{match[1]}summary.json" in there)


def _drop_outdated(path: str, there: dict[str, Object], own: bool) -> None:
    """Removes local files that the bucket does not have, and folders without files."""
    for name in list(_files(path)):
        file = Path(path, name)
        if not _is_copy(file, there.get(name)):
            tells = name.endswith(".json") or SHARD.fullmatch(file.name)
            if own or name in there or (tells and not _is_passing(name)):
                file.unlink()
    for folder, _, _ in os.walk(path, topdown=False) if own else ():
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)


def _listed(place: Place) -> dict[str, Object]:
    """Lists the objects below a folder by their paths in it."""
    found = stores.find(place.below(""))
    names = {key[len(place.key) + 1 :]: value for key, value in found.items()}
    listed = {name: value for name, value in names.items() if name and not name.endswith("/")}
    for name in listed:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise InputError(
                f"{place.below(name).url}: no file can have this name; rename the object"
            )
    return listed


def _files(directory: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the paths of the files in a directory, relative to it."""
    for folder, _, names in os.walk(directory):
        inner = os.path.relpath(folder, directory)
        for name in sorted(names):
            yield name if inner == "." else f"{inner}/{name}"


def _stamp(found: Object) -> int:
    """Returns the modification time of a local copy, in nanoseconds."""
    part = int(hashlib.sha256(found.tag.encode()).hexdigest()[:12], 16) % 10**9
    return int(found.modified) * 10**9 + part


def _is_copy(file: Path, found: Object | None) -> bool:
    state = file.stat()
    return found is not None and (state.st_size, state.st_mtime_ns) == (found.size, _stamp(found))


def _download(path: str) -> int:
    """Fetches a file and returns its size. Raises FileNotFoundError where the bucket lacks it."""
    place = place_of(path)
    assert place is not None
    folder, name = os.path.split(path)
    me = f"{platform.node()}-{os.getpid()}-{threading.get_ident()}"
    temporary = os.path.join(folder, f".{name}.tmp-{me}")
    try:
        os.makedirs(folder, exist_ok=True)
        found = stores.get_file(place, temporary)
        os.utime(temporary, ns=(time.time_ns(), _stamp(found)))
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            what, remedy = write_failure(error) or (error.strerror, "make it writable")
            raise InputError(
                f"{path}: {what}; {remedy}, or name another folder with {CACHE}"
            ) from error
        raise
    return found.size


def _at_once(act: Callable[[str], Any], names: Sequence[str]) -> None:
    """Calls `act` with each name, in several threads. Raises the first error."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(act, name) for name in names]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# Single files, when they are read


def fetch(paths: Iterable[str | os.PathLike[str]], reader: Reader | None = None) -> None:
    """Sees that files are there, and stay for a while; passes over paths outside of the cache.

    Args:
      paths: of the files. One that the bucket lacks stays away, and its reader says so.
      reader: who reads them; None stands for the thread.

    Raises:
      InputError: the store cannot be read, or the disk is full.
    """
    below = [os.path.abspath(path) for path in paths if holds(path)]
    if below:
        _shelf.want(below, reader or _thread.reader)
        # Again: a shard may have made room for another before `want` was called.
        for attempt in range(_TRIES):
            absent = [path for path in below if not (attempt and os.path.exists(path))]
            for future in [_begin(path) for path in absent]:
                with contextlib.suppress(FileNotFoundError):
                    future.result()


def prefetch(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Begins to fetch files, in threads; `fetch` tells whether that works."""
    for path in paths:
        if holds(path):
            _begin(os.path.abspath(path))


def _begin(path: str) -> concurrent.futures.Future[None]:
    with _lock:
        future = _underway.get(path)
        if future is None:
            future = _underway[path] = _pool().submit(_bring, path)
        return future


def _bring(path: str) -> None:
    try:
        try:
            os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))
        except FileNotFoundError:
            size = _download(path)
            with _lock:
                coming = list(_underway)
            _shelf.add(size, cache(), coming)
    finally:
        with _lock:
            del _underway[path]


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(THREADS, "fetch")


class _Thread(threading.local):
    def __init__(self) -> None:
        self.reader = Reader()


_shelf, _thread = Shelf(), _Thread()
_lock = threading.Lock()
_underway: dict[str, concurrent.futures.Future[None]] = {}


def size(path: str | os.PathLike[str]) -> int | None:
    """Returns the size of a file in bytes, also of one in a bucket alone; None without one."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size
    place = place_of(path)
    found = stores.look(place) if place else None
    return found.size if found else None


def missing(directory: str | os.PathLike[str], names: Sequence[str]) -> list[str]:
    """Returns the names of the files that a directory, or its place in a bucket, lacks."""
    lacking = [name for name in names if not os.path.isfile(os.path.join(directory, name))]
    place = place_of(directory)
    there = _listed(place) if lacking and place else {}
    return [name for name in lacking if name not in there]
