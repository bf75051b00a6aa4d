"""The model card: multiply-additions against published numbers, and its section of the page."""

import subprocess
from pathlib import Path

import pytest
import tensorflow as tf

from benchmarks.models import card, page
from cli.errors import InputError
from cli.json_files import write_json
from efficientnet import EfficientNet
from resnet import ResNet50


def test_multiply_additions_by_hand():
    inputs = tf.keras.Input([8, 8, 3])
    x = tf.keras.layers.Conv2D(4, 3, 2, padding="same")(inputs)  # 4·4·4 outputs of 3·3·3
    x = tf.keras.layers.DepthwiseConv2D(5, padding="same")(x)  # 4·4·4 outputs of 5·5
    x = tf.keras.layers.Dense(7)(tf.keras.layers.Flatten()(x))  # 7 outputs of 64
    assert card.multiply_additions(tf.keras.Model(inputs, x), 8) == 64 * 27 + 64 * 25 + 7 * 64


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda: EfficientNet("b0", num_classes=1000), 0.39e9),  # Tan and Le 2019, Table 2
        (lambda: ResNet50(num_classes=1000), 4.1e9),  # the same table; torchvision's page says 4.09
    ],
    ids=["b0", "resnet50"],
)
def test_multiply_additions_are_the_published_ones(build, published):
    assert card.multiply_additions(build(), 224) == pytest.approx(published, rel=0.015)


def test_the_table_says_what_was_not_measured(tmp_path):
    write_json(
        tmp_path / "b0.graph.json", {"parameters": 5_288_548, "multiply_additions": 386_000_000}
    )
    write_json(tmp_path / "b0.forward.json", {"peak_gib": 0.25, "seconds": 0.05})
    write_json(tmp_path / "b0.train.json", {"stopped": "> 12 GiB"})
    assert (
        card.table(tmp_path).splitlines()[2]
        == "| b0 | 224 | 5,288,548 | 0.386 | 0.25 | > 12 GiB | 20 | > 12 GiB |"
    )


def test_a_measurement_that_grows_too_large_is_stopped(tmp_path):
    assert card._run(tmp_path, "wrn_28_2:graph", memory=0.05, seconds=60) == "> 0.05 GiB"
    assert not list(tmp_path.iterdir())


def test_a_failed_measurement_is_told_and_tried_again(tmp_path, monkeypatch, capsys):
    page_ = tmp_path / "page.md"
    page_.write_text("<!-- card: begin -->\n<!-- card: end -->\n")
    monkeypatch.setattr(card, "MODELS", page_)
    runs = []

    def measurement(directory, run, memory, seconds):
        runs.append(run)
        if len(runs) == 1:
            raise subprocess.CalledProcessError(-9, run)

    monkeypatch.setattr(card, "_run", measurement)
    arguments = {
        "workdir": str(tmp_path),
        "models": "b0",
        "passes": "graph",
        "memory": 1.0,
        "seconds": 60.0,
        "run": None,
    }
    with pytest.raises(SystemExit) as caught:
        card.main(**arguments)
    assert caught.value.code == 1
    assert "b0 graph: failed (-9)" in capsys.readouterr().err
    card.main(**arguments)
    assert runs == ["b0:graph"] * 2
    with pytest.raises(
        InputError, match="--passes: there is no 'backward'; known: graph, forward, train"
    ):
        card.main(**{**arguments, "passes": "backward"})


def test_a_measurement_that_fails_is_not_taken_for_done(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        card._run(tmp_path, "nobody:graph", memory=4, seconds=60)


def test_a_section_is_replaced_and_the_rest_stays(tmp_path):
    path = Path(tmp_path / "page.md")
    path.write_text("above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbelow\n")
    for text in ("new", "newer"):
        page.replace_section(path, "a", text)
        assert path.read_text() == f"above\n<!-- a: begin -->\n\n{text}\n\n<!-- a: end -->\nbelow\n"
    with pytest.raises(InputError, match="no section 'b'"):
        page.replace_section(path, "b", "x")
