"""Two stacks side by side; `tests/cli/test_stack.py` tests how one of them is chosen."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cli.errors import InputError
from scripts import compare_stacks

A = np.array([3.0, 4.0], np.float32)


@pytest.mark.parametrize(
    ("name", "other", "holds"),
    [
        ("loss of uda", A, True),
        ("loss of uda", A * np.float32(1 + 5e-6), True),
        ("loss of uda", A * np.float32(1 + 2e-5), False),
        ("gradient of uda", A * np.float32(1 + 9e-4), True),
        ("gradient of uda", A * np.float32(1 + 2e-3), False),
        ("gradient of uda", A * np.nan, False),
        ("random uniform", A * np.float32(1 + 5e-6), False),
        ("random uniform", A[:1], False),
        ("order of uda", A.astype(int), False),
    ],
)
def test_limits(name: str, other: np.ndarray, holds: bool) -> None:
    assert compare_stacks._compared(name, A, other) == holds


def test_an_interpreter_that_is_none(tmp_path, monkeypatch) -> None:
    for name in ("observe", "read"):
        monkeypatch.setattr(compare_stacks, name, lambda *_: None)
    with pytest.raises(InputError, match=r"--other: no/python cannot be run \(No such file"):
        compare_stacks.main("no/python", str(tmp_path))
    with pytest.raises(InputError, match="--other: false failed with exit code 1"):
        compare_stacks.main("false", str(tmp_path))


@pytest.mark.skipif(
    "OTHER_STACK" not in os.environ, reason="OTHER_STACK names no Python of the other stack"
)
def test_the_other_stack(tmp_path) -> None:
    assert compare_stacks.main(os.environ["OTHER_STACK"], str(tmp_path)) == 0
