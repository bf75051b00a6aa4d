"""What a served classifier says of one image, and how it is shown.

Imports neither TensorFlow nor the rest of the project, so that a client can be as small as it
wants.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

OK, NOT_AN_IMAGE, TOO_LARGE, UNSUPPORTED, NOT_FINITE = range(5)
"""The `status` of an image. Any but OK comes with probabilities of 0, classes of -1 and empty labels."""

OUTPUTS = ("probabilities", "classes", "labels", "status")
"""Of the signature `serving_default`."""

REASONS = (
    "ok",
    "not a JPEG, PNG, BMP or GIF that can be decoded",
    "more pixels than the model accepts",
    (
        "a BMP of an unsupported kind (color table, compressed, or not 8, 24 or 32 bits a pixel);"
        " save it as PNG"
    ),
    "NaN or infinity in the pixels or in the answer",
)

PARQUET = "parquet"
FORMATS = ("text", "table", "jsonl", "json", "csv", PARQUET)
"""`json` is an older name of `jsonl`. `PARQUET` is for files only."""
SHOWN = 3

TOP = 5
"""Classes in a row of a CSV file; a model with fewer leaves cells empty."""
COLUMNS = (
    "file",
    "label",
    "confidence",
    *(f"{name}_{i}" for i in range(2, TOP + 1) for name in ("label", "confidence")),
    "error",
)
"""Names the columns of a CSV file. Confidences are probabilities with six decimals."""


class Answer(NamedTuple):
    """The answer for the image called `file`: its `status`, and the `top` classes, best first, as (label, probability 0–1)."""

    file: str
    status: int
    top: list[tuple[str, float]]


def checked(file: str, status: int, top: list[tuple[str, float]]) -> Answer:
    """Returns the Answer; one whose probabilities are not finite gets the status NOT_FINITE and no classes.

    Exports of this project never give such an answer with status OK, but older ones and other
    models may.
    """
    if status == OK and not all(math.isfinite(probability) for _, probability in top):
        return Answer(file, NOT_FINITE, [])
    return Answer(file, status, top)


def escaped(name: str) -> str:
    """Returns a name of a file or class on one line: line breaks and other control characters as Python escapes them."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL else c
        for c in name
    )


_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of characters (bytes of a name that is not UTF-8), line and paragraph breaks."""


def head(format: str) -> str:
    """Returns what stands above the answers: the names of the columns of `csv`, else nothing."""
    return _csv(COLUMNS) + "\n" if format == "csv" else ""


def line(answer: Answer, format: str, width: int = 0) -> str:
    """One line: `text` for people, `jsonl` and `csv` for programs, `table` in columns with the file name padded to `width`.

    Text and table show names as `escaped` gives them; `width` counts these.
    """
    if format in ("json", "jsonl"):
        return _json(answer)
    if format == "csv":
        cells = [cell for name, p in answer.top[:TOP] for cell in (name, f"{p:.6f}")]
        error = "" if answer.status == OK else reason(answer)
        return _csv([answer.file, *cells, *[""] * (2 * TOP - len(cells)), error])
    file = escaped(answer.file)
    if answer.status != OK:
        return (
            f"{file:<{width}}  {reason(answer)}"
            if format == "table"
            else f"{file}: {reason(answer)}"
        )
    top = [(escaped(name), p) for name, p in answer.top]
    label, probability = top[0]
    if format == "table":
        others = "  ".join(f"{name} {p:.3f}" for name, p in top[1:SHOWN])
        return f"{file:<{width}}  {label:<20}  {100 * probability:5.1f} %  {others}".rstrip()
    others = ", ".join(f"{name} {p:.3f}" for name, p in top[:SHOWN])
    return f"{file}: {label} {100 * probability:.1f} %  (top {len(top[:SHOWN])}: {others})"


def _csv(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(
        cells
    )  # cells with either character are quoted
    return text.getvalue()[:-2]


def _json(answer: Answer) -> str:
    value: dict[str, Any] = {"file": answer.file}
    if answer.status != OK:
        value["error"] = reason(answer)
    else:
        label, probability = answer.top[0]
        value.update({"label": label, "probability": probability, "top": answer.top})
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)  # JSON's own escapes: the output's would not be JSON
    return text


def reason(answer: Answer) -> str:
    """Why there is no answer, in words."""
    return REASONS[answer.status] if answer.status < len(REASONS) else f"status {answer.status}"
