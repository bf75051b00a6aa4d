"""Runs an exported model through TensorFlow's C API, without TensorFlow's Python.

This uses the loader and the session of TF Serving.

    python -m tests.serving.c_api --model=EXPORT_DIR [--format=json] IMAGE…

prints what `serving.predict` prints. It shows, on a machine without a model server, that an export
needs nothing but the C++ library: the shared library inside the installed package is opened with
ctypes, and `import tensorflow` never happens.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import app
from cli.errors import InputError
from serving import predict
from serving.versions import SAVED_MODEL, require_version

# TF_DataType, and how numbers of it are unpacked
FLOAT, INT32, STRING = 1, 3, 7
_NUMBERS = {FLOAT: "f", INT32: "i"}
_STRING_BYTES = 24  # a TF_TString: its length and pointer, or up to 22 characters in place


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("tensorflow")  # finds, does not import
    if spec is None or spec.origin is None:
        raise InputError(
            "tensorflow is not installed in this environment; run one of the run_*.sh scripts first"
        )
    folder = Path(spec.origin).parent
    for pattern in ("libtensorflow_cc.so.2", "libtensorflow_cc.*"):  # Linux, macOS
        for path in sorted(folder.glob(pattern)):
            library = ctypes.CDLL(str(path))
            for name, result, arguments in _FUNCTIONS:
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
    raise InputError(
        f"{folder} holds no libtensorflow_cc; this needs TensorFlow's own wheel of 2.15"
    )


_P, _S, _I = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_FUNCTIONS: list[tuple[str, Any, list[Any]]] = [
    ("TF_NewStatus", _P, []),
    ("TF_GetCode", _I, [_P]),
    ("TF_Message", _S, [_P]),
    ("TF_NewSessionOptions", _P, []),
    ("TF_NewGraph", _P, []),
    ("TF_LoadSessionFromSavedModel", _P, [_P, _P, _S, ctypes.POINTER(_S), _I, _P, _P, _P]),
    ("TF_GraphOperationByName", _P, [_P, _S]),
    ("TF_AllocateTensor", _P, [_I, ctypes.POINTER(ctypes.c_int64), _I, ctypes.c_size_t]),
    ("TF_DeleteTensor", None, [_P]),
    ("TF_TensorData", _P, [_P]),
    ("TF_TensorType", _I, [_P]),
    ("TF_NumDims", _I, [_P]),
    ("TF_Dim", ctypes.c_int64, [_P, _I]),
    ("TF_StringInit", None, [_P]),
    ("TF_StringCopy", None, [_P, _S, ctypes.c_size_t]),
    ("TF_StringDealloc", None, [_P]),
    ("TF_StringGetDataPointer", _P, [_P]),
    ("TF_StringGetSize", ctypes.c_size_t, [_P]),
    (
        "TF_SessionRun",
        None,
        [
            _P,
            _P,
            *[ctypes.POINTER(_Output), ctypes.POINTER(_P), _I] * 2,
            ctypes.POINTER(_P),
            _I,
            _P,
            _P,
        ],
    ),
    ("TF_CloseSession", None, [_P, _P]),
    ("TF_DeleteSession", None, [_P, _P]),
]


class Model:
    """A SavedModel in a TensorFlow session of the C API.

    Args:
      path: the SavedModel's directory.
      tensors: names of graph tensors by signature and by name of input or output, as
        `saved_model_cli show` lists them.

    Raises:
      InputError: it cannot be loaded, or later not be run.
    """

    def __init__(self, path: Path, tensors: dict[str, tuple[dict[str, str], dict[str, str]]]):
        self._path, self._tensors, self._library = path, tensors, _library()
        self._status = self._library.TF_NewStatus()
        self._graph = self._library.TF_NewGraph()
        tags, options = (_S * 1)(b"serve"), self._library.TF_NewSessionOptions()
        arguments = (options, None, str(path).encode(), tags, 1, self._graph, None, self._status)
        self._session = self._library.TF_LoadSessionFromSavedModel(*arguments)
        self._check()

    def run(
        self, image_bytes: Sequence[bytes], signature: str = "serving_default"
    ) -> dict[str, list[Any]]:
        """Returns the outputs of a signature of bytes, as nested lists."""
        inputs, outputs = self._tensors[signature]
        names = sorted(outputs)
        tensor = self._strings(image_bytes)
        feed, feeds = (_Output * 1)(self._output(inputs["image_bytes"])), (_P * 1)(tensor)
        fetch, fetched = (
            (_Output * len(names))(*(self._output(outputs[name]) for name in names)),
            (_P * len(names))(),
        )
        self._library.TF_SessionRun(
            self._session,
            None,
            feed,
            feeds,
            1,
            fetch,
            fetched,
            len(names),
            None,
            0,
            None,
            self._status,
        )
        data = self._library.TF_TensorData(tensor)
        for i in range(len(image_bytes)):
            self._library.TF_StringDealloc(data + i * _STRING_BYTES)
        self._library.TF_DeleteTensor(tensor)
        self._check()
        try:
            return {name: self._values(tensor) for name, tensor in zip(names, fetched)}
        finally:
            for tensor in fetched:
                self._library.TF_DeleteTensor(tensor)

    def close(self) -> None:
        """Ends the session."""
        self._library.TF_CloseSession(self._session, self._status)
        self._library.TF_DeleteSession(self._session, self._status)

    def _output(self, name: str) -> _Output:
        operation, _, index = name.partition(":")
        found = self._library.TF_GraphOperationByName(self._graph, operation.encode())
        if not found:
            raise InputError(
                f"{self._path} has no tensor {name}, which its signature names; export it again"
                " with run_export.sh"
            )
        return _Output(found, int(index))

    def _strings(self, values: Sequence[bytes]) -> Any:
        tensor = self._library.TF_AllocateTensor(
            STRING, (ctypes.c_int64 * 1)(len(values)), 1, _STRING_BYTES * len(values)
        )
        data = self._library.TF_TensorData(tensor)
        for i, value in enumerate(values):
            self._library.TF_StringInit(data + i * _STRING_BYTES)
            self._library.TF_StringCopy(data + i * _STRING_BYTES, value, len(value))
        return tensor

    def _values(self, tensor: Any) -> list[Any]:
        shape = [self._library.TF_Dim(tensor, i) for i in range(self._library.TF_NumDims(tensor))]
        dtype, data, count = (
            self._library.TF_TensorType(tensor),
            self._library.TF_TensorData(tensor),
            1,
        )
        for size in shape:
            count *= size
        values: list[Any]
        if dtype == STRING:
            strings = [data + i * _STRING_BYTES for i in range(count)]
            values = [
                ctypes.string_at(
                    self._library.TF_StringGetDataPointer(s), self._library.TF_StringGetSize(s)
                )
                for s in strings
            ]
        elif dtype not in _NUMBERS:
            raise InputError(
                f"{self._path} gives values that are no float32, int32 or string; export it with"
                " run_export.sh"
            )
        else:
            values = list(
                struct.unpack(
                    f"={count}{_NUMBERS[dtype]}",
                    ctypes.string_at(data, 4 * count) if count else b"",
                )
            )
        for size in reversed(shape[1:]):
            values = [values[i : i + size] for i in range(0, len(values), size)]
        return values

    def _check(self) -> None:
        if self._library.TF_GetCode(self._status):
            reason = " ".join(
                self._library.TF_Message(self._status).decode(errors="replace").split()
            )[:200]
            raise InputError(
                f"{self._path} cannot be used ({reason}); export it again with run_export.sh"
            )


def tensor_names(path: Path) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Returns (inputs, outputs) of each signature -> names of graph tensors.

    They are read from `saved_model.pb` without TensorFlow's messages. Only what a SavedModel needs
    is followed: meta_graphs = 2, signature_def = 5, and its maps (key = 1, value = 2).

    Raises:
      InputError: the file is damaged.
    """
    saved = (path / SAVED_MODEL).read_bytes()
    result = {}
    try:
        for meta_graph in _fields(saved, 2):
            for entry in _fields(meta_graph, 5):
                name, signature = _entry(entry)
                maps = [
                    dict(_entry(item) for item in _fields(signature, number)) for number in (1, 2)
                ]
                inputs, outputs = (
                    {
                        key: _fields(info, 1)[0].decode()
                        for key, info in items.items()
                        if _fields(info, 1)
                    }
                    for items in maps
                )
                result[name] = (inputs, outputs)
    except (IndexError, KeyError, ValueError) as error:
        raise InputError(
            f"{path / SAVED_MODEL} is damaged; export it again with run_export.sh"
        ) from error
    return result


