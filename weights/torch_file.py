"""Reads a state dict in PyTorch's format before release 1.6, without PyTorch.

Such a file is a row of pickles: a magic number, a version, a description of the machine, the dict,
and the keys of the storages. The numbers of each storage follow. A pickle can run any code, so this
reader lets it name nothing but dicts, tensors and the types of numbers. Anything else is refused.

Source: github.com/pytorch/pytorch, torch/serialization.py, `_legacy_load`.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cli.errors import InputError
from weights.names import Weight
from weights.weight_file import UNREADABLE, WeightFile, reason

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}
_MOST_REMEMBERED = 1 << 20
"""Objects that a pickle may refer back to; a larger number would only fill the memory."""


class _Storage(NamedTuple):
    """Numbers that tensors are views of. `size` is their count."""

    dtype: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, from its number `offset` on; `strides` are counted in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *ignored: Any) -> _Tensor:
    """Stands for PyTorch's `_rebuild_tensor_v2`. Raises ValueError for an impossible view."""
    counts = [offset, *shape, *strides]
    if (
        not isinstance(storage, _Storage)
        or len(shape) != len(strides)
        or any(type(n) is not int or n < 0 for n in counts)
    ):
        raise ValueError("a tensor without a storage, or with an impossible shape")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Loads dicts, lists, strings, numbers, and tensors as `_Tensor`."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name. Raises UnpicklingError for any but a state dict's."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns a storage by its description. Raises ValueError for anything else."""
        kind, dtype, key, _, size, view = pid
        if (
            kind != "storage"
            or dtype not in _TYPES.values()
            or type(key) is not str
            or type(size) is not int
            or view is not None
        ):
            raise ValueError("a reference that is not a storage")
        return _Storage(dtype, key, size)


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict by name, in PyTorch's layout.

    Raises:
      ValueError, pickle.UnpicklingError, and what damaged bytes raise: the file has another format,
        is damaged, or names anything but dicts and tensors.
    """
    content = path.read_bytes()
    if content[:2] == b"PK":
        raise ValueError(
            "PyTorch's format of release 1.6 and later; save it with"
            " _use_new_zipfile_serialization=False"
        )
    stream = io.BytesIO(content)
    if (
        _load(stream) != _MAGIC
        or _load(stream) != _VERSION
        or _load(stream).get("little_endian") is not True
    ):
        raise ValueError("no state dict as PyTorch saved it before release 1.6")
    tensors, keys = _load(stream), _load(stream)
    if not isinstance(tensors, dict) or not all(
        isinstance(value, _Tensor) for value in tensors.values()
    ):
        raise ValueError("something else than a dict of tensors")
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise ValueError("storages that do not fit the tensors")
    numbers: dict[str, np.ndarray] = {}
    for key in keys:
        dtype, size = np.dtype(storages[key].dtype), storages[key].size
        if int.from_bytes(stream.read(8), "little") != size:
            raise ValueError(f"the storage {key} has another size than its tensors say")
        numbers[key] = np.frombuffer(content, dtype, size, stream.tell())
        stream.seek(size * dtype.itemsize, io.SEEK_CUR)
    if stream.tell() != len(content):
        raise ValueError("bytes after the last storage")
    return {
        str(name): _view(tensor, numbers[tensor.storage.key]) for name, tensor in tensors.items()
    }


def _load(stream: io.BytesIO) -> Any:
    """Loads the next pickle."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name.endswith("PUT") and argument is not None and argument > _MOST_REMEMBERED:
            raise ValueError(f"it wants to remember {argument} objects")
    stream.seek(start)
    return _Unpickler(stream).load()


def _view(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Returns a tensor as its own array."""
    if numbers.dtype != tensor.storage.dtype or len(numbers) != tensor.storage.size:
        raise ValueError(f"two descriptions of the storage {tensor.storage.key}")
    bytes_each = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :], tensor.shape, bytes_each
    ).copy()


class PyTorch(WeightFile):
    """A state dict of EfficientNet-PyTorch or EfficientNet-Lite-PyTorch, padded as TensorFlow pads.

    Sources of the names: github.com/lukemelas/EfficientNet-PyTorch,
    github.com/ml-illustrated/EfficientNet-Lite-PyTorch.
    """

    def __init__(self, path: Path):
        """Reads all tensors."""
        self.form = "PyTorch file"
        self.files = (path,)
        try:
            values = read(path)
        except UNREADABLE as error:
            raise InputError(
                f"--source: {path} is not a readable PyTorch file ({reason(error)})"
            ) from error
        self._values = {
            name: value
            for name, value in values.items()
            if not name.endswith(".num_batches_tracked")
        }
        self.shapes = {name: value.shape for name, value in self._values.items()}
        self.names = frozenset(self.shapes)

    def name(self, weight: Weight) -> str:
        """See `WeightFile`."""
        return weight.pytorch

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """See `WeightFile`."""
        return weight.timm_shape

    def read(self, weight: Weight) -> np.ndarray:
        """See `WeightFile`."""
        return weight.from_timm(self._values[weight.pytorch].astype(np.float32))
