"""Sets of labeled images: what is taken for an image of a folder."""

from __future__ import annotations

import os

import pytest

from cli.errors import InputError
from evaluation.examples import from_files


def test_only_regular_files_are_images(tmp_path):
    for name in ("a/0.jpg", "a/1.jpg", "b/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    os.symlink("nowhere", tmp_path / "a" / "broken.jpg")  # a missing image, which reading it tells
    assert from_files(tmp_path, "set", [("a", 0)], 2).count == 3
    with pytest.raises(InputError, match="b holds no images"):
        from_files(tmp_path, "set", [("b", 1)], 2)
    with pytest.raises(InputError, match="c holds no images"):
        from_files(tmp_path, "set", [("c", 1)], 2)
