"""Places and objects in a store, and what a kind of store must be able to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from cli.errors import InputError

SCHEMES = ("s3", "gs")
"""Beginnings of URLs of places in a store: S3, Google Cloud Storage."""
BLOCK = 1 << 20
"""Bytes that are read at once."""
_REPEATED = (408, 409, 429)
"""HTTP status codes below 500 after which the same request may succeed."""


class Place(NamedTuple):
    """Place in a store: an object, a folder, or what some keys begin with.

    Attributes:
      scheme: one of `SCHEMES`.
      bucket: the bucket's name.
      key: key of the object, without a slash at its beginning.
    """

    scheme: str
    bucket: str
    key: str

    @property
    def url(self) -> str:
        """URL of the place."""
        return f"{self.scheme}://{self.bucket}/{self.key}"

    def below(self, name: str) -> Place:
        """Returns the place of a file in this folder."""
        return self._replace(key=f"{self.key}/{name}")


class Object(NamedTuple):
    """Description of an object by its store.

    Attributes:
      size: in bytes.
      modified: seconds since 1970.
      tag: another one for other contents: S3's entity tag, or Google's generation.
    """

    size: int
    modified: float
    tag: str


class ConditionFailed(Exception):
    """Answer to a conditional put if the condition does not hold."""


class NotWhole(Exception):
    """A transfer that ended with another number of bytes than announced, or with other bytes."""


class Store(Protocol):
    """Requests of one kind of store.

    Every method makes one attempt and may be called again. It raises an error of the store's
    library, or `NotWhole`; `judge` tells what that means.
    """

    def page(self, place: Place, after: str) -> tuple[dict[str, Object], str]:
        """Lists objects whose keys begin with the place's: one page, and where the next begins."""

    def look(self, place: Place) -> Object:
        """Describes an object."""

    def get(self, place: Place, path: str) -> Object:
        """Writes an object to the file `path`."""

    def read(self, place: Place) -> tuple[bytes, str]:
        """Returns the content of an object, and its tag."""

    def put(self, place: Place, path: str) -> Object:
        """Sends the file `path`, and compares what has arrived."""

    def put_if(self, place: Place, content: bytes, tag: str) -> None:
        """Replaces the object that has this tag; "": only where there is none."""

    def delete(self, place: Place) -> None:
        """Removes an object."""

    def endpoint(self) -> str:
        """Returns the address of the server, without a password."""

    def judge(self, place: Place, error: Exception) -> str:
        """Returns what to say of an error after which to ask again; raises for any other."""


def judge_status(place: Place, status: int, code: str, bucket_is_missing: bool = False) -> str:
    """Returns what to say of an answer after which to ask again; raises for any other.

    Args:
      place: what was asked for.
      status: HTTP status code.
      code: the store's own name of the error; "" without one.
      bucket_is_missing: whether the answer says so.
    """
    if bucket_is_missing:
        raise no_bucket(place)
    if status == 404:
        raise FileNotFoundError(place.url)
    if status == 412 or code == "ConditionalRequestConflict":
        raise ConditionFailed
    if status in (400, 401, 403) and code != "RequestTimeout":
        raise InputError(
            f"{place.url}: no permission ({code or status}); check the credentials in the"
            " environment and the bucket's policy"
        )
    if (status < 500 or status == 501) and status not in _REPEATED and code != "RequestTimeout":
        raise InputError(
            f"{place.url}: the store refuses the request ({f'{status} {code}'.strip()})"
        )
    return f"{status} {code}".strip()


def no_bucket(place: Place) -> InputError:
    """Returns the error that says so."""
    return InputError(
        f"{place.scheme}://{place.bucket}: there is no such bucket; create it, or name another"
    )


def written(blocks: Iterable[bytes], path: str, size: int) -> None:
    """Writes blocks to the file `path`. Raises NotWhole where they are not `size` bytes."""
    count = 0
    with open(path, "wb") as file:
        for block in blocks:
            count += file.write(block)
    if count != size:
        raise NotWhole
