"""Objects of an S3 store, whole: list, get, put, delete, and the claim of a work directory.

A request that the server or the network fails is repeated, with growing pauses. Objects are put
and got whole, so that a repeated request changes nothing. Credentials, region and endpoint are
boto3's own, from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …). No message holds
what a server says beyond its error code.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import logging
import os
import platform
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from cli.errors import InputError

T = TypeVar("T")
ATTEMPTS = 7
"""Times that a request is made; the pauses between them come to about 13 s."""
CLAIM = ".claim.json"
"""Object in a work directory that says who works in it."""
TOKEN = "BUCKET_CLAIM"
"""Environment variable by which the stages of a run know its claim: JSON, [bucket, key, token]."""
_CHECK_EVERY = 10.0
"""Seconds for which a claim counts as held after it was seen."""
_REPEATED = (408, 409, 429)
"""HTTP status codes below 500 after which the same request may succeed."""
_BLOCK, _PART = 1 << 20, 1 << 26
"""Bytes that are read at once; size from which a file is sent in parts of that size."""


class Object(NamedTuple):
    """Description of an object by its store.

    Attributes:
      size: in bytes.
      modified: seconds since 1970.
      etag: its entity tag; another one for other contents.
    """

    size: int
    modified: float
    etag: str


class _Refused(Exception):
    """Answer to a conditional put if the condition does not hold."""


@functools.cache
def _client() -> Any:
    try:
        import boto3
        import botocore.config
    except ImportError as error:
        raise InputError(
            "s3:// needs the package boto3; docs/installation.md says how to add it"
        ) from error
    # Else a stage's log says in each process where boto3 found its settings.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    settings = botocore.config.Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # `_again` repeats
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=64,
    )
    try:
        return boto3.session.Session().client("s3", config=settings)
    except Exception as error:  # an unusable setting in the environment has many classes
        raise InputError(
            f"s3:// cannot be used ({type(error).__name__}); check AWS_ENDPOINT_URL and the other"
            " AWS_… variables"
        ) from error


def _again(url: str, act: Callable[[], T]) -> T:
    """Calls `act` until the store answers.

    Raises:
      FileNotFoundError: there is no such object.
      InputError: no such bucket, no permission, or no answer after `ATTEMPTS` attempts.
    """
    client = _client()
    from botocore.exceptions import BotoCoreError, ClientError

    for attempt in range(ATTEMPTS):
        if attempt:
            pause(attempt)
        try:
            return act()
        except ClientError as error:
            problem = _judge(url, error.response)
        except (NotWhole, BotoCoreError, OSError) as error:
            if type(error).__name__ in _HOPELESS:
                what = "no credentials" if "Credential" in type(error).__name__ else "no region"
                raise InputError(
                    f"{url}: {what} ({type(error).__name__}); set the AWS_… variables"
                ) from error
            if isinstance(error, OSError) and not isinstance(error, ConnectionError):
                raise  # of the local disk
            problem = type(error).__name__
    endpoint = re.sub(r"//[^/@]*@", "//", client.meta.endpoint_url)
    raise InputError(
        f"{url}: {endpoint} gives no answer after {ATTEMPTS} attempts ({problem}); run the same"
        " command again when it does"
    )


def pause(attempt: int) -> None:
    """Waits before a request is made for the `attempt`-th time again."""
    time.sleep(min(4.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))


_HOPELESS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "NoRegionError",
    "ParamValidationError",
)


class NotWhole(Exception):
    """A transfer that ended with another number of bytes than announced, or with other bytes."""


def _judge(url: str, response: Mapping[str, Any]) -> str:
    """Returns what to say of an answer after which to ask again; raises for any other."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        raise _no_bucket(url.split("/")[2])
    if status == 404:
        raise FileNotFoundError(url)
    if status == 412 or code == "ConditionalRequestConflict":
        raise _Refused
    if status in (400, 401, 403) and code != "RequestTimeout":
        raise InputError(
            f"{url}: no permission ({code}); check the credentials in the environment and the"
            " bucket's policy"
        )
    if (status < 500 or status == 501) and status not in _REPEATED and code != "RequestTimeout":
        raise InputError(f"{url}: the store refuses the request ({status} {code})")
    return f"{status} {code}"


def _no_bucket(bucket: str) -> InputError:
    return InputError(f"s3://{bucket}: there is no such bucket; create it, or name another")


