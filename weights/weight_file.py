"""Defines what the import of weights needs of a file, whatever its format."""

from __future__ import annotations

import abc
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors import SafetensorError

from cli.errors import InputError
from weights.names import Weight

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the channels, in 0-255 units."""

# Errors that readers raise for a file that is damaged, or of another kind than its ending says.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,
    tf.errors.OpError,
    SafetensorError,
    pickle.UnpicklingError,
)


class WeightFile(abc.ABC):
    """File of weights, as the import reads it.

    Attributes:
        form: kind of file, for people.
        files: all files on disk.
        shapes: shapes of the variables that may be imported, by the file's names, in its layout.
        names: names of all model variables in the file; one that the model lacks is an error.
        normalization: normalization that the file itself records, or None.
    """

    form: str
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    names: frozenset[str]
    normalization: Normalization | None = None

    @abc.abstractmethod
    def name(self, weight: Weight) -> str:
        """Returns the file's name for `weight`."""

    def shape(self, weight: Weight) -> tuple[int, ...]:
        """Returns the shape that `weight` should have in the file."""
        return weight.shape

    @abc.abstractmethod
    def read(self, weight: Weight) -> np.ndarray:
        """Returns the value of `weight`, float32, in Keras's layout."""


def require_bytes(path: Path, promised: int, held: int) -> None:
    """Raises InputError where a file's header promises more bytes than the file can hold."""
    if promised > held:
        raise InputError(
            f"--source: the header of {path} promises {promised:,} bytes of weights, and the file"
            f" holds {held:,}; it is cut off or damaged: get it again"
        )


def checked(mean: Any, std: Any) -> Normalization:
    """Returns both as tuples of three numbers.

    Raises ValueError where they are not three numbers each, or a deviation is not above 0.
    """
    found = np.array([mean, std], np.float64)
    if found.shape != (2, 3) or not np.isfinite(found).all() or (found[1] <= 0).any():
        raise ValueError(
            "the mean and the standard deviation of the channels are not three numbers each"
        )
    first, second = (tuple(float(number) for number in row) for row in found)
    return first, second


def reason(error: BaseException) -> str:
    """Returns the first line of what `error` says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
