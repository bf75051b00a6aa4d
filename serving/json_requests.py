"""Converts TF Serving's JSON predict requests to arrays and back, without HTTP or a model.

    {"instances": [...]} or {"inputs": ...}, and "signature_name"

An answer is {"predictions": [...]} or {"outputs": ...}.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import numpy as np

from serving.models import Signature
from serving.refused import Refused

MAX_BYTES = 32 * 2**20  # of one request, also after decompression


class Prediction(NamedTuple):
    """Content of a predict request.

    Attributes:
      signature: name of the signature.
      inputs: arrays by input's name.
      by_row: whether the request has "instances", so that the answer has "predictions".
    """

    signature: Signature
    inputs: dict[str, np.ndarray]
    by_row: bool


def decompress(body: bytes, encoding: str) -> bytes:
    """Returns a body without its `Content-Encoding`: gzip, or none.

    Raises:
      Refused: another encoding, a damaged body, or more than MAX_BYTES in it. No more than that is
        ever decompressed.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        message = f"Content-Encoding {encoding[:50]!r} is not read here, gzip is"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message, http=415)
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(body, MAX_BYTES + 1)
    except zlib.error as error:
        message = f"the body is not gzip ({error})"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message) from error
    if len(content) > MAX_BYTES:
        message = f"the body has more than {MAX_BYTES:,} bytes when it is decompressed"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message, http=413)
    if not stream.eof or stream.unused_data:
        what = "goes on behind" if stream.eof else "ends before"
        message = f"the body {what} the end of its gzip data"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
    return content


def parse(body: bytes, signature_of: Callable[[str], Signature]) -> Prediction:
    """Reads a predict request.

    Args:
      body: JSON as UTF-8, UTF-16 or UTF-32.
      signature_of: finds a signature by its name; "" is the default one. May raise Refused.

    Raises:
      Refused: anything that is not such a request.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        message = f"JSON parse error: {str(error)[:200]}"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message) from error
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        message = 'the body must be an object with either "instances" or "inputs"'
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "'signature_name' must be a string")
    signature = signature_of(name)
    by_row = "instances" in request
    values = _columns(request["instances"], signature) if by_row else request["inputs"]
    if not isinstance(values, dict) or _is_b64(values):
        if len(signature.inputs) != 1:
            message = f"'inputs' must be an object with {', '.join(signature.inputs)}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        values = {next(iter(signature.inputs)): values}
    arrays = {key: _array(value, key, signature) for key, value in values.items()}
    return Prediction(signature, arrays, by_row)


def answer(outputs: dict[str, np.ndarray], by_row: bool) -> str:
    """Returns the answer to a predict request.

    Args:
      outputs: arrays by output's name, of a number type or bytes.
      by_row: whether "predictions" or "outputs" are wanted.

    Raises:
      Refused: the answer holds NaN or infinity.
    """
    lists = {key: _plain(value, key) for key, value in outputs.items()}
    rows: Any = lists
    if len(lists) == 1:
        (rows,) = lists.values()
    elif by_row:
        rows = [dict(zip(lists, row)) for row in zip(*lists.values())]
    try:
        key = "predictions" if by_row else "outputs"
        return json.dumps({key: rows}, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        message = "the answer holds NaN or infinity, which JSON has no numbers for; ask over gRPC"
        raise Refused(grpc.StatusCode.INTERNAL, message) from error


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _columns(instances: Any, signature: Signature) -> Any:
    """Turns rows into columns: a list of values, or of objects with every input."""
    if not isinstance(instances, list):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "'instances' must be a list")
    if not instances or not isinstance(instances[0], dict) or _is_b64(instances[0]):
        return (
            {next(iter(signature.inputs)): instances} if len(signature.inputs) == 1 else instances
        )
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict) or instance.keys() != signature.inputs.keys():
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"instance {i} must be an object with {', '.join(signature.inputs)}",
            )
    return {name: [instance[name] for instance in instances] for name in signature.inputs}


def _array(value: Any, name: str, signature: Signature) -> np.ndarray:
    """Returns JSON's nested lists as an array of the input's type."""
    if name not in signature.inputs:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"no input {name[:100]!r}; the signature has {', '.join(signature.inputs)}",
        )
    dtype = signature.inputs[name].dtype
    try:
        if dtype == np.object_:
            array = np.array(_strings(value), dtype=object)
            if not all(isinstance(item, bytes) for item in array.ravel()):
                # NumPy makes an array of lists of such a value.
                raise ValueError("lists of different lengths or depths")
            return array
        # As objects: NumPy itself gives every string the room of the longest one.
        array = np.array(value, dtype=object)
        unfit = set(map(type, array.ravel())) - ({int, float} if dtype.kind == "f" else {int})
        if list in unfit:
            raise ValueError("lists of different lengths or depths")
        if unfit:
            raise ValueError(f"{min(one.__name__ for one in unfit)} where {dtype} is wanted")
        if array.size == 0:
            return array.astype(dtype)
        if dtype.kind in "iu" and (
            array.min() < np.iinfo(dtype).min or array.max() > np.iinfo(dtype).max
        ):
            raise ValueError(f"a number outside of {dtype}")
        return array.astype(dtype)
    # NumPy 2 raises RuntimeError for 64 dimensions.
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, f"input {name!r}: {str(error)[:200]}"
        ) from error


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if _is_b64(value) and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64 ({error})") from error
    raise ValueError('a string or {"b64": "…"} is wanted')


def _plain(value: np.ndarray, name: str) -> Any:
    if value.dtype != np.object_:
        return value.tolist()

    def text(item: Any) -> Any:
        if isinstance(item, list):
            return [text(one) for one in item]
        return (
            {"b64": base64.b64encode(item).decode()}
            if name.endswith("_bytes")
            else item.decode("utf-8", "replace")
        )

    return text(value.tolist())
