"""Schedules against closed forms and the release's numbers.

The numbers are facts of the EfficientNet recipe at batch 2048.
"""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from cli import recipes
from cli.errors import InputError
from training import plot_schedules, schedules


def paper_schedule():
    config = ConfigDict(
        {
            "name": "exponential",
            "base": 0.016,
            "warmup_epochs": 5.0,
            "decay_epochs": 2.4,
            "decay_rate": 0.97,
        }
    )
    return schedules.build(config, batch_size=2048, steps=218_949, steps_per_epoch=1_281_167 / 2048)


def test_decay_is_counted_from_step_zero_under_the_warmup():
    schedule = paper_schedule()
    warmup = math.ceil(5 * 1_281_167 / 2048)
    assert float(schedule(0)) == 0.0
    assert float(schedule(warmup // 2)) == pytest.approx(0.128 / 2, rel=1e-3)
    assert float(schedule(warmup)) == pytest.approx(0.128 * 0.97**2, rel=1e-5)  # not 0.128


def test_final_rate_of_350_epochs():
    assert float(paper_schedule()(218_948)) == pytest.approx(0.128 * 0.97**145, rel=1e-4)


def test_cosine_ends_at_zero_and_is_half_in_the_middle():
    schedule = schedules.WarmupCosine(1.0, total_steps=110, warmup_steps=10)
    assert float(schedule(5)) == pytest.approx(0.5)
    assert float(schedule(10)) == pytest.approx(1.0)
    assert float(schedule(60)) == pytest.approx(0.5, abs=1e-6)
    assert float(schedule(110)) == pytest.approx(0.0, abs=1e-6)


def test_cosine_waits():
    schedule = schedules.WarmupCosine(1.0, total_steps=100, warmup_steps=10, wait_steps=30)
    assert float(schedule(20)) == 0.0
    assert float(schedule(40)) == pytest.approx(1.0)


def test_constant_after_warmup():
    config = ConfigDict(
        {
            "name": "constant",
            "base": 0.256,
            "warmup_epochs": 1.0,
            "decay_epochs": 2.4,
            "decay_rate": 0.97,
        }
    )
    schedule = schedules.build(config, batch_size=256, steps=100, steps_per_epoch=10)
    assert [float(schedule(s)) for s in (5, 10, 99)] == pytest.approx([0.128, 0.256, 0.256])


def test_unknown_schedule_is_the_users_error():
    config = ConfigDict(
        {
            "name": "zigzag",
            "base": 0.1,
            "warmup_epochs": 0.0,
            "decay_epochs": 1.0,
            "decay_rate": 1.0,
        }
    )
    with pytest.raises(InputError, match="zigzag"):
        schedules.build(config, batch_size=1, steps=1, steps_per_epoch=1)


def recipe(name):
    return recipes.from_flags(f"--config=configs/{name}")


def test_the_rates_of_a_recipe_as_a_picture(tmp_path):
    config = recipe("noisy_student/imagenet.py:l2")
    plot_schedules.main(config, str(tmp_path / "rates.png"), None)
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    rates = plot_schedules.rates(config, 1_281_167)
    assert sorted(rates) == [
        "finetune",
        "finetune_student",
        "selector",
        "student",
        "student_1",
        "student_2",
        "teacher",
    ]
    steps, values = rates["student"][""]
    assert steps[0] == 0 and steps[-1] == 218_949
    np.testing.assert_allclose(
        values[::97], [float(paper_schedule()(int(step))) for step in steps[::97]], rtol=1e-5
    )


def test_both_networks_rates():
    config = recipe("meta_pseudo_labels/cifar10_4k.py")
    drawn = plot_schedules.rates(config, 4000)["train"]
    (steps, student), (_, teacher) = drawn["student"], drawn["teacher"]
    waited = steps <= 3000
    assert 1 < waited.sum() < len(steps) / 2 and (student[waited] == 0).all()
    assert (student[~waited][:-1] > 0).all() and (teacher[1:-1] > 0).all()  # the last is about 0


def test_a_picture_of_data_that_are_not_there(tmp_path):
    config = recipe("noisy_student/digits.py")
    with pytest.raises(InputError, match=r"holds no summary.json"):
        plot_schedules.main(config, str(tmp_path / "rates.png"), str(tmp_path))
    with pytest.raises(InputError, match=r"--output: .* is a directory"):
        plot_schedules.main(config, str(tmp_path), None)
    assert not list(tmp_path.iterdir())
