"""Collection format: a list of image files, with a label each if they are labeled.

    manifest:labels.csv      columns file,label, and any others; commas, semicolons or tabs between
                             them
    manifest:labels.json     [{"file": "a.jpg", "label": "cat"}, …]
    manifest:labels.jsonl    one such object a line
    manifest:export.json     an export of Label Studio, see `data.label_studio`

A path is relative to the folder of the list. Labels are text; classes are sorted by name. Memory
holds the list of names, never the images.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cli.errors import InputError, one_line
from cli.files import read_file
from data import label_studio
from data.image_folder import File, FolderImages
from data.sources import Request, printable


class Row(NamedTuple):
    """One row of a list.

    Attributes:
      place: place of the row in the list, such as "line 3".
      values: column -> text, without spaces at its ends; "" if the row has nothing.
    """

    place: str
    values: dict[str, str]


def open_list(request: Request) -> FolderImages:
    """Reads the list of a location.

    Raises:
      InputError: the list cannot be read, has no rows, or lacks a column; a row has no file, or no
        label where one is needed (with "skip" the row is a problem of the collection).
    """
    path, labeled = request.location, request.role != "unlabeled"
    rows: list[tuple[Row, str]] = []
    problems: list[dict[str, str]] = []
    for row in read_rows(path, ("file", "label") if labeled else ("file",), request.error):
        label = unicodedata.normalize("NFC", row.values["label"]) if labeled else ""
        why = _unusable(row.values["file"], label, labeled)
        if why and request.on_error == "fail":
            remedy = "mend the row, or leave such rows out with --config.data.on_error=skip"
            raise request.error(f"({row.place}) {why}; {remedy}")
        if why:
            problems.append({"file": f"{printable(path)}, {row.place}", "why": f"it {why}"})
        else:
            rows.append((row, label))
    if not rows:
        raise request.error(
            "has no row that can be used; each needs a file" + (" and a label" if labeled else "")
        )
    names = tuple(sorted({label for _, label in rows})) if labeled else ()
    number = {name: label for label, name in enumerate(names)}
    name = printable(os.path.basename(path))
    files = [
        File(*located(path, row.values["file"]), number.get(label, -1), f"{name}, {row.place}")
        for row, label in rows
    ]
    listed = FolderImages(sorted(files, key=lambda file: file.key), names, {}, request.convert)
    listed.problems = tuple(problems)
    return listed


def _unusable(file: str, label: str, labeled: bool) -> str:
    """Returns why a row cannot be used; "" if it can."""
    if not file:
        return "names no file"
    if labeled and not label:
        return f"has no label for {printable(file)}"
    return "has a line break in its label" if len(label.splitlines()) > 1 else ""


def located(path: str, name: str) -> tuple[str, str]:
    """Returns the path and the key of a file that the list `path` names.

    The key is the path below the list's folder, or the absolute path of a file elsewhere.
    """
    folder = os.path.dirname(os.path.abspath(path))
    place = os.path.normpath(os.path.join(folder, name))
    inside = place.startswith(folder.rstrip(os.sep) + os.sep)
    key = os.path.relpath(place, folder) if inside else place
    return place, unicodedata.normalize("NFC", key.replace(os.sep, "/"))


def files_of(path: str) -> list[str]:
    """Returns the files that a list names, in its order. Raises InputError."""

    def error(message: str) -> InputError:
        return InputError(f"{printable(path)} {message}")

    rows = read_rows(path, ("file",), error)
    return [located(path, row.values["file"])[0] for row in rows if row.values["file"]]


def read_rows(path: str, columns: tuple[str, ...], error: Callable[[str], InputError]) -> list[Row]:
    """Reads a list.

    Args:
      path: a file; its ending is one of `MANIFEST_ENDINGS`, or it is read as CSV.
      columns: columns that it must have.
      error: makes the error from a description of what is wrong.

    Raises:
      InputError: the list cannot be read, is damaged, or lacks a column.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except OSError as problem:
        raise error(
            f"cannot be read ({problem.strerror}); name a CSV or JSON file with rows of"
            f" {', '.join(columns)}"
        ) from problem
    except UnicodeDecodeError as problem:
        raise error("is not UTF-8; save it as UTF-8") from problem
    read = {".json": _json, ".jsonl": _json_lines}.get(os.path.splitext(path)[1].lower(), _csv)
    try:
        rows = list(read(text))
    except (ValueError, RecursionError, csv.Error) as problem:
        raise error(f"is damaged ({one_line(problem)}); mend it or make it again") from problem
    for row in rows:
        for column in columns:
            if column not in row.values:
                there = ", ".join(map(printable, list(row.values)[:8])) or "nothing"
                raise error(
                    f"({row.place}) has no column {column} (it has {there}); the columns are"
                    f" {', '.join(columns)}"
                )
    return rows


def _csv(text: str) -> Iterator[Row]:
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(reader, [])]
    start = reader.line_num + 1
    for cells in reader:
        place, start = f"line {start}", reader.line_num + 1
        if any(cell.strip() for cell in cells):
            if len(cells) > len(names):
                raise ValueError(f"{place} has {len(cells)} cells for {len(names)} columns")
            yield Row(
                place,
                dict(
                    zip(
                        names,
                        [*(cell.strip() for cell in cells), *[""] * (len(names) - len(cells))],
                    )
                ),
            )


def _json(text: str) -> Iterator[Row]:
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("a list of objects is needed")
    for number, entry in enumerate(entries, 1):
        yield _row(entry, f"entry {number}")


def _json_lines(text: str) -> Iterator[Row]:
    for number, one in enumerate(text.split("\n"), 1):
        if one.strip():
            yield _row(json.loads(one), f"line {number}")


def _row(entry: object, place: str) -> Row:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is not an object")
    if label_studio.is_task(entry):
        try:
            return Row(place, label_studio.values(entry))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    plain = {
        key: value for key, value in entry.items() if value is None or isinstance(value, (str, int))
    }
    return Row(
        place, {key: "" if value is None else str(value).strip() for key, value in plain.items()}
    )
