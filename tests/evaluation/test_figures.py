"""The figures are PNGs whatever the number of classes and models and whatever their names."""

from __future__ import annotations

import warnings

import numpy as np
import PIL.Image
import pytest

from evaluation import figures, metrics


def evaluation(name, label_names, n=60):
    rng = np.random.Generator(np.random.PCG64(len(name)))
    probabilities = rng.dirichlet(np.full(len(label_names), 0.2), n).astype(np.float32)
    return metrics.evaluate(name, probabilities, rng.integers(0, len(label_names), n), label_names)


def colors(path):
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        return set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))


@pytest.mark.parametrize("classes", [2, 30, 60])
def test_all_figures(classes, tmp_path):
    names = [("$a_{", "雪", "", "cat\nfish", "x" * 80)[i % 5] + str(i) for i in range(classes)]
    rows = [evaluation(name, names) for name in ("teacher", "student $1_", "学生")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Matplotlib's own calls of pyparsing, in its last release for Python 3.9.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib")
        figures.summary_figure(rows, tmp_path / "new" / "summary.png")
        figures.reliability(rows, tmp_path / "reliability.png")
        figures.confusion(rows[0], tmp_path / "confusion.png")
    assert len(colors(tmp_path / "confusion.png")) > 10


def test_every_model_has_its_color(tmp_path):
    rows = [evaluation(f"student_{i}", list("abc")) for i in range(9)]
    figures.reliability(rows, tmp_path / "reliability.png")
    drawn = colors(tmp_path / "reliability.png")
    for color in figures.COLORS:
        assert tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) in drawn


def test_perfect_and_useless_models(tmp_path):
    names = list("ab")
    right = metrics.evaluate("right", np.eye(2)[[0, 1]], np.array([0, 1]), names)
    wrong = metrics.evaluate("wrong", np.eye(2)[[1, 0]], np.array([0, 1]), names)
    figures.summary_figure([wrong, right], tmp_path / "summary.png")
    assert (tmp_path / "summary.png").stat().st_size > 10_000


def test_accuracies_end_at_100_percent(monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    rows = [evaluation(name, list("abc")) for name in ("teacher", "student")]
    figures.summary_figure(rows, "summary.png")
    accuracies, reliability, _ = kept[0].axes
    assert accuracies.get_xlim()[1] == 100 and not accuracies.patches  # no bars on a cut axis
    assert [label.get_text() for label in accuracies.get_yticklabels()] == ["teacher", "student"]
    low, high = (100 * end for end in rows[0].top1_interval)
    assert list(accuracies.lines[0].get_xdata()) == [low, high] and accuracies.get_xlim()[0] <= low
    assert reliability.get_ylim() == (0, 1)


def test_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no models"):
        figures.summary_figure([], tmp_path / "summary.png")
    assert not list(tmp_path.iterdir())
