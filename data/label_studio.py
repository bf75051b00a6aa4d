"""Label Studio's JSON: reads its export as a list of labels, and writes tasks with predictions.

Label Studio's documentation defines the formats: "Label Studio Task Format" (tasks with
`annotations`) and "Import pre-annotated data into Label Studio" (tasks with `predictions`). A label
is the one choice of a result of type `choices`. Images must be local files, which Label Studio
serves as `/data/local-files/?d=PATH`.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

IMAGE, CHOICES = "image", "label"
"""Names of the two tags of the labeling interface, see `interface`."""

_LOCAL = "/data/local-files/"


def is_task(entry: Mapping[str, Any]) -> bool:
    """Tells whether an object of a JSON list is a task of Label Studio."""
    return isinstance(entry.get("data"), dict) and isinstance(
        entry.get("annotations", entry.get("predictions")), list
    )


def values(task: Mapping[str, Any]) -> dict[str, str]:
    """Returns the columns of a task: `file`, `label`, and `checked`.

    `checked` says that a person gave the label. A task without an annotation, or with a skipped
    one, has the label "".

    Raises:
      ValueError: the image is not a local file, or there are several labels.
    """
    data = task["data"]
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    image = texts.get(IMAGE) or (next(iter(texts.values())) if len(texts) == 1 else "")
    if not image:
        raise ValueError(
            f"its data has no {IMAGE} (it has {', '.join(map(str, data)) or 'nothing'})"
        )
    labels = sorted(set(_choices(task)))
    if len(labels) > 1:
        raise ValueError(f"{image} has several labels ({', '.join(labels)}); agree on one")
    label = labels[0] if labels else ""
    return {"file": _path(image), "label": label, "checked": "yes" if label else ""}


def _choices(task: Mapping[str, Any]) -> list[str]:
    annotations = [
        one
        for one in task.get("annotations") or ()
        if isinstance(one, dict) and not one.get("was_cancelled")
    ]
    results = [
        result
        for one in annotations
        for result in one.get("result") or ()
        if isinstance(result, dict)
    ]
    found = [result.get("value") for result in results if result.get("type") == "choices"]
    return [
        str(choice).strip()
        for value in found
        if isinstance(value, dict)
        for choice in value.get("choices") or ()
    ]


def _path(image: str) -> str:
    """Returns the path of a local file that a task names. Raises ValueError for another image."""
    parts = urllib.parse.urlsplit(image)
    if parts.path == _LOCAL:
        path = urllib.parse.parse_qs(parts.query).get("d", [""])[0]
        if path:
            return path
    elif parts.scheme == "file":
        return urllib.parse.unquote(parts.path)
    elif len(parts.scheme) < 2 and not image.startswith("/data/upload/"):
        return image
    raise ValueError(
        f"{image} is not a local file; give the images to Label Studio as local files, "
        f"{_LOCAL}?d=PATH"
    )


def task(file: str, label: str, score: float, model: str, ask: str) -> dict[str, Any]:
    """Returns a task for an image, with its label as a prediction.

    Args:
      file: absolute path of the image.
      label: its class.
      score: probability of the class, 0-1.
      model: name of the model.
      ask: why a person should look at it.
    """
    value = {
        "from_name": CHOICES,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [label]},
    }
    data = {IMAGE: f"{_LOCAL}?d={urllib.parse.quote(file)}", "ask": ask}
    return {
        "data": data,
        "predictions": [{"model_version": model, "score": score, "result": [value]}],
    }


def interface(label_names: Sequence[str]) -> str:
    """Returns the labeling interface that the tasks need.

    Paste it into a project's settings.
    """
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in label_names)
    return (
        f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}"/>\n  <Choices name="{CHOICES}"'
        f' toName="{IMAGE}" choice="single">\n{choices}\n  </Choices>\n</View>\n'
    )
