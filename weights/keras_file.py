"""Reads weights that Keras has written: ``.h5``, of the weights or a whole model, and ``.keras``.

Code in a file is not executed, and other files that it refers to are not read.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cli.errors import InputError
from training.hdf5 import datasets
from weights.names import Weight
from weights.weight_file import (
    UNREADABLE,
    Normalization,
    WeightFile,
    checked,
    reason,
    require_bytes,
)


class KerasFile(WeightFile):
    """``tf.keras.applications`` EfficientNet: ``.h5`` (weights or a whole model) or ``.keras``."""

    def __init__(self, path: Path):
        """Reads all names, and the normalization."""
        self.form = "Keras file"
        self.files = (path,)
        try:
            read = _read_keras if path.suffix == ".keras" else _read_h5
            self._values, config = read(path)
            moments = {
                name: self._values.pop(name)
                for name in list(self._values)
                if name.startswith("normalization")
            }
            self.normalization = _normalization(moments, config)
        except UNREADABLE as error:
            raise InputError(
                f"--source: {path} is not a readable Keras file ({reason(error)})"
            ) from error
        self.shapes = {name: value.shape for name, value in self._values.items()}
        self.names = frozenset(self.shapes)

    def name(self, weight: Weight) -> str:
        """See `WeightFile`."""
        return weight.keras

    def read(self, weight: Weight) -> np.ndarray:
        """See `WeightFile`."""
        return self._values[weight.keras]


def _read_h5(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Returns <layer>/<variable> -> value, and the config where the file holds a whole model."""
    with h5py.File(path) as file:
        if "layers" in file and "layer_names" not in file.attrs:
            raise InputError(
                f"--source: {path} is a .weights.h5 of Keras 3's layout, without layer names; save"
                " the model as .keras or .h5"
            )
        config = json.loads(file.attrs["model_config"]) if "model_config" in file.attrs else None
        values: dict[str, np.ndarray] = {}
        for name, dataset in datasets(file).items():
            parts = name.split("/")
            if "model_weights" in file and parts.pop(0) != "model_weights":
                continue
            values[f"{parts[0]}/{parts[-1].partition(':')[0]}"] = np.asarray(
                dataset[()], np.float32
            )
    return values, config


MOST_PACKED = 20
"""Most bytes of an archive's content for each of its bytes; trained weights pack hardly at all."""


SMALL = 1 << 26
"""Bytes of an archive's content that are unpacked, whatever the archive's size."""


_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("depthwise_kernel",),
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
    "Dense": ("kernel", "bias"),
}


def _read_keras(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the same of a ``.keras`` archive.

    The archive numbers the layers of each class in order, and a layer's variables from 0.
    """
    with zipfile.ZipFile(path) as archive:
        require_bytes(
            path,
            sum(member.file_size for member in archive.infolist()),
            max(SMALL, MOST_PACKED * path.stat().st_size),
        )
        config = json.loads(archive.read("config.json"))
        stored = io.BytesIO(archive.read("model.weights.h5"))
    seen: dict[str, int] = {}
    places: dict[str, str] = {}  # in the archive -> <layer>/<variable>
    for layer in config["config"]["layers"]:
        kind, name = layer["class_name"], layer["config"]["name"]
        snake = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
        number = seen[snake] = seen.get(snake, -1) + 1
        group = f"layers/{snake}_{number}" if number else f"layers/{snake}"
        places.update(
            {
                f"{group}/vars/{index}": f"{name}/{variable}"
                for index, variable in enumerate(_VARIABLES.get(kind, ()))
            }
        )
    with h5py.File(stored) as file:
        found = {
            name: dataset
            for name, dataset in datasets(file).items()
            if not name.startswith("optimizer/")
        }
        values = {
            places.get(name, name): np.asarray(dataset[()], np.float32)
            for name, dataset in found.items()
        }
    return values, config


def _normalization(
    moments: dict[str, np.ndarray], config: dict[str, Any] | None
) -> Normalization | None:
    """Returns what the file's own layers do to pixels in 0-255.

    The layers are Rescaling, Normalization, and in some models another Rescaling.

    The files that Keras publishes store the standard deviation instead of the variance.
    ``weights="imagenet"`` corrects it by a second Rescaling by 1 / sqrt(std). A file of
    weights alone does not tell whether its model had that layer. So a "variance" that equals
    ImageNet's standard deviations is taken for standard deviations.
    """
    named = {
        name.partition("/")[2]: value.astype(np.float64).ravel() for name, value in moments.items()
    }
    if len(named) < len(moments):
        raise ValueError("several normalization layers")
    if not {"mean", "variance"} <= set(named):
        return None
    mean, std = named["mean"], np.sqrt(np.maximum(named["variance"], 0))
    layers = [("Rescaling", {"scale": 1 / 255}), ("Normalization", {})]
    if config:
        layers = [_scaling(layer) for layer in config["config"]["layers"]]
    elif np.allclose(named["variance"], (0.229, 0.224, 0.225), rtol=1e-3):
        std = named["variance"]
    a, b = np.ones(1), np.zeros(1)  # a pixel x has become a·x + b
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero is refused below
        for kind, settings in layers:
            if kind == "Rescaling":
                scale, offset = (
                    np.asarray(settings.get(key, 0.0), np.float64) for key in ("scale", "offset")
                )
                a, b = a * scale, b * scale + offset
            elif kind == "Normalization":
                a, b = a / std, (b - mean) / std
        return checked(-b / a, 1 / a)


def _scaling(layer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a layer's class and settings.

    In tf-keras the second Rescaling is an operation, `tf.math.multiply` by a constant.
    """
    kind, settings = layer["class_name"], layer["config"]
    if kind == "TFOpLambda" and settings.get("function") == "math.multiply":
        arguments = layer["inbound_nodes"][0][-1]
        factor = np.ravel(arguments.get("y", ()) if isinstance(arguments, dict) else ())
        if factor.size == 3:
            return "Rescaling", {"scale": factor.tolist()}
    return kind, settings
