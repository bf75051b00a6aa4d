"""Reads published weights: TensorFlow 1 checkpoints, Keras, timm and old PyTorch files.

Each format becomes a :class:`WeightFile`: which variables it holds under its own names, and how to
read one of them in Keras's layout. Keras files are ``.h5`` or ``.keras``, timm's are safetensors,
PyTorch's are old state dicts. Code in a file is not executed, and other files that it refers to are
not read. No value is used before :func:`check_shapes` has compared every name and every shape.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors import safe_open

from cli.errors import InputError
from cli.files import plain_path
from cli.json_files import read_json
from efficientnet.architectures import ARCHITECTURES
from weights.keras_file import KerasFile
from weights.names import Weight, weights
from weights.torch_file import PyTorch
from weights.weight_file import (
    UNREADABLE,
    Normalization,
    WeightFile,
    checked,
    reason,
    require_bytes,
)

AVERAGE = "/ExponentialMovingAverage"


def open_weights(source: str | Path, *, average: bool) -> WeightFile:
    """Opens a file of weights in any of the formats.

    Args:
        source: the prefix of a TensorFlow 1 checkpoint (``…/model.ckpt``), or its directory; a
            Keras ``.h5`` or ``.keras``; timm's ``.safetensors``, or the directory that holds
            ``model.safetensors`` and ``config.json``; a ``.pth`` of EfficientNet-PyTorch.
        average: whether to take the moving averages of a TensorFlow 1 checkpoint, or else the raw
          variables. The other formats hold one set.

    Raises:
        InputError: the file has none of these formats, is damaged, or is a plain timm EfficientNet,
          which has another padding and normalization.
    """
    path = Path(source)
    if path.is_dir():
        path = _in_directory(path)
    if Path(f"{path}.index").exists():
        return TensorFlow1(path, average)
    if not path.is_file():
        raise InputError(f"--source: there is no file {path}, and no checkpoint {path}.index")
    if path.suffix == ".safetensors":
        return Timm(path)
    if path.suffix in (".h5", ".hdf5", ".keras"):
        return KerasFile(path)
    if path.suffix in (".pth", ".pt"):
        return PyTorch(path)
    raise InputError(
        f"--source: the format of {path} is unknown; give a TensorFlow 1 checkpoint (its prefix, "
        "…/model.ckpt), .h5, .keras, .safetensors or .pth"
    )


def _in_directory(directory: Path) -> Path:
    """Finds the weights in a directory.

    A release's `checkpoint` file may name a path on the machine where it was written.
    """
    if (directory / "model.safetensors").exists():
        return directory / "model.safetensors"
    found = [index.with_suffix("") for index in directory.glob("*.index")]
    if len(found) > 1:
        try:
            latest = tf.train.latest_checkpoint(str(directory))
        except ValueError:  # `checkpoint` is not text
            latest = None
        found = [Path(latest)] if latest else found
    if len(found) != 1:
        raise InputError(
            f"--source: {directory} holds neither model.safetensors nor one TensorFlow 1"
            " checkpoint; name the file or prefix"
        )
    return found[0]


def check_shapes(
    source: WeightFile, table: tuple[Weight, ...], model: str, *, with_classifier: bool
) -> None:
    """Compares every name and shape of the file with those of the model.

    Raises:
        InputError: something is missing, unexpected or misshapen; the message lists all of it.
    """
    wanted = [weight for weight in table if with_classifier or not weight.is_classifier]
    missing = [source.name(weight) for weight in wanted if source.name(weight) not in source.shapes]
    unexpected = sorted(source.names - {source.name(weight) for weight in table})
    misshapen = [
        f"{source.name(weight)} {source.shapes[source.name(weight)]} instead of"
        f" {source.shape(weight)}"
        for weight in wanted
        if source.shapes.get(source.name(weight), source.shape(weight)) != source.shape(weight)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    listed = "; ".join(
        f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names
    )
    if listed:
        fitting = [name for name in ARCHITECTURES if name != model and _fits(source, name)]
        if fitting:
            hint = f"it fits --model={fitting[0]}"
        elif isinstance(source, TensorFlow1) and missing and source.names.issuperset(missing):
            hint = f"it holds these as --weights={'raw' if source.average else 'ema'} only"
        elif missing and not unexpected and not misshapen:
            hint = "the file is not complete; get it again"
        else:
            hint = "nor any other variant"
        raise InputError(
            f"--source: the {source.form} {source.files[0]} does not fit {model} ({hint}): {listed}"
        )


def num_classes(source: WeightFile) -> int | None:
    """Returns the outputs of the classifier in the file; None where it holds no classifier.

    The bias tells them, or else the kernel.
    """
    kernel, bias = weights(1.0, 1.0, 1)[-2:]
    shape = source.shapes.get(source.name(bias))
    if shape is None:
        shape = source.shapes.get(source.name(kernel), ())[source.shape(kernel).index(1) :]
    return shape[0] if shape else None


def _fits(source: WeightFile, name: str) -> bool:
    architecture = ARCHITECTURES[name]
    table = weights(
        architecture.width, architecture.depth, num_classes(source) or 1, architecture.lite
    )
    held = {
        source.name(weight): source.shape(weight)
        for weight in table
        if not weight.is_classifier or num_classes(source)
    }
    return dict(source.shapes) == held and source.names == set(held)


class TensorFlow1(WeightFile):
    """Checkpoint of the authors' training or release.

    It holds variables, their moving averages, and optimizer slots, which are ignored.
    """

    # Variables of the training and not of the model.
    _SLOTS = re.compile(
        r"/(RMSProp|RMSProp_1|Momentum|Adam|Adam_1)$|(^|/)(global_step|beta[12]_power)$"
        r"|^teacher_model/|^_CHECKPOINTABLE"
    )
    _ANCHOR = "stem/conv2d/kernel"

    def __init__(self, prefix: Path, average: bool):
        """Reads the checkpoint's index."""
        self.form = "TensorFlow 1 checkpoint"
        names = sorted(
            path for path in prefix.parent.iterdir() if path.name.startswith(f"{prefix.name}.data-")
        )
        self.files = (Path(f"{prefix}.index"), *names)
        self.average = average
        try:
            self._reader = tf.train.load_checkpoint(str(plain_path(prefix)))
            stored = {
                key: tuple(shape) for key, shape in self._reader.get_variable_to_shape_map().items()
            }
            types = self._reader.get_variable_to_dtype_map()
        except UNREADABLE as error:
            raise InputError(
                f"--source: {prefix} is not a readable checkpoint ({reason(error)})"
            ) from error
        promised = sum(
            prod(shape) * types[key].size
            for key, shape in stored.items()
            if types[key] != tf.string
        )
        require_bytes(self.files[0], promised, sum(path.stat().st_size for path in self.files[1:]))
        kept = [key for key in stored if not self._SLOTS.search(key)]
        scopes = {
            key.replace(AVERAGE, "")[: -len(self._ANCHOR)]
            for key in kept
            if key.replace(AVERAGE, "").endswith(self._ANCHOR)
        }
        if len(scopes) != 1:
            found = f"{len(scopes)} ({', '.join(sorted(scopes))})" if scopes else "none"
            raise InputError(
                f"--source: {prefix} must hold one network with a variable {self._ANCHOR}; found"
                f" {found}"
            )
        scope = scopes.pop()
        self._keys: dict[str, str] = {}
        for key in kept:
            if key.endswith(AVERAGE) == average:
                self._keys[self._canonical(key, scope)] = key
        self.names = frozenset(self._canonical(key, scope) for key in kept)
        self.shapes = {name: stored[key] for name, key in self._keys.items()}
        if not self.shapes:
            has, flag = (
                ("no moving averages", "raw") if average else ("moving averages only", "ema")
            )
            raise InputError(f"--source: {prefix} holds {has}; take --weights={flag}")

    @staticmethod
    def _canonical(key: str, scope: str) -> str:
        """Returns the name below the scope, without the average's ending.

        Runs with LARS drop the ``tpu_`` of batch normalization.
        """
        name = key[len(scope) :] if key.startswith(scope) else key
        name = name[: -len(AVERAGE)] if name.endswith(AVERAGE) else name
        return name.replace("/batch_normalization", "/tpu_batch_normalization")

    def name(self, weight: Weight) -> str:
        """See `WeightFile`."""
        return weight.tf1

    def read(self, weight: Weight) -> np.ndarray:
        """See `WeightFile`."""
        try:
            return np.asarray(self._reader.get_tensor(self._keys[weight.tf1]), np.float32)
        except UNREADABLE as error:
            raise InputError(
                f"--source: {self.files[0]} is damaged or lacks its data files ({reason(error)})"
            ) from error


