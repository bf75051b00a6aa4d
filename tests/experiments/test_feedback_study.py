"""The study of the estimators' noise: the ratio, and the command."""

import json

import numpy as np
import PIL.Image
import pytest

from cli import recipes
from cli.errors import InputError
from experiments import feedback_study


def test_the_ratio_of_known_gradients():
    """Gradients with mean m and covariance s²I have the ratio ‖m‖²/(n s²).

    Without a signal it is 0, not the noise of the mean.
    """
    rng = np.random.default_rng(0)
    mean, deviation = np.array([3.0, 0.0, 4.0, 0.0, 0.0]), 2.0
    gradients = np.stack(
        [mean + deviation * rng.normal(size=(4000, 5)), deviation * rng.normal(size=(4000, 5))], 1
    )
    ratios = feedback_study.signal_to_noise(gradients)
    assert ratios[0] == pytest.approx(25 / 20, rel=0.05)
    assert ratios[1] < 0.001


def run(workdir, *overrides):
    small = [
        "--config.draws=60",
        "--config.batches=2",
        "--config.batch_sizes=(2, 16)",
        "--config.hidden=8",
    ]
    config = recipes.from_flags(
        "--config=configs/experiments/feedback_study.py", *small, *overrides
    )
    feedback_study.main(config, str(workdir))


def test_the_command(tmp_path, capsys):
    run(tmp_path / "w")
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    ratios = {
        name: [np.mean(of_size) for of_size in values]
        for name, values in results["signal_to_noise"].items()
    }
    assert results["batch_sizes"] == [2, 16]
    assert len(ratios) == 9
    low, high = results["signal_to_noise"]["soft"][1]
    assert low < high, "two batches of images, each with draws of its own"
    assert ratios["soft"][1] > 2 * ratios["per_example"][1], (
        "it has no noise of its own example's draw"
    )
    assert ratios["per_example"][1] > 2 * ratios["dot_product"][1], (
        "a scalar carries the noise of 16 examples"
    )
    assert ratios["finite_difference"][1] == pytest.approx(ratios["dot_product"][1], abs=0.02), (
        "the second is the first order of the first"
    )
    with PIL.Image.open(tmp_path / "w" / "figure.png") as image:
        assert image.size == (1660, 1000)
    run(tmp_path / "w")
    assert "is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed is -1; it must be at least 0"),
        ("draws=1", "draws is 1; at least 2"),
        ("labeled=1797", "labeled is 1797; .* below 1797"),
        ("batch_sizes=(4, 0)", r"batch_sizes are \(4, 0\); .* from 1 to 1747"),
        ("batch_sizes=(1748,)", "from 1 to 1747, the unlabeled images"),
        ("batch_sizes=()", "batch_sizes are"),
    ],
)
def test_unusable_values_are_refused(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "w", f"--config.{override}")
    assert not (tmp_path / "w").exists()
