"""Epochs to steps, open values to numbers."""

import pytest

from cli.errors import InputError
from configs.noisy_student.base import train_section
from training import resolve


def section(**overrides):
    return train_section(**overrides).to_dict()


def test_epochs_of_the_labeled_set_become_steps():
    # 350 epochs of ImageNet at batch 4096: 109,474 steps in the release; ours rounds up.
    resolved = resolve.section(
        section(epochs=350.0, batch_size=4096), labeled_examples=1_281_167, unlabeled=False
    )
    assert resolved["steps"] == 109_475
    assert "epochs" not in resolved


@pytest.mark.parametrize("durations", [{}, {"epochs": 1.0, "steps": 5}])
def test_needs_exactly_one_duration(durations):
    with pytest.raises(InputError, match="either steps or epochs"):
        resolve.section(section(**durations), labeled_examples=10, unlabeled=False)


def test_checkpoints_fall_on_log_steps():
    resolved = resolve.section(
        section(steps=777, log_every=30, checkpoint_every=100, evaluate_every=50),
        labeled_examples=100,
        unlabeled=True,
    )
    assert resolved["checkpoint_every"] == 120
    assert resolved["evaluate_every"] == 60


def test_checkpoints_kept_for_good_are_among_those_made():
    resolved = resolve.section(
        section(steps=777, log_every=30, checkpoint_every=100, keep_every=200),
        labeled_examples=100,
        unlabeled=True,
    )
    assert resolved["keep_every"] == 240


def test_no_unlabeled_stream_no_ratio():
    assert (
        resolve.section(section(steps=5, unlabeled_ratio=7), labeled_examples=10, unlabeled=False)[
            "unlabeled_ratio"
        ]
        == 0
    )


@pytest.mark.parametrize(("examples", "expected"), [(10, 32), (1000, 64), (10**6, 256)])
def test_batch_size_from_the_data(examples, expected):
    assert resolve.batch_size(examples) == expected


@pytest.mark.parametrize(
    ("size", "height", "width", "warned"),
    [
        (16, 224, 300, True),
        (16, 64, 64, True),
        (16, 63, 300, False),
        (16, 8, 8, False),
        (160, 4000, 3000, False),
    ],
)
def test_photographs_for_a_recipe_of_small_images_are_warned_of(size, height, width, warned):
    warning = resolve.shrinks(size, median_height=height, median_width=width)
    assert bool(warning) == warned
    assert not warned or f"{height}×{width} pixels are shrunk to 16×16" in warning


def test_distances_follow_the_image_size():
    open_values = {
        "image_size": None,
        "translate_const": None,
        "cutout_const": None,
        "crop_padding": None,
        "flip": True,
    }
    open_values |= {"style": None, "pad": None}
    resolved = resolve.preprocessing(open_values, {}, median_height=100, median_width=150)
    rest = {"translate_const": 32.0, "cutout_const": 17.1, "crop_padding": 14, "flip": True}
    assert resolved == {"image_size": 96, "style": "imagenet", "pad": 0, **rest}
    small = resolve.preprocessing(open_values, {}, median_height=60, median_width=70)
    assert (small["image_size"], small["style"], small["pad"]) == (64, "small", 8)
    given = {"image_size": 16, "translate_const": 4.0, "cutout_const": 4.0}
    assert resolve.preprocessing(given, {}, median_height=8, median_width=8) == given


def test_a_section_s_own_preprocessing_goes_before_the_recipe_s():
    recipe = {"image_size": 64, "translate_const": 4.0, "cutout_const": None, "flip": True}
    own = {"image_size": 128, "translate_const": None, "flip": False}
    resolved = resolve.preprocessing(recipe, own, median_height=8, median_width=8)
    assert resolved == {
        "image_size": 128,
        "translate_const": 4.0,
        "cutout_const": 22.9,
        "flip": False,
    }


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(8, 8, 32), (100, 150, 96), (375, 500, 224)]
)
def test_image_size_from_the_data(height, width, expected):
    assert resolve.image_size(height, width) == expected


def test_raised_steps_are_told(caplog):
    resolve._say_once.cache_clear()
    with caplog.at_level("INFO", logger="absl"):
        for _ in range(2):
            train = section(epochs=1.0, min_steps=600, batch_size=10)
            assert resolve.section(train, labeled_examples=20, unlabeled=False)["steps"] == 600
    assert (
        caplog.text.count(
            "1 epochs are 2 steps; min_steps raises that to 600, which are 300.0 epochs"
        )
        == 1
    )
    assert caplog.text.count("\n") == 1


def test_what_decides_the_length_is_said():
    assert resolve.length(section(steps=5), 20, 10) == ""
    assert resolve.length(section(epochs=60.0, min_steps=200), 96, 32) == (
        "60 epochs are 180 steps; min_steps raises that to 200, which are 66.7 epochs"
    )
    assert (
        resolve.length(section(epochs=60.0, min_steps=100), 96, 32)
        == "60 epochs are 180 steps, no fewer than min_steps=100"
    )
    assert resolve.length(section(epochs=60.0, min_steps=0), 96, 32) == "60 epochs are 180 steps"


def test_steps_given_for_another_batch_are_as_many_epochs():
    """Tests that all durations in steps are scaled, those of the networks' own sections too.

    Other numbers stay, and so does the recipe.
    """
    train = section(steps=1000, batch_size=16, steps_for_batch=128, log_every=10)
    train["uda"] = {"ramp_steps": 50, "weight": 2.0}
    train["student"] = {"schedule": {"warmup_steps": 25, "wait_steps": 0, "base": 0.1}}
    resolved = resolve.section(train, labeled_examples=100, unlabeled=False, quiet=True)
    assert (resolved["steps"], resolved["log_every"], resolved["uda"]) == (
        8000,
        10,
        {"ramp_steps": 400, "weight": 2.0},
    )
    assert resolved["student"]["schedule"] == {"warmup_steps": 200, "wait_steps": 0, "base": 0.1}
    assert "steps_for_batch" not in resolved and train["uda"]["ramp_steps"] == 50
    said = "steps=1,000 is for 128 labeled images a step; with 16 that is 8,000 (steps_for_batch)"
    assert resolve.length(train, 100, 16) == said
    same = resolve.section({**train, "batch_size": 128}, labeled_examples=100, unlabeled=False)
    assert (same["steps"], same["uda"], resolve.length(train, 100, 128)) == (1000, train["uda"], "")
    assert (
        resolve.section({**train, "batch_size": 4096}, labeled_examples=100, unlabeled=False)[
            "steps"
        ]
        == 31
    )


def test_epochs_need_no_batch_to_be_given_for():
    train = section(epochs=4.0, batch_size=10, steps_for_batch=20)
    assert resolve.section(train, labeled_examples=100, unlabeled=False)["steps"] == 40
