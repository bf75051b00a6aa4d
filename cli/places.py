"""URLs on a command line: which are taken, and the local paths that a stage gets for them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli import buckets, claims, shelf
from cli.errors import InputError
from cli.flags import Command
from cli.objects import SCHEMES

COMMANDS = (
    *("prepare_data", "train", "teacher", "pseudo_label", "balance", "student", "finetune"),
    *("meta_pseudo_labels", "noisy_student", "evaluate", "export", "predict"),
)
"""Commands that can have their directories in a bucket."""
LOCAL = ("output", "cache")
"""Flags of those commands that name files of this machine."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PLACE = re.compile(rf"({'|'.join(SCHEMES)})://")


@contextlib.contextmanager
def staged(command: Command, values: Mapping[str, Any], force: bool) -> Iterator[dict[str, Any]]:
    """Yields the values of a command line with local paths instead of URLs.

    Within it the command holds its work directory's claim, and what it publishes there goes to the
    bucket. At its end, where nothing was raised, the bucket has all of the work directory.

    Args:
      command: the command.
      values: its flags' values, `arguments` and `beam_options`.
      force: take a work directory over from a holder that is dead.

    Raises:
      InputError: a URL that the command cannot take, nothing at the URL, no permission,
        or another command at work in the work directory.
    """
    names = named(command, values)
    _refuse(command, values, names)
    if not names:
        if force:
            raise InputError("--force is for a work directory in a bucket; leave it out")
        yield dict(values)
        return
    changed = {name: _local(values[name]) for name in names}
    shelf.limit()
    os.environ[buckets.CACHE] = buckets.cache()  # for the stages that the command starts
    show_urls()
    with contextlib.ExitStack() as stack:
        if "workdir" in changed:
            place = buckets.place_of(changed["workdir"])
            assert place is not None
            stack.enter_context(claims.claimed(place, force))
            buckets.refresh(changed["workdir"], own=True)
        elif force:
            raise InputError("--force is for a work directory in a bucket; leave it out")
        for flag in command.flags:
            if flag.name in changed and flag.name != "workdir":
                for path in _paths(changed[flag.name]):
                    buckets.refresh(path, own=False, whole=not flag.finished)
        yield {**values, **changed}
        if "workdir" in changed:
            buckets.publish_tree(changed["workdir"])


def named(command: Command, values: Mapping[str, Any]) -> list[str]:
    """Returns the names of the flags that have URLs of files or folders as values."""
    texts = {flag.name: values.get(flag.name) for flag in command.flags if not flag.address}
    return [name for name, it in texts.items() if isinstance(it, str) and _URL.search(it)]


def _refuse(command: Command, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raises InputError for a URL that cannot be used, and for what does not go with one."""
    for name in names:
        where, scheme = f"--{name}: {values[name]}", _URL.search(values[name])
        if scheme and scheme[1] not in SCHEMES:
            raise InputError(
                f"{where} is an address; mount it, and give the local path (only "
                "s3://BUCKET/FOLDER and gs://BUCKET/FOLDER are read without that)"
            )
        if command.name not in COMMANDS or name in LOCAL:
            raise InputError(
                f"{where} is in a bucket, but {command.script} needs a local path here; mount or "
                "copy it, and give that path"
            )
    if not names:
        return
    where = f"--{names[0]}={values[names[0]]}"
    for name in ("iterations", "dry_run"):
        if values.get(name):
            raise InputError(f"--{name} cannot be combined with {where}; give local paths")
    if values.get("strategy") == "multi_worker":
        raise InputError(
            f"--strategy=multi_worker cannot be combined with {where}: all machines must share a "
            "file system. Mount the bucket, and give the path"
        )
    if any(word.startswith("--runner") for word in values.get("beam_options", ())):
        raise InputError(
            f"--runner cannot be combined with {where}: other machines do not see its local "
            "copies. Leave --runner out, or mount the bucket"
        )


def _local(text: str) -> str:
    """Returns a flag's text with local paths instead of its URLs. Raises InputError."""
    return ",".join(_local_part(part) for part in text.split(","))


def _local_part(part: str) -> str:
    url = _PLACE.search(part)
    if url is None:
        return part
    if "*" in part or "?" in part:
        raise InputError(f"{part}: a pattern cannot be in a bucket; name its folder")
    return part[: url.start()] + buckets.local_path(part[url.start() :])


def _paths(text: str) -> list[str]:
    """Returns the local paths in a flag's text, without what stands before them."""
    found = (_PLACE.search(buckets.as_urls(part)) for part in text.split(","))
    return [buckets.as_paths(url.string[url.start() :]) for url in found if url]


def show_urls() -> None:
    """Makes standard output and error print URLs instead of local copies' paths."""
    for stream in (sys.stdout, sys.stderr):
        write = stream.write
        if getattr(write, "shows_urls", False):
            continue

        def shown(text: str, write: Any = write) -> int:
            return write(buckets.as_urls(text))

        shown.shows_urls = True  # type: ignore[attr-defined]
        stream.write = shown  # type: ignore[method-assign]
