"""Asks an exported model about image files.

    python -m serving.predict --model=EXPORT_DIR [--format=json] IMAGE…

prints a line an image: file, most probable class, its probability, and the three most probable classes; with
`--format=json` an object a line: `file`, `label`, `probability`, `top`: [[label, probability], …]. EXPORT_DIR is a
SavedModel or the folder with its numbered versions, of which the highest is taken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from serving.versions import resolve
from stages import app
from stages.errors import InputError

SHOWN = 3
BATCH_SIZE = 32

Serve = Callable[..., dict[str, Any]]


class Prediction(NamedTuple):
    """The answer for one image: its `file` and the `top` classes, best first, as (label name, probability 0–1)."""

    file: str
    top: list[tuple[str, float]]


def main(model: str, format: str, arguments: Sequence[str]) -> None:
    """Prints the predictions of `model` for the files `arguments`; see the module.

    Raises:
      InputError: no model, no such file, a file that is not an image. Files before that one have been answered.
    """
    if format not in ("text", "json"):
        raise InputError(f"--format is {format!r}; it can be text or json")
    if not arguments:
        raise InputError("no images; name one or more files: --model=EXPORT_DIR IMAGE…")
    for file in arguments:  # before TensorFlow is loaded: a typing mistake is answered at once
        if not Path(file).is_file():
            raise InputError(
                f"{file} is a directory; name image files" if Path(file).is_dir() else f"{file} does not exist; name image files"
            )
    for prediction in predict(load(model), arguments):
        print(_json(prediction) if format == "json" else _text(prediction), flush=True)


def load(model: str | Path) -> Serve:
    """The `serving_default` signature of an exported model.

    Raises:
      InputError: no SavedModel, one that cannot be read, or one that takes something else than image bytes.
    """
    path = resolve(model)
    import tensorflow as tf  # here, so that wrong usage is told without the seconds that this takes

    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        raise InputError(f"--model: {path} cannot be loaded ({_line(error)}); export it again with run_export.sh") from error
    signature = loaded.signatures.get("serving_default")
    if signature is None or "image_bytes" not in signature.structured_input_signature[1]:
        raise InputError(f"--model: {path} takes no image_bytes; export it with run_export.sh")
    # Not the signature itself: the variables live only as long as the object that they were loaded with.
    return lambda image_bytes: loaded.signatures["serving_default"](image_bytes=image_bytes)


def predict(serve: Serve, files: Sequence[str], batch_size: int = BATCH_SIZE) -> Iterator[Prediction]:
    """Yields the answer for each of the image `files`, in their order.

    Raises:
      InputError: a file cannot be read or is not an image; those before it have been yielded.
    """
    for first in range(0, len(files), batch_size):
        names = files[first : first + batch_size]
        encoded = [_read(name) for name in names]
        try:
            yield from _ask(serve, names, encoded)
        except InputError:
            for name, content in zip(names, encoded):  # one bad image fails its batch; alone it has a name
                yield from _ask(serve, [name], [content])
            raise


def _ask(serve: Serve, names: Sequence[str], encoded: Sequence[bytes]) -> list[Prediction]:
    import tensorflow as tf

    try:
        answer = {name: value.numpy() for name, value in serve(image_bytes=tf.constant(list(encoded))).items()}
    except tf.errors.InvalidArgumentError as error:
        raise InputError(f"{names[0]} is not an image that TensorFlow decodes (JPEG, PNG, BMP, GIF), or is damaged") from error
    rows = zip(names, answer["probabilities"], answer["classes"], answer["labels"])  # (K,), (k,), (k,)
    return [
        Prediction(name, [(label.decode("utf-8"), float(probabilities[c])) for c, label in zip(classes, labels)])
        for name, probabilities, classes, labels in rows
    ]


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from error


def _text(prediction: Prediction) -> str:
    label, probability = prediction.top[0]
    others = ", ".join(f"{name} {p:.3f}" for name, p in prediction.top[:SHOWN])
    return f"{prediction.file}: {label} {100 * probability:.1f} %  (top {len(prediction.top[:SHOWN])}: {others})"


def _json(prediction: Prediction) -> str:
    label, probability = prediction.top[0]
    return json.dumps({"file": prediction.file, "label": label, "probability": probability, "top": prediction.top}, ensure_ascii=False)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


if __name__ == "__main__":
    app.run(
        main,
        {"model": "Exported model: a version, or the folder that holds the versions.", "format": "text or json."},
        optional={"format": "text"},
        config=False,
    )
