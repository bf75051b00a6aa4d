"""Requests to an S3 store, by boto3.

Credentials, region and endpoint are boto3's own, from the environment (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, …).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from cli.errors import InputError
from cli.objects import BLOCK, NotWhole, Object, Place, judge_status, written

_PART = 1 << 26
"""Size in bytes from which a file is sent in parts of that size."""
_HOPELESS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "NoRegionError",
    "ParamValidationError",
)


class S3:
    """See `objects.Store`."""

    def page(self, place: Place, after: str) -> tuple[dict[str, Object], str]:
        """Lists objects."""
        request = {"Bucket": place.bucket, "Prefix": place.key}
        if after:
            request["ContinuationToken"] = after
        page = _client().list_objects_v2(**request)
        found = {row["Key"]: _described(row, row["Size"]) for row in page.get("Contents", ())}
        return found, page["NextContinuationToken"] if page.get("IsTruncated") else ""

    def look(self, place: Place) -> Object:
        """Describes an object."""
        answer = _client().head_object(**_names(place))
        return _described(answer, answer["ContentLength"])

    def get(self, place: Place, path: str) -> Object:
        """Writes an object to a file."""
        answer = _client().get_object(**_names(place))
        found = _described(answer, answer["ContentLength"])
        with contextlib.closing(answer["Body"]) as body:
            written(iter(lambda: body.read(BLOCK), b""), path, found.size)
        return found

    def read(self, place: Place) -> tuple[bytes, str]:
        """Returns content and tag of an object."""
        answer = _client().get_object(**_names(place))
        return answer["Body"].read(), answer["ETag"]

    def put(self, place: Place, path: str) -> Object:
        """Sends a file."""
        with open(path, "rb") as file:
            if os.path.getsize(path) < _PART:
                _client().put_object(**_names(place), Body=file)
            else:
                _client().upload_fileobj(file, place.bucket, place.key, Config=_transfer())
        try:
            answer = _client().head_object(**_names(place))
        except _client().exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            raise NotWhole from error
        found = _described(answer, answer["ContentLength"])
        etag = found.tag.strip('"')
        # The tag of an object in one part is its MD5, unless the store encrypts with a key service.
        plain = re.fullmatch("[0-9a-f]{32}", etag) and "aws:" not in str(
            answer.get("ServerSideEncryption", "")
        )
        if found.size != os.path.getsize(path) or (plain and etag != _md5(path)):
            raise NotWhole
        return found

    def put_if(self, place: Place, content: bytes, tag: str) -> None:
        """Puts an object on a condition."""
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        _client().put_object(**_names(place), Body=content, **condition)

    def delete(self, place: Place) -> None:
        """Removes an object."""
        _client().delete_object(**_names(place))

    def endpoint(self) -> str:
        """Returns the address of the server."""
        return re.sub(r"//[^/@]*@", "//", _client().meta.endpoint_url)

    def judge(self, place: Place, error: Exception) -> str:
        """Tells whether to ask again."""
        from botocore.exceptions import BotoCoreError, ClientError

        name = type(error).__name__
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            return judge_status(place, status, code, code == "NoSuchBucket")
        if name in _HOPELESS:
            what = "no credentials" if "Credential" in name else "no region"
            raise InputError(f"{place.url}: {what} ({name}); set the AWS_… variables") from error
        if isinstance(error, (NotWhole, BotoCoreError, ConnectionError)):
            return name
        raise error  # of the local disk, or a bug


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
        retries={"mode": "standard", "total_max_attempts": 1},  # `cli.stores` repeats
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


def _names(place: Place) -> dict[str, str]:
    return {"Bucket": place.bucket, "Key": place.key}


def _described(answer: Mapping[str, Any], size: int) -> Object:
    return Object(size, answer["LastModified"].timestamp(), answer["ETag"])


@functools.cache
def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART)


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
