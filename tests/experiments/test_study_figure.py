"""A study's figure: sorted rows, all seeds, and no axis beyond 100 %."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import study_figure

READINGS = {
    "first_one": [90.0, 92.0, 91.0],
    "best_of_all": [99.5, 100.0, 99.0],
    "worst": [0.25, 1.0, 0.5],
}


def test_rows_are_sorted_and_end_at_100() -> None:
    (axes,) = study_figure.drawn("Title", READINGS).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["worst", "first one", "best of all"]  # the last one is on top
    assert axes.get_xlim() == (0, 100)
    lines = [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines]
    assert max(line.max() for line in lines) <= 100
    dots = [sorted(line) for line in lines if len(line) == 3]
    assert dots == [sorted(READINGS[name.replace(" ", "_")]) for name in names]
    assert "3 seeds" in axes.get_xlabel() and "standard deviation" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("numbers", "ends"), [([88.5, 99.5], (87, 100)), ([50, 60.25], (49, 62)), ([0, 100], (0, 100))]
)
def test_the_axis_leaves_a_point_on_both_sides(numbers: Any, ends: tuple[float, float]) -> None:
    assert study_figure._limits(np.array(numbers)) == ends


def test_the_file_is_written(tmp_path: Any) -> None:
    config: Any = SimpleNamespace(title="Title")
    study_figure.figure(config, {"readings": READINGS}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
