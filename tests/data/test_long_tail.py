"""A long-tailed cut: Cui et al.'s numbers, the proportions of the rest, and what it tells."""

import numpy as np
import pytest

from cli.errors import InputError
from data import draws, prepare, survey
from tests.data import recipes
from tests.data.recipes import save


def test_the_profile_is_the_published_one():
    """Counts CIFAR-10 with 5,000 images a class and an imbalance of 100: 12,406 images in all.

    The counts are those of the authors' code, which rounds down: 5000 · 0.01^(i / 9).
    """
    counts = draws.long_tail_counts([5000] * 10, 5000, 100)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(draws.long_tail_counts([500] * 100, 500, 100)) == 10_847


def test_the_largest_class_comes_first_and_none_is_empty():
    assert draws.long_tail_counts([30, 90, 60], 20, 4) == [5, 20, 10]
    assert draws.long_tail_counts([7, 7, 7], 9, 9) == [9, 3, 1]
    assert draws.long_tail_counts([1, 2, 3], 2, 100) == [1, 1, 2]


@pytest.fixture
def folders(tmp_path):
    """Writes three classes of 40, 16 and 30 images that do not repeat each other."""
    number = 0
    for name, count in (("ant", 40), ("bee", 16), ("cat", 30)):
        for i in range(count):
            save(tmp_path / "labeled" / name / f"{i}.png", number)
            number += 1
    return tmp_path


def recipe(folders, **data):
    values = {
        "labeled_per_class": 8,
        "long_tail": 4.0,
        "labeled_as_unlabeled": "rest",
        "test_per_class": 2,
        **data,
    }
    return prepare.with_locations(
        recipes.config("image_folder", **values), {"labeled": str(folders / "labeled")}
    )


def per_class(split, unlabeled=False):
    names = ("ant", "bee", "cat")
    if unlabeled:  # its images have no label, but a path
        return [sum(f"{name}/" in image.key for image in split) for name in names]
    return np.bincount([image.label for image in split], minlength=3).tolist()


@pytest.mark.parametrize("validation", [0, 6])
def test_labels_and_the_rest_are_cut_alike(folders, validation):
    config = recipe(folders, validation_size=validation)
    source = prepare.open_source(config)
    splits = source.splits()
    assert per_class(splits["labeled"]) == [8, 2, 4]
    rest = per_class(splits["unlabeled"], unlabeled=True)
    assert rest == draws.long_tail_counts([38, 14, 28], rest[0], 4)
    left = np.array([38, 14, 28]) - [8, 2, 4]
    if not validation:  # the largest cut: one more of the first class would need more than there is
        assert rest == [30, 7, 15] and (np.array(rest) <= left).all()
    total = 86 - 6 - validation
    assert source.facts["out_of_long_tail"] == total - sum(rest) - 14
    found = survey.of_images(config)
    assert found.images["unlabeled"] == sum(rest) and found.images["labeled"] == 14
    assert survey.of_images(config, whole_below=0).images["unlabeled"] == sum(rest)


def test_all_are_the_labels_and_the_rest(folders):
    splits = prepare.open_source(recipe(folders, labeled_as_unlabeled="all")).splits()
    assert per_class(splits["unlabeled"], unlabeled=True) == [38, 9, 19]


def test_the_seed_draws_the_images_and_one_is_no_cut(folders):
    keys = [
        {image.key for image in prepare.open_source(recipe(folders, **data)).splits()["labeled"]}
        for data in ({}, {}, {"long_tail": 1.0})
    ]
    assert keys[0] == keys[1] and len(keys[2]) == 24
    config = recipe(folders)
    with config.unlocked():
        config.seed = 5
    assert {image.key for image in prepare.open_source(config).splits()["labeled"]} != keys[0]


def test_it_is_said_and_refused(folders, tmp_path, capsys):
    prepare.main(recipe(folders), str(tmp_path / "w"))
    assert "left out for the long tail: 14" in capsys.readouterr().out
    with pytest.raises(InputError, match="which has no effect on the digits"):
        prepare.open_source(recipes.config("digits", labeled_per_class=5, long_tail=10.0))
