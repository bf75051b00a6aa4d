"""The arguments of a compiled step that leaves for another machine: described here, drawn there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.hlo import export, run


def drawn(kind: dict, stored: dict) -> np.ndarray:
    return run.draw(json.loads(json.dumps(kind)), stored)


def test_small_and_constant_arrays_come_back_as_they_were() -> None:
    stored: dict[str, np.ndarray] = {}
    arrays = [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.zeros([70, 70], np.float32),
        np.array(7, np.int64),
        np.array([True, False]),
    ]
    for array in arrays:
        back = drawn(export._kind(array, stored, {}), stored)
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype and back.shape == array.shape
    assert len(stored) == 2  # the others are constant


def test_large_arrays_are_drawn_with_their_mean_and_spread_and_equal_ones_stay_equal() -> None:
    rng, stored, seeds = np.random.default_rng(0), {}, {}
    one, other = (rng.normal(3.0, 0.5, [80, 80]).astype(np.float32) for _ in range(2))
    first, again, second = (
        drawn(export._kind(array, stored, seeds), stored) for array in (one, one.copy(), other)
    )
    assert not stored
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).mean() > 0.1
    assert first.mean() == pytest.approx(3.0, abs=0.05) and first.std() == pytest.approx(
        0.5, abs=0.05
    )


def test_images_are_uniform_and_differ() -> None:
    seeds: dict[bytes, int] = {}
    images = [drawn(export._uniform(tf.zeros([2, 40, 40, 3]), seeds), {}) for _ in range(2)]
    assert (
        images[0].dtype == np.float32 and 0 <= images[0].min() < 5 and 250 < images[0].max() <= 255
    )
    assert np.abs(images[0] - images[1]).mean() > 50


def test_a_variable_takes_the_values_of_its_description() -> None:
    variable = tf.Variable(np.random.default_rng(0).normal(0.0, 1.0, [80, 80]).astype(np.float32))
    kind = export._captured(variable.handle, {}, {})
    np.testing.assert_array_equal(variable.numpy(), drawn(kind, {}))


def test_the_second_script_needs_no_other_file_of_the_project(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(Path(run.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert (
        done.stderr == f"error: {tmp_path} holds no steps; make some with benchmarks.hlo.export\n"
    )
