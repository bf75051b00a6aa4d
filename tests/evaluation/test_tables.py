"""The lines below the table of models."""

from __future__ import annotations

import json

import pytest

from evaluation import evaluate, tables


@pytest.mark.parametrize(
    ("count", "line"),
    [
        (0, None),
        (1, "1 labeled image was left out"),
        (1200, "1,200 labeled images were left out"),
    ],
)
def test_labeled_images_that_were_left_out_are_told(tmp_path, count, line):
    listed = {"held_out_images_left_out_of_labeled": [{"file": str(i)} for i in range(count)]}
    (tmp_path / "summary.json").write_text(json.dumps(listed))
    summary = {
        "examples": 5,
        "split": "test",
        "models": {},
        "left_out_of_training": evaluate._left_out_of_training(tmp_path),
    }
    notes = tables.notes(summary)
    assert notes[1:] == (
        [] if line is None else [f"{line} of training, because test images are equal or look alike"]
    )


def test_data_from_before_they_were_counted(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    assert evaluate._left_out_of_training(tmp_path) == 0
