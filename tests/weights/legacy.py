"""Writes PyTorch's format before release 1.6, without PyTorch.

It is a second account of what the reader reads.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    key: str, kind: str, size: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    storage = (
        b"("
        + text("storage")
        + f"ctorch\n{kind}\n".encode()
        + text(key)
        + text("cpu")
        + whole(size)
        + b"NtQ"
    )
    view = whole(offset) + numbers(shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def state_dict(tensors: dict[str, bytes]) -> bytes:
    return (
        b"\x80\x02ccollections\nOrderedDict\n)R("
        + b"".join(text(name) + value for name, value in tensors.items())
        + b"u."
    )


def content(state: bytes, storages: dict[str, np.ndarray]) -> bytes:
    head = [MAGIC, VERSION, {"protocol_version": VERSION, "little_endian": True, "type_sizes": {}}]
    parts = [*(pickle.dumps(part, 2) for part in head), state, pickle.dumps(list(storages), 2)]
    return b"".join(
        [
            *parts,
            *(struct.pack("<q", values.size) + values.tobytes() for values in storages.values()),
        ]
    )


def save(path: Path, values: dict[str, np.ndarray]) -> Path:
    """Writes contiguous arrays, a storage each."""
    storages = {str(i): np.ascontiguousarray(value) for i, value in enumerate(values.values())}
    tensors = {}
    for (name, value), key in zip(values.items(), storages):
        strides = tuple(stride // value.itemsize for stride in np.asarray(value, order="C").strides)
        tensors[name] = tensor(key, STORAGES[value.dtype.name], value.size, 0, value.shape, strides)
    path.write_bytes(content(state_dict(tensors), storages))
    return path
