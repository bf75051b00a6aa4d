"""Compares one model as a SavedModel, as ONNX and as TFLite: answers, time and size.

    ./run_benchmarks.sh formats [--trained=TRAINING_DIRECTORY] [--rounds=20]

prints a JSON object a line, then a table. Without `--trained` the network is an untrained
EfficientNet-B0 at 224 pixels with 1,000 classes. All formats get the same prepared pixels in one
process, in turn, so that a busy machine is busy for all of them. Times are CPU seconds, over all
threads of the process; the last columns are wall-clock times. A TFLite file takes one image at a
time. The last line says by how much two JPEG decoders differ on one file.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli  # noqa: F401  (before TensorFlow: it sets TensorFlow's log level)

# isort: split

import numpy as np
import PIL.Image
import tensorflow as tf

from benchmarks import report
from benchmarks.serving import picture
from cli.quiet import silent
from data.preprocessing import Preprocessing, decode
from serving import lite, onnx_file
from serving.signatures import Classifier
from training import model_dir
from training.model_dir import ModelSpec

BATCH = 32
CALIBRATION = 16

Run = Callable[[np.ndarray], np.ndarray]


def main(trained: str | None = None, rounds: int = 20) -> None:
    """Runs all of it. Raises InputError where the model cannot be read or converted."""
    if trained:
        network, spec = model_dir.load(trained)
    else:
        names = tuple(str(i) for i in range(1000))
        spec = ModelSpec({"name": "b0"}, Preprocessing(image_size=224, style="imagenet"), names)
        network = spec.build()
    size = spec.preprocessing.image_size
    images = smooth_images(BATCH, size)
    expected = tf.nn.softmax(tf.cast(network(images, training=False), tf.float32)).numpy()
    with tempfile.TemporaryDirectory() as scratch:
        formats = write(Path(scratch), network, spec, images[:CALIBRATION])
        print(table(formats, images, expected, rounds))
    decoders()


def smooth_images(count: int, size: int) -> np.ndarray:
    """Returns prepared images of smooth random colors, float32 [count, size, size, 3] in 0–255."""
    colors = np.random.Generator(np.random.PCG64([size])).uniform(0, 255, (count, 4, 4, 3))
    return tf.clip_by_value(tf.image.resize(colors, [size, size], "bicubic"), 0, 255).numpy()


def write(
    folder: Path, network: tf.keras.Model, spec: ModelSpec, samples: np.ndarray
) -> dict[str, tuple[Run, int, bool]]:
    """Writes every format.

    Returns:
      name -> (images to probabilities, bytes on disk, whether it takes batches).
    """
    formats: dict[str, tuple[Run, int, bool]] = {}
    for name, options in (("SavedModel", {}), ("SavedModel --optimize", {"fold": True})):
        path, module = folder / name, Classifier(network, spec, **options)
        tf.saved_model.save(
            module, str(path), signatures={"predict_prepared": module.functions["predict_prepared"]}
        )
        bytes_on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        formats[name] = (_saved_model(path), bytes_on_disk, True)
    for weights in onnx_file.LIMITS:
        path = folder / f"{weights}.onnx"
        path.write_bytes(onnx_file.convert(network, spec, {}, weights))
        formats[f"ONNX {weights}"] = (_onnx(path), path.stat().st_size, True)
    for kind in lite.KINDS:
        path = folder / f"{kind}.tflite"
        path.write_bytes(lite.convert(network, spec, kind, list(samples)))
        formats[f"TFLite {kind}"] = (_tflite(path), path.stat().st_size, False)
    return formats


def _saved_model(path: Path) -> Run:
    loaded = tf.saved_model.load(str(path))

    def run(images: np.ndarray, kept: Any = loaded) -> np.ndarray:
        return kept.signatures["predict_prepared"](images=tf.constant(images))[
            "probabilities"
        ].numpy()

    return run


def _onnx(path: Path) -> Run:
    session = onnx_file.session_of(path)
    return lambda images: session.run(["probabilities"], {"images": images})[0]


def _tflite(path: Path) -> Run:
    with silent():  # the interpreter prints one line
        interpreter = tf.lite.Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def one(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], image[np.newaxis])
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])[0]

    return lambda images: np.stack([one(image) for image in images])


def table(
    formats: dict[str, tuple[Run, int, bool]], images: np.ndarray, expected: np.ndarray, rounds: int
) -> str:
    """Measures all formats, prints a result for each, and returns the Markdown table."""
    runs = {name: run for name, (run, _, _) in formats.items()}
    answers = {name: run(images) for name, run in runs.items()}  # the first runs are slower, too
    single = {
        name: lambda run=run: [run(image[np.newaxis]) for image in images[:4]]
        for name, run in runs.items()
    }
    alone = {
        name: (wall / 4, cpu / 4)
        for name, (wall, cpu) in report.interleaved(rounds, **single).items()
    }
    batches = {
        name: lambda run=runs[name]: run(images) for name, (_, _, takes) in formats.items() if takes
    }
    together = {
        name: (w / len(images), cpu / len(images))
        for name, (w, cpu) in report.interleaved(rounds, **batches).items()
    }
    lines = [
        (
            "| | largest difference of a probability | same class % | MiB | CPU ms an image: alone"
            " | in batches of 32 | wall ms: alone | in batches of 32 |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (_, size, _) in formats.items():
        difference = float(np.abs(answers[name] - expected).max())
        same = 100 * float(np.mean(answers[name].argmax(axis=1) == expected.argmax(axis=1)))
        for case, times in (("alone", alone), ("batch", together)):
            if name != "SavedModel" and name in times:
                ours, peer = 1 / times[name][1], 1 / times["SavedModel"][1]
                label = f"formats/{name.replace(' ', '_').replace('--', '')}_{case}"
                report.line(label, ours, peer, "SavedModel", goal=1.0, unit="images/CPU second")
        shown = [
            f"{1000 * times[name][kind]:.2f}" if name in times else ""
            for kind in (1, 0)
            for times in (alone, together)
        ]
        lines.append(
            f"| {name} | {difference:.1e} | {same:.1f} | {size / 2**20:.1f} | {' | '.join(shown)} |"
        )
    return "\n".join(lines)


def decoders() -> None:
    """Prints how far TensorFlow's and Pillow's pixels of one JPEG are apart, in gray levels."""
    for options in ({"subsampling": 0}, {"subsampling": 2}):
        pixels = PIL.Image.open(io.BytesIO(picture(500, 375))).convert("RGB")
        file = io.BytesIO()
        pixels.save(file, "JPEG", quality=90, **options)
        ours = decode(tf.constant(file.getvalue())).numpy().astype(int)
        theirs = np.asarray(PIL.Image.open(file).convert("RGB")).astype(int)
        apart = np.abs(ours - theirs)
        found = {
            "largest": int(apart.max()),
            "mean": round(float(apart.mean()), 4),
            "different_percent": round(100 * float((apart > 0).mean()), 2),
        }
        print(
            json.dumps(
                {
                    "details": "formats/decoders_tensorflow_pillow",
                    "chroma": ("4:4:4", "", "4:2:0")[options["subsampling"]],
                    **found,
                }
            ),
            flush=True,
        )
