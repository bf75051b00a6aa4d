"""Makes TFLite files for phones and single-board computers, measures them: `run_tool.sh tflite`.

    ./run_tool.sh tflite --workdir=W --model=TRAINING_DIRECTORY --data=DATA_DIRECTORY \
        [--split=test] [--calibration=200]

leaves in W

    float16.tflite   weights as float16 (half the size), sums in float32
    int8.tflite      weights and activations as int8 (a quarter), scales calibrated on labeled
                     images; input and output float32
    table.md         accuracy, agreement and speed of both beside the trained model, on the split
    summary.json     last: the same numbers

A TFLite file takes one image, float32 [1, S, S, 3] in 0–255 as `data.preprocessing.eval_image`
prepares it, and gives probabilities [1, K]: TFLite has no operation that decodes images.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.files import atomic_path
from cli.quiet import silent
from cli.work_dirs import finish, require_finished, say_done, shown, start
from data import protos
from data.preprocessing import Preprocessing, eval_image
from data.records import Manifest, read_manifest, require_same_classes
from data.verification import read_records
from training import model_dir
from training.model_dir import ModelSpec

KINDS = ("float16", "int8")


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      kind: the trained model, or one of `KINDS`.
      top1: accuracy in 0–1.
      agreement: share of the images with the same class as the trained model's, in 0–1.
      deviation: largest difference of a probability from the trained model's.
      bytes: size of the file.
      milliseconds: time for one image.
    """

    kind: str
    top1: float
    agreement: float
    deviation: float
    bytes: int
    milliseconds: float


