"""The folds of cross-fitting."""

import numpy as np
import pytest

from cli.errors import InputError
from data import prepare
from data.draws import fold_numbers, validation_size
from tests.data.recipes import config, encode, pixels, save


def test_folds_have_as_many_images_of_each_class_as_possible():
    labels = np.repeat([0, 1, 2], [20, 10, 7])
    numbers = fold_numbers(labels, np.arange(37), 3, 3, seed=1)
    table = np.array(
        [[(numbers[labels == label] == fold).sum() for fold in (1, 2, 3)] for label in range(3)]
    )  # (classes, folds)
    assert table.sum() == 37 and np.ptp(table, axis=1).max() <= 1 and np.ptp(table.sum(axis=0)) <= 1
    assert (numbers == fold_numbers(labels, np.arange(37), 3, 3, seed=1)).all()
    assert (numbers != fold_numbers(labels, np.arange(37), 3, 3, seed=2)).any()


def test_images_that_repeat_each_other_come_into_one_fold():
    labels, groups = np.repeat([0, 1], 12), np.arange(24)
    groups[[3, 5, 14]] = 3
    numbers = fold_numbers(labels, groups, 2, 4, seed=0)
    assert (numbers > 0).all() and len(set(numbers[[3, 5, 14]])) == 1


def test_every_class_stays_in_every_fold_s_training():
    labels = np.array([0] * 6 + [1] + [2] * 3)
    groups = np.array([*range(7), 7, 7, 7])  # class 1 has one image, class 2 three of one picture
    numbers = fold_numbers(labels, groups, 3, 2, seed=0)
    assert (numbers[:6] > 0).all() and (numbers[6:] == 0).all()


@pytest.mark.parametrize(("labeled", "size"), [(999, 0), (1000, 200), (1500, 300)])
def test_a_fifth_is_for_validation_where_it_is_enough(labeled, size):
    data = config("image_folder").data
    assert validation_size(labeled, data) == 0
    with data.ignore_type():
        data.validation_size = None
    assert validation_size(labeled, data) == size


def contents(split):
    return {image.key: image.encoded for image in split}


@pytest.fixture(name="folders")
def _folders(tmp_path):
    """Writes two classes of nine images, and a pool with two of them and ten others."""
    for i in range(18):
        save(tmp_path / "labeled" / f"class_{i % 2}" / f"{i:02d}.png", shade=i)
    for i in (4, 7, *range(100, 110)):
        save(tmp_path / "pool" / f"{i}.png", shade=i)
    return {name: str(tmp_path / name) for name in ("labeled", "pool")}


@pytest.mark.parametrize("labeled_as_unlabeled", ["nothing", "all"])
def test_a_fold_s_images_are_in_no_other_split(folders, labeled_as_unlabeled):
    places = {
        "labeled": folders["labeled"],
        "unlabeled": folders["pool"],
        "labeled_as_unlabeled": labeled_as_unlabeled,
    }
    whole = contents(prepare.open_source(config("image_folder", **places)).splits()["labeled"])
    pool = {encode(pixels(shade)) for shade in (4, 7, *range(100, 110))}
    pool |= set(whole.values()) if labeled_as_unlabeled == "all" else set()
    seen = []
    for fold in (1, 2, 3):
        source = prepare.open_source(config("image_folder", **places, folds=3, fold=fold))
        split = {name: contents(images) for name, images in source.splits().items()}
        held_out = split["validation"]
        assert not set(held_out.values()) & {
            *split["labeled"].values(),
            *split["unlabeled"].values(),
            *split["test"].values(),
        }
        assert {**split["labeled"], **held_out} == whole and source.facts["in_no_fold"] == 0
        expected = pool - set(held_out.values()) - set(split["test"].values())
        assert set(split["unlabeled"].values()) == expected
        seen += list(held_out)
    assert sorted(seen) == sorted(whole)


def test_digits_have_folds_too():
    whole = {
        image.key
        for image in prepare.open_source(config("digits", labeled_per_class=5)).splits()["labeled"]
    }
    folds = [
        prepare.open_source(config("digits", labeled_per_class=5, folds=2, fold=fold)).splits()
        for fold in (1, 2)
    ]
    one, other = ({image.key for image in fold["validation"]} for fold in folds)
    assert one | other == whole and not one & other and len(one) == 25
    assert {image.key for image in folds[0]["labeled"]} == other


def test_more_folds_than_images_are_refused(folders):
    values = {"labeled": folders["labeled"], "unlabeled": folders["pool"], "folds": 50, "fold": 50}
    with pytest.raises(
        InputError, match=r"config\.data\.folds is 50, more than the labeled images allow"
    ):
        prepare.open_source(config("image_folder", **values))
