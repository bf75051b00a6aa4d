"""Opens what `--init` names: published weights, a file of weights, or a work directory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from cli.errors import InputError
from cli.files import file_digest
from data.preprocessing import Preprocessing
from nets import keras_cv_backbones, keras_cv_networks
from training.initial import Initial, of_directory
from training.model_dir import ModelSpec
from weights import import_weights, names, published, weight_files

OF_TRAINING = ("dropout", "survival_probability", "batch_norm_momentum")
"""Settings of `model` that published weights leave to the recipe."""


def find(text: str, model: Mapping[str, Any]) -> Initial:
    """Opens the weights that a training starts from; downloads published ones that are missing.

    Args:
      text: NAME or NAME:NETWORK of `weights.published`, keras_cv/PRESET, a file or directory that
        `weights.weight_files` reads, or a finished work directory.
      model: the recipe's network. A file must fit it; for NAME, its name chooses the weights.

    Returns:
      The network and its weights; `spec.architecture` is the network to train.

    Raises:
      InputError: `text` names no weights, or they do not fit.
    """
    if text.startswith(keras_cv_backbones.PREFIX):
        with _named(text):
            return _of_preset(
                text, model, keras_cv_networks.fetch(text.removeprefix(keras_cv_backbones.PREFIX))
            )
    row = published.find(text, model["name"])
    if row:
        with _named(text):
            return _of_file(text, published.locate(row), {"name": row.network}, model, row)
    path = Path(text)
    if path.is_dir() and not ((path / "model.safetensors").exists() or any(path.glob("*.index"))):
        return of_directory(text)
    if not os.path.lexists(path) and not Path(f"{text}.index").exists():
        raise published.unknown(text)
    with _named(text):
        return _of_file(
            text,
            path,
            {key: value for key, value in model.items() if value is not None},
            model,
            None,
        )


def preview(text: str, model: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the network to train and a line about its weights; downloads nothing.

    Raises:
      InputError: see `find`.
    """
    if text.startswith(keras_cv_backbones.PREFIX):
        with _named(text):
            return dict(_of_preset(text, model, ()).spec.architecture), text
    row = published.find(text, model["name"])
    if row is None:
        return dict(find(text, model).spec.architecture), text
    location = row.source
    if not row.is_here and row.package:
        location = f"not installed: {published.install_command(row.package)}"
    elif not row.is_here:
        location = f"to be downloaded from {row.url} to {row.cached}"
    return {"name": row.network, **_of_training(model)}, f"{row.name}:{row.network}, {location}"


def _of_training(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in OF_TRAINING if model.get(key) is not None}


def _of_preset(text: str, model: Mapping[str, Any], files: Sequence[Path]) -> Initial:
    """Describes published weights of keras-cv; `files` hold them."""
    preset = text.removeprefix(keras_cv_backbones.PREFIX)
    name = keras_cv_backbones.of_preset(preset)
    has_classifier = preset.endswith("_classifier")
    spec = ModelSpec(
        {"name": name, **_of_training(model)},
        Preprocessing(
            image_size=keras_cv_backbones.find(name).image_size,
            style="imagenet",
            mean=keras_cv_networks.MEAN,
            std=keras_cv_networks.STD,
            flip=True,
        ),
        tuple(str(number) for number in range(1000 if has_classifier else 1)),
        {
            "source": "keras-cv",
            "head": "imported" if has_classifier else "fresh",
            "init": {
                "weights": text,
                "sha256": {file.name: _digest(file, file.stat().st_mtime_ns) for file in files},
            },
        },
    )

    def load() -> tf.keras.Model:
        network = spec.build()
        with _named(text):
            keras_cv_networks.load_preset(network, preset)
        return network

    return Initial(text, spec, load, spec.metadata["init"])


def _of_file(
    text: str,
    path: Path,
    architecture: Mapping[str, Any],
    model: Mapping[str, Any],
    row: published.Published | None,
) -> Initial:
    """Opens a file of weights for a network."""
    opened, digests = _opened(path, path.stat().st_mtime_ns if path.exists() else 0)
    classes = weight_files.num_classes(opened)
    table = names.of_architecture(architecture, classes or 1)
    weight_files.check_shapes(
        opened, table, architecture["name"], with_classifier=classes is not None
    )
    spec = import_weights.spec_of(
        opened,
        {**architecture, **_of_training(model)},
        tuple(str(number) for number in range(classes or 1)),
        fresh_head=classes is None,
        preprocessing=row.preprocessing if row else "auto",
    )
    source = {"weights": f"{row.name}:{row.network}" if row else text, "sha256": digests}
    spec = dataclasses.replace(spec, metadata={**spec.metadata, "init": source})
    return Initial(
        text, spec, functools.partial(_load, text, opened, spec, classes is None), source
    )


@functools.lru_cache(maxsize=2)
def _opened(path: Path, changed: int) -> tuple[weight_files.WeightFile, dict[str, str]]:
    """Opens a file, and computes the SHA-256 of its parts by name; a stage asks several times."""
    opened = weight_files.open_weights(path, average=True)
    return opened, {file.name: file_digest(file) for file in opened.files}


@functools.lru_cache(maxsize=4)
def _digest(path: Path, changed: int) -> str:
    return file_digest(path)


def _load(
    text: str, opened: weight_files.WeightFile, spec: ModelSpec, fresh_head: bool
) -> tf.keras.Model:
    with _named(text):
        return import_weights.convert(opened, spec, fresh_head=fresh_head)


@contextlib.contextmanager
def _named(text: str) -> Iterator[None]:
    """Puts `--init` into the messages of readers that also serve `--source`."""
    try:
        yield
    except InputError as error:
        message = str(error).removeprefix("--source: ").removeprefix("--source ")
        raise InputError(f"--init={text}: {message}") from error
