"""Asks an exported model about image files.

    ./run_predict.sh --model=EXPORT_DIR [--format=text|json|table] IMAGE…

prints a line an image: file, most probable class, its probability, and the three most probable classes; with
`--format=json` an object a line: `file`, `label`, `probability`, `top`: [[label, probability], …], or `file` and `error`.
EXPORT_DIR is a SavedModel or a folder with numbered versions, of which the highest is taken. A file that is no image gets a
line that says so; the others are answered, and the exit code is 2. Text and table escape line
breaks in file names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cli.errors import InputError
from cli.exif import orientation
from cli.files import read_file
from serving import versions
from serving.answers import FORMATS, OK, OUTPUTS, Answer, checked, escaped, line

BATCH_SIZE = 32

Serve = Callable[[Sequence[bytes]], dict[str, Any]]
"""Encoded images -> `probabilities` (N, K), `classes` (N, k), `labels` (N, k) as bytes, `status` (N,)."""


def main(model: str, format: str, arguments: Sequence[str]) -> None:
    """Prints the predictions of `model` for the files `arguments`; see the module.

    Raises:
      InputError: no model, no such file, or files that are not images, after all others have been answered.
    """
    check(format, arguments)
    show(predict(load(model), arguments), format, arguments)


def check(format: str, files: Sequence[str]) -> None:
    """Raises InputError for an unknown format and for files that are not there; before TensorFlow is loaded, which takes seconds."""
    if format not in FORMATS:
        raise InputError(f"--format is {format!r}; it can be {', '.join(FORMATS)}")
    if not files:
        raise InputError("no images; name one or more files: IMAGE…")
    for file in files:
        if not os.path.isfile(file):  # pathlib's raises for a name that is too long
            what = "is a directory" if os.path.isdir(file) else "is no regular file" if os.path.exists(file) else "does not exist"
            raise InputError(f"{escaped(file)} {what}; name image files")


def show(answers: Iterable[Answer], format: str, files: Sequence[str]) -> None:
    """Prints a line an answer, for each of `files`.

    Raises:
      InputError: some of them were no answers; after the last one.
    """
    width, bad = max(len(escaped(file)) for file in files), []
    for answer in answers:
        print(line(answer, format, width), flush=True)
        if answer.status != OK:
            bad.append(answer.file)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(f"{len(bad)} of {len(files)} images could not be used ({escaped(bad[0])}{more}); the lines above say why")


def load(model: str | Path) -> Serve:
    """The `serving_default` signature of an exported model.

    Raises:
      InputError: no SavedModel, one that cannot be read, or one that takes something else than image bytes.
    """
    path = versions.resolve(model)
    loaded = versions.load(path)
    signature = loaded.signatures.get("serving_default")
    names = (signature.structured_input_signature[1], signature.structured_outputs) if signature is not None else ((), ())
    require_names(path, *names)

    def serve(encoded: Sequence[bytes]) -> dict[str, Any]:
        import tensorflow as tf

        # `loaded`, not its signature, is what keeps the variables alive.
        answer = loaded.signatures["serving_default"](image_bytes=tf.constant(list(encoded), tf.string))
        return {name: value.numpy() for name, value in answer.items()}

    return serve


def require_names(path: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raises InputError where the names of a signature's inputs and outputs are not those of an exported classifier."""
    lacking = [*{"image_bytes"}.difference(inputs), *(name for name in OUTPUTS if name not in outputs)]
    if lacking:
        raise InputError(f"--model: {path} has no {', '.join(lacking)} in its signature serving_default; export it with run_export.sh")


def predict(serve: Serve, files: Sequence[str], batch_size: int = BATCH_SIZE) -> Iterator[Answer]:
    """Yields the answer for each of the image `files`, in their order.

    Raises:
      InputError: a file cannot be read; those of the batches before it have been yielded.
    """
    for first in range(0, len(files), batch_size):
        names = files[first : first + batch_size]
        answer = serve([read(name) for name in names])
        rows = zip(names, answer["status"], answer["probabilities"], answer["classes"], answer["labels"])  # (), (K,), (k,), (k,)
        for name, status, probabilities, classes, labels in rows:
            top = [(label.decode("utf-8"), float(probabilities[c])) for c, label in zip(classes, labels)] if status == OK else []
            yield checked(name, int(status), top)


def read(name: str) -> bytes:
    """Returns the content of a file, after a note on stderr where its EXIF orientation is not followed.

    Raises:
      InputError: it cannot be read.
    """
    try:
        encoded = read_file(name)
    except OSError as error:
        raise InputError(f"{escaped(name)} cannot be read ({error.strerror})") from error
    note_orientation(name, encoded)
    return encoded


def note_orientation(name: str, encoded: bytes) -> None:
    """Tells on stderr that the pixels of an image are read as stored where EXIF asks to turn or mirror them."""
    if orientation(encoded) > 1:
        note = "EXIF asks to turn or mirror the image; its pixels are read as stored, as in training"
        print(f"note: {escaped(name)}: {note}", file=sys.stderr)