def main(workdir: str, model: str, data: str, split: str = "test", calibration: int = 200) -> None:
    """Converts `model` and measures the results on `data`/`split`; see the module.

    Raises:
      InputError: unusable flags, a model or data that are missing, unfinished or of other classes.
    """
    spec, run = model_dir.read_spec(model), model_dir.run_directory(Path(model))
    require_finished(data, "data directory", "run_prepare_data.sh")
    labeled, tested = (read_manifest(Path(data) / name, "labeled") for name in ("labeled", split))
    for manifest in (labeled, tested):
        require_same_classes(spec.label_names, model, manifest.label_names, str(manifest.directory))
    config = {"stage": "lite", "split": split, "calibration": calibration}
    done = start(workdir, config, {"model": run, "data": Path(data)})
    if done is not None:
        say_done(workdir, f"{workdir} is done: nothing to convert\n{shown(workdir, done, table)}")
        return

    network, spec = model_dir.load(model)
    spread = max(1, labeled.num_records // calibration)  # over the whole split, not its first shard
    samples = [
        image
        for image, _ in itertools.islice(
            _examples(labeled, spec.preprocessing, spread), calibration
        )
    ]
    files = {}
    for kind in KINDS:
        files[kind] = Path(workdir) / f"{kind}.tflite"
        with atomic_path(files[kind]) as temporary:
            temporary.write_bytes(convert(network, spec, kind, samples))
    rows = measure(network, spec, tested, files)
    summary = {
        "split": split,
        "examples": tested.num_records,
        "calibration_images": len(samples),
        "rows": [row._asdict() for row in rows],
        "files": {kind: str(path) for kind, path in files.items()},
    }
    with atomic_path(Path(workdir) / "table.md") as temporary:
        temporary.write_text(table(summary) + "\n", encoding="utf-8")
    finish(workdir, summary, f"{workdir} is done: nothing to convert\n{table(summary)}")
    print(table(summary))


def convert(
    model: tf.keras.Model, spec: ModelSpec, kind: str, samples: Sequence[np.ndarray]
) -> bytes:
    """Converts `model` (float32 images -> logits), with a softmax, to a TFLite file.

    Args:
      model: the trained model.
      spec: specification of the model.
      kind: one of `KINDS`.
      samples: images float32 [S, S, 3] for the int8 scales.
    """
    size = spec.preprocessing.image_size

    @tf.function(input_signature=[tf.TensorSpec([1, size, size, 3], tf.float32, name="images")])
    def probabilities(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.cast(model(images, training=False), tf.float32))

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [probabilities.get_concrete_function()], model
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    else:
        converter.representative_dataset = lambda: ([sample[np.newaxis]] for sample in samples)
    # The converter writes statistics to stderr from C++, which no setting turns off. Errors are
    # raised all the same.
    with silent():
        return converter.convert()


def run(path: Path, images: Iterable[np.ndarray]) -> tuple[np.ndarray, float]:
    """Runs a TFLite file on the interpreter inside TensorFlow, with one thread.

    Returns:
      (probabilities [N, K], seconds an image).
    """
    with warnings.catch_warnings():
        # The warning is there from TensorFlow 2.18 on, and still in 2.21.
        warnings.filterwarnings(
            "ignore", r"\s*Warning: tf.lite.Interpreter is deprecated", UserWarning
        )
        interpreter = tf.lite.Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers, seconds = [], 0.0
    for image in images:
        interpreter.set_tensor(taken["index"], image[np.newaxis])
        began = time.perf_counter()
        interpreter.invoke()
        seconds += time.perf_counter() - began
        answers.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(answers), seconds / len(answers)


def measure(
    model: tf.keras.Model, spec: ModelSpec, manifest: Manifest, files: dict[str, Path]
) -> list[Row]:
    """Measures the rows of the table, the trained model first.

    The images are read anew for each row. Raises InputError for damaged records or none.
    """
    size = spec.preprocessing.image_size
    forward = tf.function(lambda x: tf.nn.softmax(tf.cast(model(x, training=False), tf.float32)))
    forward(np.zeros([1, size, size, 3], np.float32))  # traces
    right, given, seconds = [], [], 0.0
    for image, label in _examples(manifest, spec.preprocessing):
        began = time.perf_counter()
        given.append(forward(image[np.newaxis]).numpy()[0])
        seconds += time.perf_counter() - began
        right.append(label)
    if len(right) != manifest.num_records or not right:
        raise InputError(
            f"{manifest.directory} holds {len(right)} examples, not {manifest.num_records}, or"
            " none; make the data again"
        )
    expected, labels = np.stack(given), np.array(right)  # (N, K), (N,)
    rows = [
        _row(
            "trained model",
            expected,
            expected,
            labels,
            4 * model.count_params(),
            seconds / len(labels),
        )
    ]
    for kind, path in files.items():
        answers, seconds = run(
            path, (image for image, _ in _examples(manifest, spec.preprocessing))
        )
        rows.append(_row(kind, answers, expected, labels, path.stat().st_size, seconds))
    return rows


def _row(
    kind: str,
    answers: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray,
    size: int,
    seconds: float,
) -> Row:
    classes = answers.argmax(axis=1)
    agreement = float(np.mean(classes == expected.argmax(axis=1)))
    return Row(
        kind,
        float(np.mean(classes == labels)),
        agreement,
        float(np.abs(answers - expected).max()),
        size,
        1000 * seconds,
    )


def _examples(
    manifest: Manifest, preprocessing: Preprocessing, every: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields one in `every` examples of a labeled split, in stored order.

    Each is (image float32 [S, S, 3], label counted from 0).

    Raises:
      InputError: a damaged record or image, or a label that is not a class.
    """
    for number, encoded, label in encoded_examples(manifest, every):
        try:
            image = eval_image(encoded, preprocessing).numpy()
        except tf.errors.OpError as error:
            raise _unusable(manifest, number, error) from error
        yield image, label


def encoded_examples(manifest: Manifest, every: int = 1) -> Iterator[tuple[int, tf.Tensor, int]]:
    """Yields one in `every` examples of a labeled split, in stored order, not decoded.

    Each is (record number, encoded image (string), label).

    Raises:
      InputError: a damaged record, or a label that is not a class.
    """
    for number, example in labeled_examples(manifest, range(0, manifest.num_records, every)):
        yield number, example["image/encoded"], int(example["label"])


def labeled_examples(
    manifest: Manifest, numbers: Container[int]
) -> Iterator[tuple[int, dict[str, tf.Tensor]]]:
    """Yields (record number, example) of a labeled split, in stored order, images not decoded.

    Args:
      manifest: the split.
      numbers: record numbers that are wanted. All records are read and verified.

    Raises:
      InputError: a damaged record, or a label that is not a class.
    """
    serialized = (
        record for shard in range(len(manifest.files)) for record in read_records(manifest, shard)
    )
    for number, record in enumerate(serialized):
        if number not in numbers:
            continue
        try:
            example = protos.parse_example(tf.constant(record), manifest.label_offset)
        except tf.errors.OpError as error:
            raise _unusable(manifest, number, error) from error
        label = int(example["label"])
        if not 0 <= label < manifest.num_classes:
            raise InputError(
                f"{manifest.directory}: record {number} has no label or the label {label}; make the"
                " data again"
            )
        yield number, example


def _unusable(manifest: Manifest, number: int, error: tf.errors.OpError) -> InputError:
    reason = " ".join(str(error.message).split())[:200]
    return InputError(
        f"{manifest.directory}: record {number} cannot be used ({reason}); make the data again"
    )


def table(summary: dict[str, Any]) -> str:
    """Returns the Markdown table of a `summary.json`."""
    lines = [
        "| | top-1 % | same class % | largest difference of a probability | KiB | ms an image |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        numbers = (
            f"{100 * row['top1']:.2f} | {100 * row['agreement']:.2f} | {row['deviation']:.2g} |"
            f" {row['bytes'] / 1024:,.0f}"
        )
        lines.append(f"| {row['kind']} | {numbers} | {row['milliseconds']:.2f} |")
    lines.append(
        f"\n{summary['examples']:,} images of split {summary['split']},"
        f" {summary['calibration_images']} for calibration, one at a time"
    )
    return "\n".join(lines)