class Timm(WeightFile):
    """timm ``tf_efficientnet_*`` as safetensors.

    ``config.json`` beside it, as on the Hugging Face hub, tells its preprocessing.
    """

    def __init__(self, path: Path):
        """Reads all names."""
        self.form = "timm file"
        self.files = (path,)
        architecture, self.normalization = _describe_timm(path)
        if not architecture.startswith("tf_efficientnet_"):  # its logits would be wrong
            raise InputError(
                f"--source: {path} is timm's {architecture}, which has another padding and"
                " epsilon; take tf_efficientnet_* weights"
            )
        try:
            self._file = safe_open(path, framework="numpy")
            slices = {
                key: self._file.get_slice(key)
                for key in self._file.keys()  # noqa: SIM118
                if not key.endswith(".num_batches_tracked")
            }
        except UNREADABLE as error:
            raise InputError(
                f"--source: {path} is not a readable safetensors file ({reason(error)})"
            ) from error
        unread = sorted({slice_.get_dtype() for slice_ in slices.values()} - {"F16", "F32", "F64"})
        if unread:
            raise InputError(
                f"--source: {path} holds weights of type {', '.join(unread)}; save it as float32"
            )
        self.shapes = {key: tuple(slice_.get_shape()) for key, slice_ in slices.items()}
        self.names = frozenset(self.shapes)

    def name(self, weight: Weight) -> str:
        """See `WeightFile`."""
        return weight.timm

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """See `WeightFile`."""
        return weight.timm_shape

    def read(self, weight: Weight) -> np.ndarray:
        """See `WeightFile`."""
        return weight.from_timm(np.asarray(self._file.get_tensor(weight.timm), np.float32))


