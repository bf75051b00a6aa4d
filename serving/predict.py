"""Asks an exported model about image files.

    ./run_predict.sh --model=EXPORT_DIR [--format=text|table|jsonl|csv|parquet] [--output=FILE] \
        FILE|DIR|GLOB|CSV|-…

prints a line for each image: file, most probable class, its probability, and the three most
probable classes. A folder stands for the images below it, a glob in quotes for the files that
match, a list for the files that it names (`data.image_list`), and `-` for one image on stdin.
`--format=jsonl` gives an object
a line: `file`, `label`, `probability`, `top`: [[label, probability], …], or `file` and `error`.
`--format=csv` has the columns of `serving.answers.COLUMNS`. EXPORT_DIR is a SavedModel, or a folder
with numbered versions; the highest number is taken. A file that is not an image gets a line that
says so. The others are answered, and the exit code is 2. Text and table escape line breaks in file
names.

With `--output` the rows go to a file. After an interruption the same command continues behind its
last whole batch, and the finished file has the same bytes. `parquet` has the columns of `csv`, and
needs `--output`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cli.errors import InputError
from cli.exif import orientation
from cli.files import read_file
from serving import versions
from serving.answers import FORMATS, OK, OUTPUTS, PARQUET, Answer, checked, escaped, head, line
from serving.inputs import expand
from serving.rows import Rows, digest_of

BATCH_SIZE = 32
AT_ONCE = 2
"""Batches that are read, decoded and classified at the same time on each device.

One keeps the network busy.
"""

Serve = Callable[[Sequence[bytes]], dict[str, Any]]
"""Function of encoded images.

It returns `probabilities` (N, K), `classes` (N, k), `labels` (N, k) as bytes, `status` (N,).
"""


def main(
    model: str,
    format: str,
    arguments: Sequence[str],
    output: str | None = None,
    strategy: str = "auto",
    cpu_devices: int = 1,
    tpu: str = "",
) -> None:
    """Prints or writes the predictions of `model` for the images that `arguments` name.

    See the module. The devices change no prediction.

    Raises:
      InputError: there is no model, or no such file. Or files are not images; this is raised after
        all others have been answered.
    """
    files = find_image_files(format, arguments, output)
    devices = (strategy, cpu_devices, tpu)
    if output is None:
        show(predict(load(model, *devices), files), format, files)
    else:
        version = versions.require_version(model)
        state = "".join(
            f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
            for path in sorted(version.rglob("*"))
        )
        save(
            lambda names: predict(load(version, *devices), names),
            format,
            files,
            output,
            f"{version} {state}",
        )


def find_image_files(format: str, arguments: Sequence[str], output: str | None = None) -> list[str]:
    """Returns the image files that `arguments` name; `-` stands for one image on stdin.

    Raises:
      InputError: an unknown format, or missing files. It is raised before TensorFlow is loaded,
        which takes seconds.
    """
    if format not in FORMATS:
        raise InputError(f"--format is {format!r}; it can be {', '.join(FORMATS)}")
    if format == PARQUET and output is None:
        raise InputError("--format=parquet is not text; add --output=FILE")
    return expand(arguments, stdin=True)


def width(files: Sequence[str]) -> int:
    """Returns the length of the longest file name as it is shown."""
    return max(len(escaped(file)) for file in files)


def show(answers: Iterable[Answer], format: str, files: Sequence[str]) -> None:
    """Prints one line for each answer to `files`.

    Raises:
      InputError: some images have no answer; raised after the last line.
    """
    columns, bad = width(files), []
    print(head(format), end="", flush=True)
    for answer in answers:
        print(line(answer, format, columns), flush=True)
        if answer.status != OK:
            bad.append(answer.file)
    require_good(len(bad), bad[0] if bad else "", len(files))


def save(
    answers: Callable[[Sequence[str]], Iterator[Answer]],
    format: str,
    files: Sequence[str],
    output: str,
    model: str,
) -> None:
    """Writes the answers for `files` to a file, and continues an interrupted command's file.

    Args:
      answers: image files -> their answers.
      format: one of `FORMATS`.
      files: the image files.
      output: the file to write.
      model: text that tells the model from others.

    Raises:
      InputError: the file exists, or holds answers to another request. Or some images have no
        answer; this is raised after the last one.
    """
    from cli.progress import progress  # here: printed answers show themselves how many there are

    rows = Rows(output, format, digest_of(model, format, files), width(files))
    if rows.done:
        print(f"{output}: continues behind {rows.done:,} of {len(files):,} images", file=sys.stderr)
    left = progress(answers(files[rows.done :]), len(files) - rows.done, "predict")
    with contextlib.closing(rows):
        while batch := list(itertools.islice(left, BATCH_SIZE)):
            rows.add(batch)
        rows.finish()
    require_good(rows.bad, rows.first_bad, len(files))
    print(f"{output}: {len(files):,} images")


def require_good(bad: int, first: str, total: int) -> None:
    """Raises InputError where some of `total` images have no answer."""
    if bad:
        more = f" and {bad - 1} more" if bad > 1 else ""
        raise InputError(
            f"{bad} of {total} images could not be used ({escaped(first)}{more}); their lines"
            " say why"
        )


def load(model: str | Path, strategy: str = "auto", cpu_devices: int = 1, tpu: str = "") -> Serve:
    """Loads an exported model on each device and returns its signature `serving_default`.

    Args:
      model: path of the export.
      strategy: see `training.strategy.devices`.
      cpu_devices: number of logical CPU devices, see there.
      tpu: name of the TPU.

    Raises:
      InputError: there is no SavedModel, it cannot be read, or it takes something else than image
        bytes.
    """
    path = versions.require_version(model)

    def one() -> Serve:
        loaded = versions.load(path)
        signature = loaded.signatures.get("serving_default")
        names = (
            (signature.structured_input_signature[1], signature.structured_outputs)
            if signature is not None
            else ((), ())
        )
        require_names(path, *names)

        def serve(encoded: Sequence[bytes]) -> dict[str, Any]:
            import tensorflow as tf

            # `loaded`, not its signature, is what keeps the variables alive.
            answer = loaded.signatures["serving_default"](
                image_bytes=tf.constant(list(encoded), tf.string)
            )
            return {name: value.numpy() for name, value in answer.items()}

        return serve

    import tensorflow as tf  # here: it takes seconds to load

    if strategy == "auto" and cpu_devices == 1 and len(tf.config.list_physical_devices("GPU")) < 2:
        return one()
    import training.strategy
    from training import copies  # here: one device needs nothing of it

    return copies.Copies(
        copies.on_each(training.strategy.devices(strategy, cpu_devices, tpu), one), AT_ONCE
    )


def require_names(path: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raises InputError where the inputs or outputs are not named like an exported classifier's."""
    lacking = [
        *{"image_bytes"}.difference(inputs),
        *(name for name in OUTPUTS if name not in outputs),
    ]
    if lacking:
        raise InputError(
            f"--model: {path} has no {', '.join(lacking)} in its signature serving_default; export"
            " it with run_export.sh"
        )


