"""An export of a model that an older version has already."""

from __future__ import annotations

from cli.json_files import read_json
from serving import assets, export
from training import model_dir

from .conftest import linear
from .test_export import linear_load, served


def test_an_older_version_is_completed_and_stays_older(tmp_path, monkeypatch, write_model, capsys):
    monkeypatch.setattr(model_dir, "load", linear_load)
    added = []
    monkeypatch.setattr(assets, "add_onnx", lambda path, model: added.append(path.name))
    first, second = (
        write_model(tmp_path / f"model{seed}", names=("no", "yes"), seed=seed, make=linear)
        for seed in (0, 1)
    )
    workdir = tmp_path / "export"
    for directory in (first, second):
        export.main(str(workdir), str(directory))
    capsys.readouterr()
    export.main(str(workdir), str(first), onnx=True, license="CC0")
    out = capsys.readouterr().out
    assert out.endswith("classifier/1; the newest version is 2\n") and "is done" in out
    assert added == ["1"]
    cards = [(workdir / "classifier" / n / "MODEL_CARD.md").read_text("utf-8") for n in "12"]
    assert [card.endswith("CC0\n") for card in cards] == [True, False]
    assert sorted(path.name for path in (workdir / "classifier").iterdir()) == ["1", "2"]
    assert served(workdir) == {"classifier": [1], "classifier-canary": [2]}
    assert read_json(workdir / "summary.json")["export"] == str(workdir / "classifier" / "1")
    export.main(str(workdir), str(first), max_pixels=1200)  # other settings: another version
    assert served(workdir) == {"classifier": [1], "classifier-canary": [3]}
