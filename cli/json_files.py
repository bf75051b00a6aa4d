"""Writes JSON files whole, and reads them with a check of their content."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from cli import buckets
from cli.errors import InputError, one_line
from cli.files import atomic_path, read_file


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN and infinity, which JSON lacks, as null.

    In a bucket, URLs stand for the paths of local copies, which are other ones on each machine.
    """
    text = to_json(value, indent=2) + "\n"
    with atomic_path(path) as temporary:
        # Lone surrogates are all that UTF-8 cannot encode, and their escape is JSON's own.
        temporary.write_text(
            buckets.as_urls(text) if buckets.holds(path) else text,
            encoding="utf-8",
            errors="backslashreplace",
        )


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns `value` as JSON, without escapes; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_json(path: str | os.PathLike[str], schema: Any = object) -> Any:
    """Reads a JSON file and checks what it holds.

    Args:
      path: the file.
      schema: the expected content, one of:
        - a type; `float` takes whole numbers too;
        - None;
        - a tuple of schemas: one of them must fit;
        - `[schema]`: a list of any length;
        - `[schema, schema]`: a list of that length;
        - a dict: its keys must be there, or may be there (`"key?"`), beside any others. The key
          `str` has the schema of all other keys.

    Returns:
      The value. Its numbers are finite.

    Raises:
      FileNotFoundError: there is none.
      InputError: it cannot be read, is not JSON, or does not fit the schema. The message names the
        key.
    """
    return parse_json(_read_text(path), schema, str(path))


def read_json_lines(path: str | os.PathLike[str], schema: Any = dict) -> list[tuple[str, Any]]:
    """Reads a file with one JSON value a line.

    A last line without its end is left out: the writer was killed.

    Returns:
      (line, value), in order.

    Raises:
      FileNotFoundError: there is none.
      InputError: see `read_json`.
    """
    lines = _read_text(path).split("\n")[:-1]
    return [
        (line, parse_json(line, schema, f"{path}, line {number}"))
        for number, line in enumerate(lines, 1)
    ]


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        text = read_file(path).decode("utf-8")
        return buckets.as_paths(text) if buckets.holds(path) else text
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); create it or fetch it again"
        ) from error


def _damaged(where: str | os.PathLike[str], why: Exception | str) -> InputError:
    return InputError(
        f"{where} is damaged: {why if isinstance(why, str) else one_line(why)}; create it or fetch "
        "it again"
    )


def parse_json(text: str, schema: Any, where: str) -> Any:
    """Returns the value of a JSON text from `where`. Raises InputError: see `read_json`."""
    try:
        value = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, error) from error
    wrong = _mismatch(value, schema, "")
    if wrong:
        raise _damaged(where, wrong)
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**64:
        raise ValueError(f"{text[:20]} has {len(text)} digits and is too large")
    return int(text)


def _mismatch(value: Any, schema: Any, key: str) -> str | None:
    """Returns what is wrong with the `value` of `key`, or None. See `read_json` for schemas."""
    if isinstance(schema, tuple):
        wrong = [_mismatch(value, one, key) for one in schema]
        return None if None in wrong else wrong[0]
    if isinstance(schema, dict) and isinstance(value, dict):
        items = [(name, name.rstrip("?"), one) for name, one in schema.items() if name is not str]
        if str in schema:
            named = {plain for _, plain, _ in items}
            items += [(name, name, schema[str]) for name in value if name not in named]
        for name, plain, one in items:
            inner = f"{key}.{plain}" if key else plain
            if plain in value:
                wrong_inside = _mismatch(value[plain], one, inner)
                if wrong_inside:
                    return wrong_inside
            elif name == plain:
                return f"it has no {inner}"
        return None
    if isinstance(schema, list) and isinstance(value, list) and len(schema) in (1, len(value)):
        wrong = [
            _mismatch(item, schema[i % len(schema)], f"{key}[{i}]") for i, item in enumerate(value)
        ]
        return next(filter(None, wrong), None)
    if isinstance(schema, type):
        fits = isinstance(value, (int, float) if schema is float else schema)
        if isinstance(value, bool):  # Python counts it as a whole number
            fits = schema in (bool, object)
        elif fits and schema is str:  # TensorFlow does not take lone surrogates
            fits = not any("\ud800" <= letter <= "\udfff" for letter in value)
    else:
        fits = value is None and schema is None
    return None if fits else f"{key or 'its value'} is {repr(value)[:60]}, not {_name(schema)}"


def _name(schema: Any) -> str:
    if isinstance(schema, list) and len(schema) > 1:
        return f"a list of {len(schema)}"
    kind = schema if isinstance(schema, type) else type(schema)
    return _NAMES.get(kind, "null")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raises InputError for the JSON file `path` where the code within raises a Python error.

    Use it for values that have the right types but do not go together.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
