"""Allowed values of the settings of a training."""

from __future__ import annotations

import pytest

from cli import settings
from cli.errors import InputError
from noisy_student.settings import TRAIN


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": -1}, r"batch_size is -1; it must be at least 1, or None"),
        ({"steps": 0}, r"steps is 0; it must be at least 1"),
        ({"epochs": 0.0}, r"epochs is 0\.0; it must be above 0"),
        ({"accumulation": 0}, "accumulation is 0; it must be at least 1"),
        ({"final_weights": "lst"}, "final_weights is 'lst'; it can be last or best; did you mean"),
        ({"cutmix": -1.0}, r"cutmix is -1\.0; it must be at least 0"),
        ({"mixup": -1.0}, r"mixup is -1\.0; it must be at least 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0; it must be at least 0 and below 1"),
        (
            {"precision": "float16"},
            "precision is 'float16'; it can be float32, mixed_bfloat16 or mixed_float16",
        ),
        ({"optimizer": {"name": "lion"}}, r"optimizer\.name is 'lion'; it can be rmsprop"),
        (
            {"optimizer": {"name": "sgd", "momentum": 1.5}},
            r"optimizer\.momentum is 1\.5; it must be at least 0 and below 1",
        ),
        ({"unlabeled_ratio": -1}, "unlabeled_ratio is -1; it must be at least 0"),
        ({"checkpoint_every": -3}, "checkpoint_every is -3; it must be at least 0"),
        ({"log_every": -1}, "log_every is -1; it must be at least 0"),
        ({"evaluate_every": -1}, "evaluate_every is -1; it must be at least 0"),
        ({"keep_every": -1}, "keep_every is -1; it must be at least 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0; it must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0; it must be at least 0 and below 1"),
        ({"schedule": {"base": float("nan")}}, r"schedule\.base is nan; it must be a number"),
        (
            {"model": {"strides": (1, 0)}},
            r"model\.strides is \(1, 0\); it must be whole numbers, e",
        ),
        ({"preprocessing": {"pad": -1}}, r"preprocessing\.pad is -1; it must be at least 0"),
        ({"learning_rate": 0.1}, "learning_rate is not a setting"),
    ],
)
def test_values_that_no_training_could_use(overrides, message):
    with pytest.raises(InputError, match=f"^config.student.{message}"):
        settings.check_settings(overrides, TRAIN, "config.student")


def test_values_that_a_training_can_use():
    settings.check_settings(settings.make(TRAIN), TRAIN)
    network = {
        "name": "wrn_28_2",
        "variant": "release",
        "dropout": None,
    }  # `variant` is a builder's own argument
    own = {"image_size": None, "mean": [1, 2, 3], "randaugment_layers": 0}
    settings.check_settings(
        {"model": network, "preprocessing": own, "epochs": 0.5, "batch_size": 1}, TRAIN
    )
