"""The evaluation stage: how good are these models on a split, and how far can their confidence be trusted?

    python -m evaluation.evaluate --config=configs/noisy_student/digits.py --workdir=W --data=D --model=TEACHER,STUDENT [--split=test]

leaves in W, for each model (named as its directory):

    NAME/predictions.npz   keys [N], labels int64 [N], probabilities float32 [N, K], seconds: one row an example, in stored order
    NAME/metrics.json      its metrics, with the reliability table and the confusion matrix
    figures/               reliability.png (all models), confusion.png (the last one), summary.png (both and the accuracies)
    summary.json           last: `split`, `examples`, `top_k`, `figures`, and `models`: name -> metrics

Every example counts exactly once: the number of rows is that of the manifest, and their keys differ. A run that was killed
goes on with the first model that has no predictions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tensorflow as tf

from data.pipeline import eval_batches
from data.records import MANIFEST, Manifest, read_manifest
from evaluation import figures, metrics
from evaluation.metrics import Evaluation
from stages import app
from stages.errors import InputError
from stages.files import atomic_path, write_json
from stages.workdir import finish, require_finished, start
from training import model_dir
from training.model_dir import ModelSpec

TOP_K = 5
_RESERVED = ("figures",)  # names of other things in the work directory


class Predictions(NamedTuple):
    """A model's answers on a split, in the split's order.

    Attributes:
      keys: str [N], unique.
      labels: int64 [N], 0-based.
      probabilities: float32 [N, K].
      seconds: time of the pass, input pipeline included, without building and tracing the model.
    """

    keys: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    seconds: float


def main(config: ml_collections.ConfigDict, workdir: str, data: str, model: str, split: str, arguments: Sequence[str] = ()) -> None:
    """Evaluates each of the comma-separated directories `model` on `data`/`split`; see the module.

    Raises:
      InputError: unusable flags, models that are missing or unfinished or were made for other classes, damaged records.
    """
    if arguments:
        raise InputError(f"unexpected argument {arguments[0]!r}; models are named with --model=DIR,DIR")
    batch_size = config.evaluate.batch_size
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"evaluate.batch_size must be a whole number of at least 1, not {batch_size!r}")
    directories = _named(model)
    manifest = _open_split(data, split)
    specs = {name: model_dir.read_spec(directory) for name, directory in directories.items()}
    for name, spec in specs.items():
        _check_classes(directories[name], spec, manifest)

    inputs = {"data": Path(data), **{f"model {name}": model_dir.run_directory(directory) for name, directory in directories.items()}}
    settings = {"stage": "evaluate", "evaluate": config.evaluate.to_dict(), "split": split, "models": list(directories)}
    done = start(workdir, settings, inputs)
    if done is not None:
        print(f"{workdir} is done: nothing to evaluate")
        print(table(done))
        return

    evaluations, rows = [], {}
    for name, directory in directories.items():
        folder = Path(workdir) / name
        predictions = (
            _read(folder) if (folder / "predictions.npz").exists() else _predict_and_write(directory, manifest, batch_size, folder)
        )
        evaluation = metrics.evaluate(name, predictions.probabilities, predictions.labels, manifest.label_names)
        rows[name] = _row(evaluation, predictions.seconds)
        write_json(folder / "metrics.json", {**rows[name], **_details(evaluation)})
        evaluations.append(evaluation)

    drawn = {name: Path(workdir) / "figures" / f"{name}.png" for name in ("reliability", "confusion", "summary")}
    figures.reliability(evaluations, drawn["reliability"])
    figures.confusion(evaluations[-1], drawn["confusion"])
    figures.summary_figure(evaluations, drawn["summary"])
    summary = {
        "split": split,
        "examples": manifest.num_records,
        "top_k": min(TOP_K, manifest.num_classes),
        "models": rows,
        "figures": {name: str(path) for name, path in drawn.items()},
    }
    finish(workdir, summary)
    print(table(summary))


def predict(model: tf.keras.Model, spec: ModelSpec, manifest: Manifest, batch_size: int) -> Predictions:
    """One pass of `model` over the labelled split of `manifest`.

    Raises:
      InputError: damaged records or images, a label out of range, a key that comes twice, another number of examples than
        the manifest's, or a model whose answers are not finite.
    """
    batches = eval_batches(manifest, batch_size, spec.preprocessing)
    probabilities_of = tf.function(lambda images: tf.nn.softmax(tf.cast(model(images, training=False), tf.float32)))
    probabilities_of = probabilities_of.get_concrete_function(batches.element_spec["image"])  # traced before the clock starts

    keys, labels, probabilities = [], [], []
    started = time.perf_counter()
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            break
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            reason = " ".join(str(error.message).split())[:200]
            raise InputError(f"{manifest.directory} holds a damaged record or image ({reason}); make the data again") from error
        real = batch["weight"].numpy() > 0  # (b,) False in the rows that fill up the last batch
        keys.append(batch["key"].numpy()[real])
        labels.append(batch["label"].numpy()[real])
        probabilities.append(probabilities_of(batch["image"]).numpy()[real])  # (b, K)
    seconds = time.perf_counter() - started

    if not keys:
        raise InputError(f"{manifest.directory} holds no examples; there is nothing to evaluate")
    result = Predictions(_decode(np.concatenate(keys)), np.concatenate(labels), np.concatenate(probabilities), seconds)
    _check_predictions(result, manifest)
    return result


def _check_predictions(result: Predictions, manifest: Manifest) -> None:
    """Every example once, with a label that is a class and an answer that is a number."""
    where = manifest.directory
    if len(result.keys) != manifest.num_records:
        raise InputError(f"{where} holds {len(result.keys)} records, not the {manifest.num_records} of its {MANIFEST}; make the data again")
    unique, counts = np.unique(result.keys, return_counts=True)
    if len(unique) != len(result.keys):
        raise InputError(f"{where} holds the key {unique[counts > 1][0]!r} {counts.max()} times; each example must be evaluated once")
    wrong = (result.labels < 0) | (result.labels >= manifest.num_classes)
    if wrong.any():
        key, label = result.keys[wrong][0], result.labels[wrong][0]
        raise InputError(f"{where}: {key} has no label or the label {label}, outside 0..{manifest.num_classes - 1}; make the data again")
    if not np.isfinite(result.probabilities).all():
        key = result.keys[~np.isfinite(result.probabilities).all(axis=1)][0]
        raise InputError(f"the model's answer for {key} is not finite; train it again")


def _decode(keys: np.ndarray) -> np.ndarray:
    """Keys as unicode strings. Shards made elsewhere have none: their examples are known by their place."""
    if not any(keys):
        return np.array([f"#{i}" for i in range(len(keys))])
    return np.array([key.decode("utf-8") for key in keys])


def _predict_and_write(directory: Path, manifest: Manifest, batch_size: int, folder: Path) -> Predictions:
    model, spec = model_dir.load(directory)
    predictions = predict(model, spec, manifest, batch_size)
    with atomic_path(folder / "predictions.npz") as temporary, open(temporary, "wb") as f:
        np.savez(f, **predictions._asdict())
    return predictions


def _read(folder: Path) -> Predictions:
    with np.load(folder / "predictions.npz") as stored:
        return Predictions(stored["keys"], stored["labels"], stored["probabilities"], float(stored["seconds"]))


def read_predictions(workdir: str | Path, name: str) -> Predictions:
    """The stored answers of model `name` in a finished work directory of this stage. Raises InputError where there are none."""
    models = require_finished(workdir, "evaluation", "run_evaluate.sh").get("models", {})
    if name not in models:
        raise InputError(f"{workdir} holds no evaluation of {name!r}; it has {', '.join(models) or 'none'}")
    return _read(Path(workdir) / name)


def _row(evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    return {
        "top1": evaluation.top1,
        "top1_interval": list(evaluation.top1_interval),
        "top5": evaluation.top5,
        "ece": evaluation.ece,
        "nll": evaluation.nll,
        "examples": evaluation.examples,
        "images_per_second": evaluation.examples / seconds,
    }


def _details(evaluation: Evaluation) -> dict[str, Any]:
    def numbers(values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(value) else float(value) for value in values]  # JSON has no NaN

    bins = evaluation.bins
    return {
        "label_names": list(evaluation.label_names),
        "reliability": {
            "edges": numbers(bins.edges),
            "confidence": numbers(bins.confidence),
            "accuracy": numbers(bins.accuracy),
            "count": bins.count.tolist(),
        },
        "confusion": evaluation.confusion.tolist(),
    }


def table(summary: dict[str, Any]) -> str:
    """The text table of a `summary.json`."""
    head = ("model", "top-1 (95 % interval)", f"top-{summary['top_k']}", "ECE", "NLL", "images/s")
    lines = [head]
    for name, row in summary["models"].items():
        low, high = row["top1_interval"]
        top1 = f"{100 * row['top1']:.2f} % ({100 * low:.1f}-{100 * high:.1f})"
        lines.append(
            (name, top1, f"{100 * row['top5']:.2f} %", f"{row['ece']:.4f}", f"{row['nll']:.4f}", f"{row['images_per_second']:.0f}")
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]) for line in lines]
    return "\n".join([*rows, f"{summary['examples']:,} examples of split {summary['split']}"])


def _named(models: str) -> dict[str, Path]:
    """Comma-separated directories by name: the directory's own, its parent's for a `model/`; -2, -3, … where one comes again."""
    directories = [Path(part) for part in models.split(",") if part.strip()]
    if not directories:
        raise InputError("--model names no directory; give one or more, separated by commas")
    named: dict[str, Path] = {}
    for directory in directories:
        name = stem = model_dir.run_directory(directory).resolve().name or "model"
        number = 1
        while name in named or name in _RESERVED:
            number += 1
            name = f"{stem}-{number}"
        named[name] = directory
    return named


def _open_split(data: str, split: str) -> Manifest:
    require_finished(data, "data directory", "run_prepare_data.sh")
    splits = sorted(path.parent.name for path in Path(data).glob(f"*/{MANIFEST}"))
    if split not in splits:
        raise InputError(f"--split: {data} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    return read_manifest(Path(data) / split, "labeled")


def _check_classes(directory: Path, spec: ModelSpec, manifest: Manifest) -> None:
    ours, theirs = tuple(spec.label_names), tuple(manifest.label_names)
    if len(ours) != len(theirs):
        raise InputError(
            f"{directory} tells {len(ours)} classes apart, {manifest.directory} has {len(theirs)}; evaluate on data of its own classes"
        )
    for i, (mine, its) in enumerate(zip(ours, theirs)):
        if mine != its:
            raise InputError(
                f"class {i} is {mine!r} for {directory}, but {its!r} in {manifest.directory}; evaluate on data of its own classes"
            )


if __name__ == "__main__":
    app.run(
        main,
        {
            "workdir": "Directory to write.",
            "data": "Finished directory of run_prepare_data.sh.",
            "model": "Finished training directories, separated by commas; the last one is the one of interest.",
            "split": "Labelled split of --data.",
        },
        optional={"split": "test"},
    )