def _url(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def _described(answer: Mapping[str, Any], size: int) -> Object:
    return Object(size, answer["LastModified"].timestamp(), answer["ETag"])


def find(bucket: str, prefix: str) -> dict[str, Object]:
    """Lists the objects of a bucket by key, without claims.

    Args:
      bucket: its name.
      prefix: what their keys begin with.

    Raises:
      InputError: no such bucket, no permission, or no answer.
    """
    found: dict[str, Object] = {}
    request = {"Bucket": bucket, "Prefix": prefix}
    while True:
        try:
            page = _again(_url(bucket, prefix), lambda: _client().list_objects_v2(**request))
        except FileNotFoundError as error:
            raise _no_bucket(bucket) from error
        found |= {row["Key"]: _described(row, row["Size"]) for row in page.get("Contents", ())}
        if not page.get("IsTruncated"):
            return {key: it for key, it in found.items() if os.path.basename(key) != CLAIM}
        request["ContinuationToken"] = page["NextContinuationToken"]


def look(bucket: str, key: str) -> Object | None:
    """Returns what the store says of one object; None where there is none. Raises InputError."""
    try:
        answer = _again(_url(bucket, key), lambda: _client().head_object(Bucket=bucket, Key=key))
    except FileNotFoundError:
        return None
    return _described(answer, answer["ContentLength"])


def get_file(bucket: str, key: str, path: str) -> Object:
    """Writes an object to the file `path`. Raises FileNotFoundError, InputError or OSError."""

    def get() -> Object:
        answer = _client().get_object(Bucket=bucket, Key=key)
        found, written = _described(answer, answer["ContentLength"]), 0
        with open(path, "wb") as file, contextlib.closing(answer["Body"]) as body:
            while block := body.read(_BLOCK):
                written += file.write(block)
        if written != found.size:
            raise NotWhole
        return found

    return _again(_url(bucket, key), get)


def put_file(bucket: str, key: str, path: str) -> Object:
    """Sends the file `path` as a whole object, and compares size and content with what arrived.

    Raises:
      InputError: the store does not take it.
      OSError: the file cannot be read.
    """

    def put() -> Object:
        with open(path, "rb") as file:
            if os.path.getsize(path) < _PART:
                _client().put_object(Bucket=bucket, Key=key, Body=file)
            else:
                _client().upload_fileobj(file, bucket, key, Config=_transfer())
        try:
            answer = _client().head_object(Bucket=bucket, Key=key)
        except _client().exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            raise NotWhole from error
        found = _described(answer, answer["ContentLength"])
        etag = found.etag.strip('"')
        # The tag of an object in one part is its MD5, unless the store encrypts with a key service.
        plain = re.fullmatch("[0-9a-f]{32}", etag) and "aws:" not in str(
            answer.get("ServerSideEncryption", "")
        )
        if found.size != os.path.getsize(path) or (plain and etag != _md5(path)):
            raise NotWhole
        return found

    return _again(_url(bucket, key), put)


@functools.cache
def _transfer() -> Any:
    _client()
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART)


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def delete(bucket: str, key: str) -> None:
    """Removes an object where there is one. Raises InputError."""
    with contextlib.suppress(FileNotFoundError):
        _again(_url(bucket, key), lambda: _client().delete_object(Bucket=bucket, Key=key))


# The claim of a work directory


@contextlib.contextmanager
def claimed(bucket: str, folder: str, force: bool) -> Iterator[None]:
    """Claims a folder for this process and its child processes, by one conditional put.

    A claim that a process of this machine has left, and that is gone, is taken over. So is any
    other with `force`.

    Raises:
      InputError: another process has it.
    """
    key, token = f"{folder}/{CLAIM}", uuid.uuid4().hex
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({**_me(), "since": now, "token": token})

    def put(**condition: str) -> bool:
        def act() -> bool:
            _client().put_object(Bucket=bucket, Key=key, Body=text.encode(), **condition)
            return True

        with contextlib.suppress(_Refused):
            return _again(_url(bucket, key), act)
        return False

    if not put(IfNoneMatch="*"):
        holder, etag = _read(bucket, key)
        free = force or _is_gone(holder) or holder.get("token") == token  # put twice, by `_again`
        if not free or not put(**({"IfMatch": etag} if etag else {"IfNoneMatch": "*"})):
            raise InputError(
                f"--workdir: {holder.get('host')}, process {holder.get('pid')}, has been at work in"
                f" {_url(bucket, folder)} since {holder.get('since')}; wait until it ends, or, if"
                " it is dead, add --force"
            )
    if put(IfNoneMatch="*"):
        delete(bucket, key)
        raise InputError(
            f"--workdir: the store of {_url(bucket, folder)} ignores If-None-Match, so two commands"
            " could work in one directory; mount the bucket, and give the path"
        )
    os.environ[TOKEN] = json.dumps([bucket, key, token])
    _seen.clear()
    try:
        yield
    finally:
        del os.environ[TOKEN]
        with contextlib.suppress(InputError):  # the next one finds this process gone
            if _read(bucket, key)[0].get("token") == token:
                delete(bucket, key)


def _read(bucket: str, key: str) -> tuple[dict[str, Any], str]:
    """Returns what a claim says, and its ETag; nothing where there is none."""

    def get() -> tuple[bytes, str]:
        answer = _client().get_object(Bucket=bucket, Key=key)
        return answer["Body"].read(), answer["ETag"]

    try:
        content, etag = _again(_url(bucket, key), get)
        claim = json.loads(content)
    except FileNotFoundError:
        return {}, ""
    except ValueError:
        return {}, etag
    return (claim if isinstance(claim, dict) else {}), etag


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
        bucket, key, token = json.loads(own_token)
        holder = _read(bucket, key)[0]
        if holder.get("token") != token:
            raise InputError(
                f"{_url(bucket, os.path.dirname(key))} has been taken over by"
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
