"""Exports a model trained or imported here as weights for timm or for keras.applications.

    # timm's tf_efficientnet_*, with config.json beside it
    ./run_tool.sh export_weights --model=DIR --output=FILE.safetensors
    # tf.keras.applications
    ./run_tool.sh export_weights --model=DIR --output=FILE.h5

The numbers are those of the model, bit for bit. timm reads the first file with `load_state_dict`.
If the file is called model.safetensors, `timm.create_model("local-dir:DIRECTORY",
pretrained=True)` reads it, too. Keras reads the second with `EfficientNetB0(weights=FILE,
classes=K)`; its own normalization layer then holds this model's mean and variance.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before TensorFlow is imported)

# isort: split

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, write_json
from efficientnet.architectures import ARCHITECTURES, BASELINE_STRIDES
from efficientnet.model import EfficientNet
from training import model_dir
from weights import names

TIMM = {
    **{f"b{i}": f"tf_efficientnet_b{i}" for i in range(9)},
    "l2": "tf_efficientnet_l2",
    "l2_475": "tf_efficientnet_l2",
}
KERAS = {f"b{i}": f"EfficientNetB{i}" for i in range(8)}

# Settings of a model that do not change what it computes at inference.
_HARMLESS = {"name", "dropout", "survival_probability", "batch_norm_momentum", "image_size"}


def main(model: str, output: str) -> None:
    """Writes the weights of the model directory `model` to `output`; see the module.

    Raises InputError.
    """
    path = Path(output)
    writers = {
        ".safetensors": (to_timm, TIMM, "timm"),
        ".h5": (to_keras, KERAS, "tf.keras.applications"),
    }
    if path.suffix not in writers:
        raise InputError(
            f"--output: {output} must end in .safetensors (timm) or .h5 (tf.keras.applications)"
        )
    write, twins, library = writers[path.suffix]
    spec = model_dir.read_spec(model)
    name = spec.architecture["name"]
    if name not in twins:
        raise InputError(
            f"--model: {library} has no counterpart of {name}; it has {', '.join(twins)}"
        )
    changed = _changed(spec.architecture)
    if changed:
        raise InputError(f"--model: {library} has no {name} with another {', '.join(changed)}")
    network, spec = model_dir.load(model)
    write(path, network, spec)
    print(f"{name}: {network.count_params():,} parameters to {path}, for {library}'s {twins[name]}")


def _changed(architecture: dict[str, Any]) -> list[str]:
    """Returns the settings with values that make the model another network than its variant."""
    variant = ARCHITECTURES[architecture["name"]]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(EfficientNet).parameters.items()
    }
    defaults.update({"width": variant.width, "depth": variant.depth, "strides": BASELINE_STRIDES})
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in architecture.items()
        if value is not None
    }
    return [
        key for key, value in given.items() if key not in _HARMLESS and value != defaults.get(key)
    ]


def to_timm(path: Path, network: tf.keras.Model, spec: model_dir.ModelSpec) -> None:
    """Writes `path`, and `config.json` beside it in the manner of the Hugging Face hub.

    Raises:
      InputError: the folder holds another `config.json`, or a damaged one.
    """
    config, description = path.with_name("config.json"), _describe(spec)
    if config.exists() and read_json(config) != description:
        raise InputError(
            f"--output: {config} describes another model; name another directory, or delete it"
        )
    values = {
        weight.keras: weight
        for weight in names.of_architecture(spec.architecture, spec.num_classes)
    }
    state: dict[str, np.ndarray] = {}
    for variable in network.weights:
        weight = values[variable.name.partition(":")[0]]
        state[weight.timm] = weight.to_timm(variable.numpy())
        if weight.timm.endswith(".running_var"):
            state[weight.timm.replace("running_var", "num_batches_tracked")] = np.zeros(
                [], np.int64
            )
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(config, description)


def _describe(spec: model_dir.ModelSpec) -> dict[str, Any]:
    """Returns `config.json` in the manner of the Hugging Face hub."""
    prepared = spec.preprocessing
    return {
        "architecture": TIMM[spec.architecture["name"]],
        "num_classes": spec.num_classes,
        "label_names": list(spec.label_names),
        "pretrained_cfg": {
            "input_size": [3, prepared.image_size, prepared.image_size],
            "crop_pct": prepared.image_size / (prepared.image_size + prepared.crop_padding)
            if prepared.style == "imagenet"
            else 1.0,
            "interpolation": "bicubic",
            "mean": [number / 255 for number in prepared.mean],
            "std": [number / 255 for number in prepared.std],
            "num_classes": spec.num_classes,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }


def to_keras(path: Path, network: tf.keras.Model, spec: model_dir.ModelSpec) -> None:
    """Writes `path`, a weight file of the `tf.keras.applications` model with as many classes."""
    build = getattr(tf.keras.applications, KERAS[spec.architecture["name"]])
    theirs = build(weights=None, classes=spec.num_classes)
    variables = {variable.name.partition(":")[0]: variable for variable in theirs.weights}
    for variable in network.weights:
        variables[variable.name.partition(":")[0]].assign(variable)
    normalization = next(
        layer for layer in theirs.layers if isinstance(layer, tf.keras.layers.Normalization)
    )
    mean, std = (
        np.array(numbers) / 255 for numbers in (spec.preprocessing.mean, spec.preprocessing.std)
    )
    normalization.set_weights([mean, std**2, np.zeros([])])
    with atomic_path(path) as temporary:
        named = temporary.with_name(f"{temporary.name}.h5")  # the format goes by the ending
        theirs.save_weights(named)
        named.rename(temporary)
