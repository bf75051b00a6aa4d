"""Requests to Google Cloud Storage, by its JSON API (version 1).

Credentials are those that google-auth finds: `GOOGLE_APPLICATION_CREDENTIALS`, `gcloud auth
application-default login`, or the machine's service account on Google Cloud. With
`STORAGE_EMULATOR_HOST` requests go to that address without credentials.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import requests

from cli.errors import InputError
from cli.objects import BLOCK, NotWhole, Object, Place, judge_status, written

EMULATOR = "STORAGE_EMULATOR_HOST"
"""Environment variable with the address of another server; Google's libraries have it, too."""
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_HOST = "https://storage.googleapis.com"
_FIELDS = "items(name,size,generation),nextPageToken"
_CONNECTIONS = 64
_SECONDS = 10, 60
"""Seconds to wait for a connection, and for the next bytes."""


class GoogleCloudStorage:
    """See `objects.Store`."""

    def page(self, place: Place, after: str) -> tuple[dict[str, Object], str]:
        """Lists objects."""
        parameters = {"prefix": place.key, "fields": _FIELDS}
        if after:
            parameters["pageToken"] = after
        page = _asked("GET", f"/storage/v1/b/{place.bucket}/o", params=parameters).json()
        found = {row["name"]: _described(row) for row in page.get("items", ())}
        return found, page.get("nextPageToken", "")

    def look(self, place: Place) -> Object:
        """Describes an object."""
        return _described(_asked("GET", _path(place)).json())

    def get(self, place: Place, path: str) -> Object:
        """Writes an object to a file."""
        with contextlib.closing(_content(place)) as answer:
            size, digest = int(answer.headers["Content-Length"]), hashlib.md5(usedforsecurity=False)

            def blocks() -> Any:
                for block in answer.iter_content(BLOCK):
                    digest.update(block)
                    yield block

            written(blocks(), path, size)
            announced = _announced_md5(answer.headers.get("X-Goog-Hash", ""))
            if announced and announced != _base64(digest):
                raise NotWhole
            return _object(size, _generation(place, answer))

    def read(self, place: Place) -> tuple[bytes, str]:
        """Returns content and generation of an object."""
        with contextlib.closing(_content(place)) as answer:
            content = answer.content
            if len(content) != int(answer.headers["Content-Length"]):
                raise NotWhole
            return content, _generation(place, answer)

    def put(self, place: Place, path: str) -> Object:
        """Sends a file."""
        size, digest = os.path.getsize(path), hashlib.md5(usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
            file.seek(0)
            answer = _upload(place, file if size else b"")
        if int(answer["size"]) != size or answer.get("md5Hash", _base64(digest)) != _base64(digest):
            raise NotWhole
        return _described(answer)

    def put_if(self, place: Place, content: bytes, tag: str) -> None:
        """Puts an object on a condition."""
        _upload(place, content, {"ifGenerationMatch": tag or "0"})

    def delete(self, place: Place) -> None:
        """Removes an object."""
        _asked("DELETE", _path(place))

    def endpoint(self) -> str:
        """Returns the address of the server."""
        return _address().rpartition("@")[2]

    def judge(self, place: Place, error: Exception) -> str:
        """Tells whether to ask again."""
        name = type(error).__name__
        if isinstance(error, requests.HTTPError) and error.response is not None:
            code, message = _said(error.response)
            absent = error.response.status_code == 404 and "bucket does not exist" in message
            return judge_status(place, error.response.status_code, code, absent)
        if type(error).__module__.startswith("google.auth"):
            if getattr(error, "retryable", False) or name == "TransportError":
                return name
            raise InputError(
                f"{place.url}: no credentials ({name}); set GOOGLE_APPLICATION_CREDENTIALS, or run"
                " gcloud auth application-default login"
            ) from error
        unusable = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)
        if isinstance(error, unusable):
            raise InputError(f"gs:// cannot be used ({name}); check {EMULATOR}") from error
        if isinstance(error, (NotWhole, requests.RequestException, ConnectionError)):
            return name
        raise error  # of the local disk, or a bug


def _address() -> str:
    host = os.environ.get(EMULATOR, "")
    return (host if "://" in host or not host else f"http://{host}").rstrip("/") or _HOST


@functools.cache
def _session() -> requests.Session:
    """Returns the session of this process, which has credentials unless an emulator answers."""
    session = requests.Session() if os.environ.get(EMULATOR) else _authorized()
    session.mount(_address(), requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return session


def _authorized() -> requests.Session:
    try:
        from google.auth import default
        from google.auth.transport.requests import AuthorizedSession
    except ImportError as error:
        raise InputError(
            "gs:// needs the package google-auth; docs/installation.md says how to add it"
        ) from error
    return AuthorizedSession(default(scopes=[SCOPE])[0], max_refresh_attempts=1)


def _asked(method: str, path: str, **more: Any) -> requests.Response:
    """Makes a request. Raises requests.HTTPError for an answer that reports an error."""
    answer = _session().request(method, _address() + path, timeout=_SECONDS, **more)
    if not answer.ok:
        answer.content  # noqa: B018  (read, so that the connection can be used again)
    answer.raise_for_status()
    return answer


def _path(place: Place) -> str:
    return f"/storage/v1/b/{place.bucket}/o/{quote(place.key, safe='')}"


def _content(place: Place) -> requests.Response:
    """Begins to read an object as it is stored."""
    headers = {"Accept-Encoding": "identity"}
    return _asked("GET", _path(place), params={"alt": "media"}, headers=headers, stream=True)


def _generation(place: Place, answer: requests.Response) -> str:
    """Returns the generation of the object that was read; an emulator may not say it."""
    said = answer.headers.get("X-Goog-Generation")
    return said or str(_asked("GET", _path(place)).json()["generation"])


def _upload(place: Place, content: Any, conditions: Mapping[str, str] | None = None) -> Any:
    """Sends an object in one request, and returns the store's description of it."""
    return _asked(
        "POST",
        f"/upload/storage/v1/b/{place.bucket}/o",
        params={"uploadType": "media", "name": place.key, **(conditions or {})},
        headers={"Content-Type": "application/octet-stream"},
        data=content,
    ).json()


def _described(row: Mapping[str, Any]) -> Object:
    return _object(int(row["size"]), row["generation"])


def _object(size: int, generation: str) -> Object:
    # A generation is the time of its making in microseconds. Nothing depends on that but the time
    # that a local copy shows.
    return Object(size, int(generation) // 1_000_000 % 2**32, str(generation))


def _said(answer: requests.Response) -> tuple[str, str]:
    """Returns the reason and the message of an answer that reports an error."""
    try:
        error = json.loads(answer.content)["error"]
        return str(error["errors"][0]["reason"]), str(error.get("message", ""))
    except (ValueError, KeyError, TypeError, IndexError):
        return "", ""


def _announced_md5(hashes: str) -> str:
    """Returns the MD5 of a header such as "crc32c=…,md5=…"; "" without one."""
    parts = (part.strip().partition("=") for part in hashes.split(","))
    return next((value for name, _, value in parts if name == "md5"), "")


def _base64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode()
