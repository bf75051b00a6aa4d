"""Order of the test files."""

from __future__ import annotations

LONG = ("test_whole_loop.py", "test_scripts.py")


def pytest_collection_modifyitems(items):
    """The long files first, so that none is left for the end when the suite runs in several processes."""
    items.sort(key=lambda item: item.path.name not in LONG)
