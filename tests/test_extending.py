"""The examples of docs/extending.md, as they stand there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli import recipes
from cli.errors import InputError
from cli.json_files import read_json
from data import prepare, sources
from evaluation import compare, numbers, tables
from serving import export
from training import model_dir
from workflow import loop, plans, train

DOCS = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
CNN, RECIPE, METRIC, SOURCE = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)[:4]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the recipe with a user's network, cut down."""
    (tmp_path / "my_nets.py").write_text(CNN, encoding="utf-8")
    (tmp_path / "my_recipe.py").write_text(RECIPE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield recipes.from_flags(f"--config={tmp_path / 'my_recipe.py'}", "--config.smoke=True")
    sys.modules.pop("my_nets", None)


def test_an_architecture_through_every_stage(config: Any, tmp_path: Path) -> None:
    loop.check_loop(config)
    plan = plans.describe(config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto"))
    assert "parameters (1,586 trained), 32 px" in plan and "activations not known" in plan
    data, run = tmp_path / "data", tmp_path / "teacher"
    prepare.main(config, str(data))
    train.main(config, str(run), str(data), "teacher", strategy="one_device")
    model, spec = model_dir.load(run)
    assert spec.architecture == {"name": "my_nets:small_cnn", "filters": 8}
    export.main(str(tmp_path / "export"), str(run))
    exported = tf.saved_model.load(
        read_json(tmp_path / "export" / "summary.json", {"export": str})["export"]
    )
    images = tf.random.stateless_uniform([2, 32, 32, 3], [0, 1], 0, 255)
    answer = exported.signatures["predict_images"](images=images)
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(model(images)), atol=1e-5)


def test_a_metric_in_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {}
    exec(METRIC, namespace)
    entry = namespace["BRIER"]
    monkeypatch.setattr(tables, "NUMBERS", (*numbers.NUMBERS, entry))
    monkeypatch.setattr(numbers, "NUMBERS", (*numbers.NUMBERS, entry))
    monkeypatch.setitem(compare.COMPARED, entry.comparison.name, (entry, entry.comparison))
    row = numbers.clean(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0]))
    assert row["brier"] == pytest.approx((0.04 + 0.04 + 0.36 + 0.36) / 2)
    head, body = tables.cells({"models": {"a": row}, "classes": 2})
    assert dict(zip(head, body[0]))["Brier"] == "0.4000"
    summary = {
        "models": ["a", "b"],
        **compare.aggregate([{"a": row, "b": {**row, "brier": 0.1}}] * 2, ["a", "b"]),
    }
    (line,) = [line for line in compare.cells(summary)[1] if line[0] == "Brier score"]
    assert "2 of 2" in line  # lower is better


def test_a_data_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("data.npz")
    exec(SOURCE, vars(module))
    monkeypatch.setitem(sys.modules, "data.npz", module)
    monkeypatch.setitem(sources.FORMATS, "npz", "npz.open_npz")
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[1, 0])
    settings = ConfigDict({"source": "image_folder", "label_offset": 0, "on_error": "fail"})
    opened = sources.open_collection(f"npz:{tmp_path / 'a.npz'}", "labeled", settings)
    assert opened.label_names == ("0", "1") and opened.labels.tolist() == [1, 0]
    (first, _) = opened.read([0, 1])
    np.testing.assert_array_equal(tf.io.decode_image(first), pixels[0])
    with pytest.raises(InputError, match=r"--test: .*missing.npz is not a NumPy file"):
        sources.open_collection(f"npz:{tmp_path / 'missing.npz'}", "test", settings)