def _entry(entry: bytes) -> tuple[str, bytes]:
    return _fields(entry, 1)[0].decode(), (_fields(entry, 2) or [b""])[0]


def _fields(message: bytes, number: int) -> list[bytes]:
    """Returns the length-delimited fields `number` of a protocol buffer."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                return value, at

    found, at = [], 0
    while at < len(message):
        key, at = varint(at)
        kind = key & 7
        if kind == 0:
            _, at = varint(at)
            continue
        size, at = varint(at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if kind == 2 and key >> 3 == number:
            found.append(message[at : at + size])
        at += size
    if at > len(message):
        raise ValueError("a field ends behind the message")
    return found


def main(model: str, format: str, arguments: Sequence[str]) -> None:
    """Prints the predictions of `model` for the image files `arguments`."""
    predict.find_image_files(format, arguments)
    path = require_version(model)
    names = tensor_names(path)
    predict.require_names(path, *names.get("serving_default", ({}, {})))
    loaded = Model(path, names)
    try:
        predict.show(predict.predict(loaded.run, arguments), format, arguments)
    finally:
        loaded.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--format", default="text", choices=("text", "json", "table"))
    parser.add_argument("arguments", nargs="+", metavar="IMAGE")
    app.guarded(lambda: main(**vars(parser.parse_args())))
