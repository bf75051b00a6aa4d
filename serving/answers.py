"""Answers of a served classifier for one image, and how they are shown.

Imports neither TensorFlow nor the rest of the project, so that a client can be small.
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
"""Values of an image's `status`.

Any but OK comes with probabilities of 0, classes of -1 and empty labels.
"""

OUTPUTS = ("probabilities", "classes", "labels", "status")
"""Outputs of the signature `serving_default`."""

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
"""Formats of the answers. `json` is an older name of `jsonl`. `PARQUET` is for files only."""
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
"""Columns of a CSV file. Confidences are probabilities with six decimals."""


class Answer(NamedTuple):
    """Answer for the image `file`: its `status` and its `top` classes.

    `top` holds (label, probability 0–1), best first.
    """

    file: str
    status: int
    top: list[tuple[str, float]]


def checked(file: str, status: int, top: list[tuple[str, float]]) -> Answer:
    """Returns the Answer; if a probability is not finite, with NOT_FINITE and no classes.

    Exports of this project never give such an answer with status OK, but older ones and other
    models may.
    """
    if status == OK and not all(math.isfinite(probability) for _, probability in top):
        return Answer(file, NOT_FINITE, [])
    return Answer(file, status, top)


def escaped(name: str) -> str:
    """Returns the name of a file or class on one line.

    Line breaks and other control characters are written as Python escapes them.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _CONTROL else c
        for c in name
    )


_CONTROL = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that `escaped` escapes.

They are control characters, surrogates (bytes of a name that is not UTF-8), and line and paragraph
separators.
"""


def head(format: str) -> str:
    """Returns the head above the answers: the names of the columns of `csv`, else nothing."""
    return _csv(COLUMNS) + "\n" if format == "csv" else ""


def line(answer: Answer, format: str, width: int = 0) -> str:
    """Returns an answer as one line.

    `text` is for people, `jsonl` and `csv` are for programs. `table` has columns, with the file
    name padded to `width`. Text and table show names as `escaped` gives them; `width` counts these.
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
    # Cells with either character of the line terminator are quoted.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
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
    """Says in words why there is no answer."""
    return REASONS[answer.status] if answer.status < len(REASONS) else f"status {answer.status}"