def predict(serve: Serve, files: Sequence[str], batch_size: int = BATCH_SIZE) -> Iterator[Answer]:
    """Yields the answer for each of the image `files`, in their order.

    A `serve` with `places`, as `load` returns it, is asked about so many batches at a time.

    Raises:
      InputError: a file cannot be read. The answers of the batches before it have been yielded.
    """
    batches = (files[first : first + batch_size] for first in range(0, len(files), batch_size))
    for names, answer in _ahead(
        lambda names: (names, serve([read(name) for name in names])),
        batches,
        getattr(serve, "places", AT_ONCE),
    ):
        # Shapes (), (K,), (k,), (k,).
        rows = zip(
            names, answer["status"], answer["probabilities"], answer["classes"], answer["labels"]
        )
        for name, status, probabilities, classes, labels in rows:
            top = (
                [
                    (label.decode("utf-8"), float(probabilities[c]))
                    for c, label in zip(classes, labels)
                ]
                if status == OK
                else []
            )
            yield checked(name, int(status), top)


def _ahead(
    function: Callable[[Any], Any], items: Iterable[Any], at_once: int = AT_ONCE
) -> Iterator[Any]:
    """Yields `function` of each item in order, and computes `at_once` of them at a time."""
    pool = ThreadPoolExecutor(at_once)
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            if len(waiting) == at_once:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read(name: str) -> bytes:
    """Returns the content of a file, or of stdin for `-`.

    Notes on stderr where its EXIF orientation is ignored.

    Raises:
      InputError: it cannot be read.
    """
    try:
        encoded = sys.stdin.buffer.read() if name == "-" else read_file(name)
    except OSError as error:
        raise InputError(f"{escaped(name)} cannot be read ({error.strerror})") from error
    note_orientation(name, encoded)
    return readable(name, encoded)


def readable(name: str, encoded: bytes) -> bytes:
    """Returns an image as PNG where the model cannot decode its kind.

    Writes a note to stderr where that fails.
    """
    if encoded[:2] in (b"\xff\xd8", b"\x89P", b"GI"):
        return encoded
    from data.convert import to_png  # here: most images need nothing of it

    converted = to_png(encoded)
    if isinstance(converted, str):
        print(f"note: {escaped(name)}: {converted}", file=sys.stderr)
        return encoded
    return converted


def note_orientation(name: str, encoded: bytes) -> None:
    """Notes on stderr where EXIF asks to turn or mirror an image.

    Its pixels are read as stored.
    """
    if orientation(encoded) > 1:
        note = (
            "EXIF asks to turn or mirror the image; its pixels are read as stored, as in training"
        )
        print(f"note: {escaped(name)}: {note}", file=sys.stderr)
