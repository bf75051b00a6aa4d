"""The programs of docs/library.md, as they stand there."""

import re
from pathlib import Path

import pytest
import tensorflow as tf

PAGE = Path(__file__).resolve().parents[1] / "docs" / "library.md"


@pytest.mark.parametrize("method", ["NoisyStudent", "MetaPseudoLabels"])
def test_the_lines_run(method, tmp_path, monkeypatch):
    blocks = re.findall("```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if f"import {method}" in block]
    lines = [line for line in code.splitlines() if " = ..." not in line]
    assert len([line for line in code.splitlines() if line]) < 16
    images = tf.data.Dataset.from_tensors(tf.random.stateless_uniform([4, 32, 32, 3], [0, 1]))
    labeled = tf.data.Dataset.zip((images, tf.data.Dataset.from_tensors([1, 2, 3, 4]))).repeat()
    # Either probabilities, or the other view.
    second = (
        tf.data.Dataset.from_tensors(tf.fill([4, 10], 0.1)) if method == "NoisyStudent" else images
    )
    unlabeled = tf.data.Dataset.zip((images, second)).repeat()
    monkeypatch.chdir(tmp_path)
    code = "\n".join(lines).replace(
        "epochs=10, steps_per_epoch=1000", "steps_per_epoch=2, verbose=0"
    )
    assert "steps_per_epoch=2" in code
    exec(code, {"labeled": labeled, "unlabeled": unlabeled, "test": labeled.take(1)})
    assert tf.keras.models.load_model(tmp_path / "student.keras").output_shape == (None, 10)
