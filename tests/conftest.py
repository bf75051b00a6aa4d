"""Order of the test files, and what a test must not leave to the next."""

from __future__ import annotations

import contextlib
import sys

import pytest

LONG = ("test_whole_loop.py", "test_workers.py", "test_devices.py", "test_train.py", "test_scripts.py")


def pytest_collection_modifyitems(items):
    """The long files first, so that none is left for the end when the suite runs in several processes."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def _own_determinism():
    """A stage that is run in this process turns determinism on, under which keras-cv's and Keras's own random layers refuse to work."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow.python.framework import config

        config.disable_op_determinism()


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
