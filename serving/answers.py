"""What a served classifier says of one image, and how it is shown.

Imports neither TensorFlow nor the rest of the project, so that a client can be as small as it wants.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

OK, NOT_AN_IMAGE, TOO_LARGE = range(3)
"""The `status` of an image. Any but OK comes with probabilities of 0, classes of -1 and empty labels."""

OUTPUTS = ("probabilities", "classes", "labels", "status")
"""Of the signature `serving_default`."""

REASONS = ("ok", "not a JPEG, PNG, BMP or GIF that can be decoded", "more pixels than the model accepts")

FORMATS = ("text", "json", "table")
SHOWN = 3


class Answer(NamedTuple):
    """The answer for the image called `file`: its `status`, and the `top` classes, best first, as (label, probability 0–1)."""

    file: str
    status: int
    top: list[tuple[str, float]]


def line(answer: Answer, format: str, width: int = 0) -> str:
    """One line: `text` for people, `json` for programs, `table` in columns with the file name padded to `width`."""
    if format == "json":
        return _json(answer)
    if answer.status != OK:
        return f"{answer.file:<{width}}  {reason(answer)}" if format == "table" else f"{answer.file}: {reason(answer)}"
    label, probability = answer.top[0]
    if format == "table":
        others = "  ".join(f"{name} {p:.3f}" for name, p in answer.top[1:SHOWN])
        return f"{answer.file:<{width}}  {label:<20}  {100 * probability:5.1f} %  {others}".rstrip()
    others = ", ".join(f"{name} {p:.3f}" for name, p in answer.top[:SHOWN])
    return f"{answer.file}: {label} {100 * probability:.1f} %  (top {len(answer.top[:SHOWN])}: {others})"


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
