"""Imports published weights as a model directory that every stage takes.

    ./run_tool.sh import_weights --source=FILE --model=b0 --output=DIR [--labels=FILE|DATA]

FILE is the prefix of a TensorFlow 1 checkpoint of the EfficientNet or Noisy Student releases, a
`tf.keras.applications` `.h5` or `.keras`, or timm's `tf_efficientnet_*` as safetensors. DIR gets
`config.json`, `model/` and, last, `summary.json`, like a training's work directory: it serves as
`--teacher`, `--init` or `--model`. Every variable comes from the file. If a variable is missing,
unexpected or misshapen, it is listed and nothing is written. Only `--head=fresh` leaves the
classifier to be trained.

`model/model.json` records how the images are prepared, and every stage applies it. The central
S / (S + 32) of the short side is cut out and resized to S, bicubic as in TensorFlow 1. Then the
mean and standard deviation are applied that the weights were trained with.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before TensorFlow is imported)

# isort: split

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cli import work_dirs
from cli.errors import InputError
from data import records
from data.preprocessing import CROP_PADDING, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from efficientnet.architectures import ARCHITECTURES
from training import model_dir
from weights import names, weight_files

NORMALIZATIONS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "advprop": ((127.5,) * 3, (127.5,) * 3),
    "lite": ((127.0,) * 3, (128.0,) * 3),  # the authors' lite/efficientnet_lite_builder.py
}
"""Mean and standard deviation of the channels, by the name of `--preprocessing`."""


def main(
    source: str,
    model: str,
    output: str,
    weights: str = "ema",
    labels: str | None = None,
    head: str = "keep",
    preprocessing: str = "auto",
    image_size: int | None = None,
) -> None:
    """Writes `output`, or says that it is done already; see the module. Raises InputError."""
    choices = {
        "model": ARCHITECTURES,
        "weights": ("ema", "raw"),
        "head": ("keep", "fresh"),
        "preprocessing": ("auto", *NORMALIZATIONS),
    }
    for flag, value in (
        ("model", model),
        ("weights", weights),
        ("head", head),
        ("preprocessing", preprocessing),
    ):
        if value not in choices[flag]:
            raise InputError(f"--{flag}: there is no {value!r}; known: {', '.join(choices[flag])}")
    opened = weight_files.open_weights(source, average=weights == "ema")
    spec = describe(
        opened,
        {"name": model},
        labels=labels,
        fresh_head=head == "fresh",
        preprocessing=preprocessing,
        image_size=image_size,
    )
    digests = {"source_sha256": {path.name: records.file_digest(path) for path in opened.files}}
    spec = dataclasses.replace(spec, metadata={**spec.metadata, **digests})
    settings = {"stage": "import_weights", **dataclasses.asdict(spec)}
    if (Path(output) / "summary.json").exists() and work_dirs.start(output, settings):
        print(f"{output} is done: {model} from {source}")
        return
    network = convert(opened, spec, fresh_head=head == "fresh")
    work_dirs.start(output, settings)  # not before the weights are known to fit
    model_dir.save(Path(output) / "model", network, spec)
    parameters = network.count_params()
    work_dirs.finish(
        output, {"parameters": parameters, "classes": spec.num_classes, **spec.metadata}
    )
    mean, std = (
        [round(number, 3) for number in numbers]
        for numbers in (spec.preprocessing.mean, spec.preprocessing.std)
    )
    print(
        f"{model}: {parameters:,} parameters from the {opened.form} {source} in {output};"
        f" {spec.preprocessing.image_size} px, mean {mean}, std {std}, "
        + ("a FRESH, untrained classifier for " if head == "fresh" else "")
        + f"{spec.num_classes} classes"
    )


def describe(
    source: weight_files.WeightFile,
    architecture: dict[str, Any],
    *,
    labels: str | None = None,
    fresh_head: bool = False,
    preprocessing: str = "auto",
    image_size: int | None = None,
) -> model_dir.ModelSpec:
    """Returns what `model.json` will say: architecture, classes, and how to prepare the images.

    Args:
      source: the opened file.
      architecture: `name` and, where they differ from the variant's, `width` and `depth`.
      labels: text file or data directory; None: the classes' numbers.
      fresh_head: whether the classifier is to be a new one.
      preprocessing: "auto", or a name of `NORMALIZATIONS`.
      image_size: side of the images in pixels; None: the variant's.

    Raises:
      InputError: the file and the flags leave classes or normalization open, or contradict.
    """
    label_names = _label_names(labels, weight_files.num_classes(source), fresh=fresh_head)
    return spec_of(
        source,
        architecture,
        label_names,
        fresh_head=fresh_head,
        preprocessing=preprocessing,
        image_size=image_size,
    )


def spec_of(
    source: weight_files.WeightFile,
    architecture: dict[str, Any],
    label_names: tuple[str, ...],
    *,
    fresh_head: bool,
    preprocessing: str,
    image_size: int | None = None,
) -> model_dir.ModelSpec:
    """Does what `describe` does, for classes that are known."""
    mean, std = _normalization(source, preprocessing)
    size = image_size or ARCHITECTURES[architecture["name"]].image_size
    metadata = {
        "source": source.form,
        "head": "fresh" if fresh_head else "imported",
        "crop_fraction": size / (size + CROP_PADDING),
        "interpolation": "TensorFlow 1's bicubic",
    }
    if isinstance(source, weight_files.TensorFlow1):
        metadata["weights"] = "moving averages" if source.average else "raw"
    prepared = Preprocessing(image_size=size, style="imagenet", mean=mean, std=std, flip=True)
    return model_dir.ModelSpec(architecture, prepared, label_names, metadata)


def convert(
    source: weight_files.WeightFile, spec: model_dir.ModelSpec, *, fresh_head: bool = False
) -> tf.keras.Model:
    """Returns the model of `spec` with the weights of `source`.

    Args:
      source: the opened file.
      spec: an EfficientNet, its classes and its preprocessing.
      fresh_head: whether to leave the classifier at its initial weights.

    Raises:
      InputError: a variable is missing, unexpected, misshapen or not finite, or a variance is below
        0. The message lists all of them.
    """
    table = names.of_architecture(spec.architecture, spec.num_classes)
    weight_files.check_shapes(
        source, table, spec.architecture["name"], with_classifier=not fresh_head
    )
    network = spec.build()
    variables = {variable.name.partition(":")[0]: variable for variable in network.weights}
    waiting, problems = set(variables), []
    for weight in table:
        if not (fresh_head and weight.is_classifier):
            value = source.read(weight)
            if not np.isfinite(value).all():
                problems.append(
                    f"{source.name(weight)} holds {np.sum(~np.isfinite(value))} values that are not"
                    " finite"
                )
            elif weight.is_variance and (value < 0).any():
                problems.append(
                    f"{source.name(weight)} holds {np.sum(value < 0)} variances below 0"
                )
            variables[weight.keras].assign(value)
        waiting.remove(weight.keras)
    if problems:
        raise InputError(
            f"--source: the weights in {source.files[0]} are unusable: {'; '.join(problems)}; get"
            " the file again"
        )
    assert not waiting, f"variables without a row in weights/names.py: {sorted(waiting)}"
    return network


def _label_names(labels: str | None, classes: int | None, *, fresh: bool) -> tuple[str, ...]:
    """Returns the classes' names: from --labels, else their numbers."""
    if labels is None:
        if fresh:
            raise InputError("--head=fresh needs --labels, the classes of the new classifier")
        if classes is None:
            raise InputError(
                "--source holds no classifier; give --head=fresh and --labels for a new one, to be"
                " trained"
            )
        return tuple(str(number) for number in range(classes))
    path = Path(labels)
    if path.is_dir():
        work_dirs.require_finished(path, "--labels: data directory", "run_prepare_data.sh")
        found = records.read_manifest(path / "labeled", "labeled").label_names
    elif path.is_file():
        try:
            # Editors on Windows put a mark before the first name.
            text = path.read_text(encoding="utf-8-sig")
        except ValueError as error:
            raise InputError(f"--labels: {labels} is not UTF-8 text; save it as UTF-8") from error
        found = tuple(line.strip() for line in text.splitlines() if line.strip())
    else:
        raise InputError(f"--labels: there is no file or directory {labels}")
    if not found:
        raise InputError(f"--labels: {labels} names no class")
    if len(set(found)) != len(found):
        raise InputError(f"--labels: {labels} names a class twice")
    if not fresh and len(found) != classes:
        has = f"{classes} classes" if classes else "no classifier"
        raise InputError(
            f"--labels: {labels} names {len(found)} classes, the source has {has}; --head=fresh"
            " takes a new classifier, to be trained"
        )
    return found


def _normalization(
    source: weight_files.WeightFile, preprocessing: str
) -> weight_files.Normalization:
    if preprocessing != "auto":
        return NORMALIZATIONS[preprocessing]
    if source.normalization:
        return source.normalization
    if isinstance(source, weight_files.KerasFile):
        raise InputError(
            f"--source: {source.files[0]} holds no normalization layer; say"
            " --preprocessing=imagenet or advprop"
        )
    return NORMALIZATIONS["imagenet"]
