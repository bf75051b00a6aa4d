"""Order of the test files, and what a test must not leave to the next."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

import cli  # noqa: F401  (first: it makes tf.keras Keras 2)
from training import processor

# Tests compare trainings of this process with those of commands that they start, to the bit: one
# value for all of them, the one that TensorFlow takes by itself.
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
    """Puts the long files first, so that none is left for the end when the suite runs in several processes."""
    items.sort(
        key=lambda item: (
            LONG.index(name) if (name := "/".join(item.path.parts[-2:])) in LONG else len(LONG)
        )
    )


@pytest.fixture(autouse=True)
def _own_process():
    """Takes back what a stage sets for its whole process: determinism, under which keras-cv's and Keras's own random layers refuse
    to work, and the numbers that layers compute in.
    """
    yield
    if "tensorflow" in sys.modules:
        import tensorflow as tf
        from tensorflow.python.framework import config  # there is no public way back

        config.disable_op_determinism()
        tf.keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def limited_files():
    """A context manager `limited_files(BYTES)`: within it, this process can write no longer file."""
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
