"""The stack: which TensorFlow and Keras the project runs on. Only this module knows versions.

| stack | TensorFlow | Keras |
|---|---|---|
| classic | 2.15 | Keras 2.15 |
| current | 2.21 | tf-keras 2.21, which is Keras 2 as its own package |

TensorFlow 2.16 and later take Keras 3, unless an environment variable asks for tf-keras before
Keras is first used. `import cli`, with which every room begins, calls `choose`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from cli.errors import InputError
from cli.quiet import silent

CLASSIC = "TensorFlow 2.15, Keras 2.15"
"""The stack of checkpoints that do not name one."""
NEWEST = "2.21"
"""The newest TensorFlow on which the tests have run."""

_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_WARNED = "NEWER_TENSORFLOW_WARNED"  # a command and the processes that it starts warn once


def choose() -> None:
    """Makes `tf.keras` Keras 2, on either stack, and the first import of TensorFlow quiet.

    Raises:
      InputError: this process has used `tf.keras` already, and it is Keras 3.
    """
    legacy = not _package_keras_is_keras_2()
    if legacy:
        os.environ[_LEGACY_KERAS] = "1"
    else:
        os.environ.pop(_LEGACY_KERAS, None)  # TensorFlow 2.15 would look for tf-keras, too
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        sys.meta_path.insert(0, _TensorFlowFinder())
        return
    if legacy and (not find_spec("tf_keras") or _keras(tensorflow).__name__ != "tf_keras"):
        raise InputError(
            "TensorFlow uses Keras 3 in this process, but this project needs Keras 2. Install "
            "tf-keras, and import the project before you use tensorflow.keras, or set "
            f"{_LEGACY_KERAS}=1"
        )
    _warn_if_newer(tensorflow)


def current() -> str:
    """Returns the stack of this process, such as "TensorFlow 2.15, Keras 2.15"."""
    import tensorflow

    keras = _keras(tensorflow)
    name = {"keras": "Keras", "tf_keras": "tf-keras"}[keras.__name__]
    return f"TensorFlow {_minor(tensorflow)}, {name} {_minor(keras)}"


def json_of(message: Any) -> str:
    """Returns a protocol buffer as JSON: proto names, default values included."""
    from google.protobuf import json_format

    # protobuf 5 renamed the argument.
    older = "including_default_value_fields" in json_format.MessageToJson.__code__.co_varnames
    name = "including_default_value_fields" if older else "always_print_fields_with_no_presence"
    return json_format.MessageToJson(message, preserving_proto_field_name=True, **{name: True})


class _TensorFlowFinder(importlib.abc.MetaPathFinder):
    """Makes the first import of TensorFlow quiet.

    From 2.18 on it writes lines about oneDNN and CUDA to stderr, whatever TF_CPP_MIN_LOG_LEVEL is.
    """

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns TensorFlow's spec with a quiet loader; None for every other module."""
        spec = importlib.machinery.PathFinder.find_spec(name) if name == "tensorflow" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def quietly(module: ModuleType) -> None:
            if _LEGACY_KERAS in os.environ and not find_spec("tf_keras"):
                raise InputError(
                    "TensorFlow has only Keras 3, but this project needs Keras 2. Install "
                    "tf-keras of TensorFlow's version"
                )
            with silent():
                execute(module)
            _warn_if_newer(module)

        spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


def _package_keras_is_keras_2() -> bool:
    """Tells whether the package `keras` is Keras 2, by its files: its metadata would take 0.1 s."""
    spec = find_spec("keras")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return bool(folders) and not (Path(folders[0]) / "_tf_keras").exists()


def _keras(tensorflow: ModuleType) -> ModuleType:
    """Returns the package behind `tf.keras`, which states no version in tf-keras."""
    return sys.modules[tensorflow.keras.Model.__module__.partition(".")[0]]


def _warn_if_newer(tensorflow: ModuleType) -> None:
    newer = tuple(map(int, _minor(tensorflow).split("."))) > tuple(map(int, NEWEST.split(".")))
    if newer and _WARNED not in os.environ:
        os.environ[_WARNED] = "1"
        tested = f"{NEWEST}, the newest that this project was tested with"
        warning = f"warning: TensorFlow {tensorflow.__version__} is newer than {tested}"
        print(warning, file=sys.stderr, flush=True)


def _minor(package: ModuleType) -> str:
    return ".".join(package.__version__.split(".")[:2])
