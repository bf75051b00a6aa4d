"""Writes answers to a file, so that a killed command goes on where it was.

    FILE.part        the rows that are whole, and perhaps a piece of the next
    FILE.part.json   how many rows are whole, in how many bytes, and the request that they belong to

Rows are added a batch at a time. The file gets its own name last.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, write_json
from serving.answers import COLUMNS, OK, PARQUET, Answer, head, line

ROWS_IN_MEMORY = 10_000
"""Rows of a Parquet file that are held in memory at a time."""

_NOTE = {"asked": str, "rows": int, "bytes": int, "bad": int, "first_bad": str}


def digest_of(model: str, format: str, files: Sequence[str]) -> str:
    """Returns a digest of a request: the model, the format, and the files with sizes and times."""
    digest = hashlib.sha256(f"{model}\0{format}\0".encode("utf-8", "surrogateescape"))
    for name in files:
        try:
            status = os.stat(name)
            state = f"{status.st_size} {status.st_mtime_ns}" if os.path.isfile(name) else ""
        except OSError:  # the prediction says why
            state = "missing"
        digest.update(f"{name}\0{state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class Rows:
    """A file of answers that is being written.

    Args:
      path: the file to write; it must not exist.
      format: one of `serving.answers.FORMATS`.
      request: what `digest_of` returns; rows of another request are refused.
      width: width of the file names, in the format `table`.

    Attributes:
      done: number of rows that are there already.
      bad: how many of them are not answers.
      first_bad: file of the first of these.

    Raises:
      InputError: the file exists, or rows of another request are there.
    """

    def __init__(self, path: str, format: str, request: str, width: int = 0) -> None:
        self._path, self._format, self._request, self._width = (
            Path(path).expanduser(),
            format,
            request,
            width,
        )
        if os.path.lexists(self._path):
            raise InputError(f"--output: {path} exists; delete it, or name another file")
        if format == PARQUET and importlib.util.find_spec("pyarrow") is None:
            raise InputError(
                "--format=parquet needs the package pyarrow; install it, or take --format=csv"
            )
        self._part = self._path.with_name(f"{self._path.name}.part")
        self._note = self._path.with_name(f"{self._path.name}.part.json")
        self.done, self.bad, self.first_bad, size = 0, 0, "", 0
        if self._part.exists() and self._note.exists():
            note = read_json(self._note, _NOTE)
            if note["asked"] != request:
                raise InputError(
                    f"{self._part} belongs to another model, format or set of images; delete it, or"
                    " name another --output"
                )
            if self._part.stat().st_size >= note["bytes"]:
                self.done, self.bad, self.first_bad, size = (
                    note["rows"],
                    note["bad"],
                    note["first_bad"],
                    note["bytes"],
                )
        self._size = size
        self._file: IO[bytes] | None = None

    def _open(self) -> IO[bytes]:
        """Opens the file of whole rows, only when there is a row to add."""
        if self._file is None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            file = open(self._part, "ab")  # noqa: SIM115 (open until `finish`)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise InputError(
                    f"another process writes {self._part}; wait until it ends, or end it"
                ) from error
            if os.path.lexists(self._path) or os.fstat(file.fileno()).st_size < self._size:
                if not os.fstat(file.fileno()).st_size:
                    self._part.unlink(missing_ok=True)  # this call has made it
                file.close()
                raise InputError(
                    f"another process has finished {self._path} meanwhile, or changed {self._part};"
                    " look at both"
                )
            file.truncate(self._size)
            if not self._size:
                file.write(_encoded(head(self._rows_as)))
            self._file = file
        return self._file

    @property
    def _rows_as(self) -> str:
        return "csv" if self._format == PARQUET else self._format

    def add(self, answers: Sequence[Answer]) -> None:
        """Writes one batch. Raises InputError where another process writes the same file."""
        file = self._open()
        file.write(
            b"".join(
                _encoded(line(answer, self._rows_as, self._width) + "\n") for answer in answers
            )
        )
        file.flush()
        bad = [answer.file for answer in answers if answer.status != OK]
        self.done, self.bad = self.done + len(answers), self.bad + len(bad)
        self.first_bad = self.first_bad or (bad or [""])[0]
        counts = {
            "rows": self.done,
            "bytes": file.tell(),
            "bad": self.bad,
            "first_bad": self.first_bad,
        }
        write_json(self._note, {"asked": self._request, **counts})

    def close(self) -> None:
        """Closes the file of rows, finished or not."""
        if self._file is not None:
            self._file.close()

    def finish(self) -> None:
        """Gives the file its name."""
        file = self._open()
        file.flush()
        if self._format == PARQUET:
            _write_parquet(self._part, self._path)
            self._part.unlink()
        else:
            os.fsync(file.fileno())
            os.replace(self._part, self._path)
        self._note.unlink(missing_ok=True)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a name that is not UTF-8 keeps its bytes


def _write_parquet(rows: Path, path: Path) -> None:
    """Turns a CSV file of answers into a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    types = [
        pyarrow.float64() if name.startswith("confidence") else pyarrow.string() for name in COLUMNS
    ]
    schema = pyarrow.schema(list(zip(COLUMNS, types)))
    with (
        atomic_path(path) as temporary,
        pyarrow.parquet.ParquetWriter(str(temporary), schema) as writer,
    ):
        for block in _blocks(rows):
            cells = [
                [(float(cell) if numbers else _valid(cell)) if cell else None for cell in column]
                for column, numbers in zip(
                    zip(*block), (type_ == pyarrow.float64() for type_ in types)
                )
            ]
            writer.write_table(pyarrow.table(dict(zip(COLUMNS, cells)), schema))


def _valid(text: str) -> str:
    """Returns a text with its lone surrogates, which Arrow refuses, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _blocks(rows: Path) -> Iterator[list[list[str]]]:
    with open(rows, encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        block: list[list[str]] = []
        for row in reader:
            block.append(row)
            if len(block) == ROWS_IN_MEMORY:
                yield block
                block = []
        if block:
            yield block