def _describe_timm(path: Path) -> tuple[str, Normalization | None]:
    """Returns the architecture and the normalization of a timm file.

    ``config.json`` beside the file tells them. Without it, the name of the file or of its directory
    tells the architecture.

    Plain ``efficientnet_*`` has the names and shapes of ``tf_efficientnet_*``, so nothing else in
    the file distinguishes them. Where neither name tells, the architecture is taken for
    ``tf_efficientnet_*``.
    """
    config = path.with_name("config.json")
    architecture, normalization = None, None
    if config.exists():
        try:
            description = read_json(
                config, {"architecture?": (str, None), "pretrained_cfg?": (dict, None)}
            )
            architecture, settings = (
                description.get("architecture"),
                description.get("pretrained_cfg") or {},
            )
            if {"mean", "std"} <= set(settings):
                normalization = checked(
                    *(255 * np.array(settings[key], np.float64) for key in ("mean", "std"))
                )
        except UNREADABLE as error:
            raise InputError(
                f"--source: {config} is not a readable description of a timm model "
                f"({reason(error)})"
            ) from error
    for name in (path.name, path.parent.name):
        match = re.search(r"(tf_)?efficientnet_(b\d|l2)", name)
        architecture = architecture or (match and match.group())
    return str(architecture or "tf_efficientnet_*"), normalization
