"""Collection formats: CIFAR-10 and SVHN, from their original files.

    cifar10:DIR   DIR/cifar-10-python.tar.gz            --labeled: 50,000 training images;
                                                        --test: 10,000
    svhn:DIR      DIR/train_32x32.mat, test_32x32.mat   --labeled: 73,257; --test: 26,032
                  DIR/extra_32x32.mat                   --unlabeled: 531,131

The images are 32x32 pixels and are held in memory, 3 kB each (SVHN's extra images 1.6 GB). They
become PNG files when they are written.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import scipy.io

from cli.errors import one_line
from data.archives import compressed_files
from data.sources import Request, ordered_map

CIFAR10 = "cifar-10-python.tar.gz"


class PixelImages:
    """A `Collection` of images that are not in separate files.

    Args:
      name: name of the data set's part; images are NAME/NUMBER.
      pixels: uint8 [n, H, W, 3], or a view of that shape.
      labels: int32 [n].
      label_names: names of the classes; () if unlabeled.
    """

    scattered = True
    ignored: dict[str, int] = {}  # noqa: RUF012
    problems = ()

    def __init__(
        self, name: str, pixels: np.ndarray, labels: np.ndarray, label_names: tuple[str, ...]
    ) -> None:
        self._name, self._pixels = name, pixels
        self.labels, self.label_names = labels, label_names

    def key(self, index: int) -> str:
        """Returns the number within the part, in the original order."""
        return f"{self._name}/{index:06d}"

    def describe(self, index: int) -> str:
        """Returns the key: the image has no separate file."""
        return self.key(index)

    def read(self, indices: Iterable[int]) -> Iterator[bytes | str]:
        """Yields PNG files."""
        return ordered_map(self._png, indices)

    def _png(self, index: int) -> bytes | str:
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.ascontiguousarray(self._pixels[index])).save(buffer, "PNG")
        return buffer.getvalue()


def _path(request: Request, name: str) -> str:
    path = os.path.join(request.location, name)
    if not os.path.isfile(path):
        raise request.error(f"has no {name}; put the original file there")
    return path


class _Unpickler(pickle.Unpickler):
    """Reads CIFAR's batches and refuses everything else.

    A batch is a dict of numbers, text and one numpy array. A pickle is a program: the plain reader
    would run whatever it says.
    """

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy.core.multiarray", "_reconstruct"): (
                np.core.multiarray._reconstruct  # type: ignore[attr-defined]
            ),
            ("numpy._core.multiarray", "_reconstruct"): (
                np.core.multiarray._reconstruct  # type: ignore[attr-defined]
            ),
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(
                f"it wants to load {module}.{name}, which no batch of CIFAR needs"
            )
        return allowed[module, name]


def _load(content: bytes) -> dict[bytes, Any]:
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def open_cifar10(request: Request) -> PixelImages:
    """Opens CIFAR-10 from `cifar-10-python.tar.gz`.

    Raises:
      InputError: the file is missing or is not CIFAR's.
    """
    path = _path(request, CIFAR10)
    names = ["test_batch"] if request.role == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    try:
        files = compressed_files(path, [*names, "batches.meta"])
        label_names = tuple(
            name.decode("utf-8") for name in _load(files["batches.meta"])[b"label_names"]
        )
        batches = [_load(files[name]) for name in names]
        pixels = np.concatenate(
            [batch[b"data"] for batch in batches]
        )  # (n, 3072), channel by channel
        labels = np.concatenate([batch[b"labels"] for batch in batches]).astype(np.int32)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072):
            raise ValueError(f"{len(labels)} labels for pixels {pixels.dtype} {pixels.shape}")
    except Exception as error:
        # Any exception of the readers of archives and pickles.
        raise request.error(
            f"has a {CIFAR10} that is not the original one ({one_line(error)}); get it again"
        ) from error
    pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (n, 32, 32, 3), a view
    if request.role == "unlabeled":
        return PixelImages("cifar10_train", pixels, np.full(len(pixels), -1, np.int32), ())
    return PixelImages(
        f"cifar10_{'test' if request.role == 'test' else 'train'}", pixels, labels, label_names
    )


def open_svhn(request: Request) -> PixelImages:
    """Opens SVHN's cropped digits from their `.mat` files, in which class 10 is the digit 0.

    Raises:
      InputError: the file is missing or is not SVHN's.
    """
    part = {"labeled": "train", "unlabeled": "extra", "test": "test"}[request.role]
    name = f"{part}_32x32.mat"
    path = _path(request, name)
    try:
        content = scipy.io.loadmat(path)
        pixels = np.moveaxis(content["X"], 3, 0)  # (32, 32, 3, n) -> (n, 32, 32, 3), a view
        labels = content["y"].reshape(-1).astype(np.int32)
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 32, 32, 3):
            raise ValueError(f"{len(labels)} labels for X {pixels.dtype} {content['X'].shape}")
        if not np.isin(labels, range(1, 11)).all():
            raise ValueError("a label is not from 1 to 10")
    except Exception as error:
        # Any exception of the reader of the format.
        raise request.error(
            f"has a {name} that is not the original one ({one_line(error)}); get it again"
        ) from error
    if request.role == "unlabeled":
        return PixelImages(f"svhn_{part}", pixels, np.full(len(pixels), -1, np.int32), ())
    return PixelImages(
        f"svhn_{part}", pixels, labels % 10, tuple(str(digit) for digit in range(10))
    )
