"""Order of the test files, and cleanup after each test."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

import cli  # noqa: F401  (first: it makes tf.keras Keras 2)
from training import processor

# Tests compare trainings of this process with trainings of commands that they start, to the bit.
# So all processes get one value: the value that TensorFlow takes by itself.
os.environ.setdefault(processor.VARIABLE, "1" if processor.instructions() == "AVX-512" else "0")

LONG = (
    "tests/test_whole_loop.py",
    "weights/test_weights.py",
    "training/test_rematerialization.py",
    "meta_pseudo_labels/test_train.py",
    "workflow/test_train.py",
    "meta_pseudo_labels/test_model.py",
    "training/test_workers.py",
    "efficientnet/test_model.py",
    "training/test_devices.py",
    "training/test_float16.py",
    "meta_pseudo_labels/test_replicas.py",
)
"""Folder and name of the files that take the longest, the longest first."""


def pytest_collection_modifyitems(items):
    """Puts the long files first.

    So none of them is left for the end when the suite runs in several processes.
    """
    items.sort(
        key=lambda item: (
            LONG.index(name) if (name := "/".join(item.path.parts[-2:])) in LONG else len(LONG)
        )
    )


@pytest.fixture(autouse=True)
def _own_process():
    """Takes back what a stage sets for its whole process.

    These are the precision of layers, and determinism. Under determinism, the random layers of
    keras-cv and Keras refuse to work.
    """
    yield
    if "tensorflow" in sys.modules:
        import tensorflow as tf
        from tensorflow.python.framework import config  # there is no public way back

        config.disable_op_determinism()
        tf.keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def limited_files():
    """Returns a context manager `limited_files(BYTES)`.

    Within it, this process can write no longer file.
    """
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
