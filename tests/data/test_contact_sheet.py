"""The picture of RandAugment's operations: every tile where it belongs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from data import contact_sheet
from data.image_ops import OPS, invert, posterize

ROOT = Path(__file__).resolve().parents[2]


def test_tiles_are_the_operations():
    image = contact_sheet.photograph()
    found = {(row, column): tile for row, column, tile in contact_sheet.tiles(image)}
    names = list(OPS)
    assert len(found) == 16 * len(contact_sheet.ROWS)
    np.testing.assert_array_equal(found[0, names.index("Invert")], invert(tf.constant(image)))
    np.testing.assert_array_equal(
        found[2, names.index("Posterize")], posterize(tf.constant(image), 1)
    )  # at M = 27
    assert (
        found[1, names.index("Cutout")][112 - 72 : 112 + 72, 112 - 72 : 112 + 72] == 128
    ).all()  # half the side is int(40 * 1.8)
    assert len({tile.tobytes() for tile in found.values()}) > 50


def test_without_a_name_for_the_picture():
    with pytest.raises(InputError, match="name the picture to write"):
        contact_sheet.main([])


def test_an_unknown_flag_is_refused_as_by_every_command():
    command = [sys.executable, "-m", "cli", "tool", "contact_sheet", "--picture=x.jpg"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert (
        result.stderr.startswith("error: --picture is not a flag")
        and result.stderr.count("\n") == 1
    )
