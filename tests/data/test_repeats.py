"""Repeated images: under another class, in the test, on both sides of a split."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_sample_image

from cli.errors import InputError
from data import prepare, repeats, sources
from data.draws import Usable, draw
from tests.data import recipes
from tests.data.recipes import save


@pytest.fixture
def folders(tmp_path):
    """Writes two classes of 8 images and 6 unlabeled ones."""
    for name, first in (("labeled/cat", 10), ("labeled/dog", 30), ("unlabeled", 50)):
        for i in range(8):
            save(tmp_path / name / f"{i}.png", first + i)
    return tmp_path


def opened(folders: Path, **data) -> sources.Source:
    data = {"labeled": str(folders / "labeled"), "unlabeled": str(folders / "unlabeled"), **data}
    return prepare.open_source(recipes.config("image_folder", **data))


def keys(source: sources.Source, name: str) -> set[str]:
    return {image.key for image in source.splits()[name]} if name in source.splits() else set()


def photograph(number: int) -> PIL.Image.Image:
    """Returns a part of a photograph."""
    left = 60 * number
    return PIL.Image.fromarray(load_sample_image("china.jpg")[100:200, left : left + 100])


# Splits


@pytest.mark.parametrize(
    "data", [{}, {"validation_size": 4}, {"labeled_per_class": 4, "labeled_as_unlabeled": "rest"}]
)
def test_identical_images_stand_on_one_side(folders, data):
    for name in ("cat", "dog"):
        for i in range(8):
            shutil.copy(
                folders / "labeled" / name / f"{i}.png",
                folders / "labeled" / name / f"copy_of_{i}.png",
            )
    source = opened(folders, **data)
    sides = {name: keys(source, name) for name in ("labeled", "test", "validation")}
    sides["rest"] = {
        key[len("labeled/") :] for key in keys(source, "unlabeled") if key.startswith("labeled/")
    }
    for side in sides.values():
        assert {key.replace("/", "/copy_of_") for key in side if "copy" not in key} == {
            key for key in side if "copy" in key
        }
    assert sum(map(len, sides.values())) == 32
    assert Counter(key[:3] for key in sides["test"]) == {
        "cat": 2,
        "dog": 2,
    }  # of 16, 3 are wanted; 4 would be as near
    assert source.facts["repeated_labeled_images"] == {"identical": 16, "look_alike": 0}


def test_images_that_look_alike_stand_on_one_side(folders):
    for i in range(5):
        photograph(i).save(folders / "labeled" / "cat" / f"photo_{i}.png")
        photograph(i).save(folders / "labeled" / "cat" / f"photo_{i}.jpg", quality=60)
    for seed in range(3):
        source = opened(folders, test_seed=seed)
        for name in ("labeled", "test"):
            photos = [key.partition(".")[0] for key in keys(source, name) if "photo" in key]
            assert set(Counter(photos).values()) <= {2}
    assert source.facts["repeated_labeled_images"] == {"identical": 0, "look_alike": 5}
    apart = opened(folders, near_duplicates=False)
    assert apart.facts["repeated_labeled_images"] == {"identical": 0, "look_alike": 0}


def test_a_class_of_one_picture_cannot_be_divided(folders):
    for i in range(1, 8):
        shutil.copy(folders / "labeled" / "cat" / "0.png", folders / "labeled" / "cat" / f"{i}.png")
    with pytest.raises(
        InputError,
        match="the images of class cat repeat each other, so none can be held out for testing",
    ):
        opened(folders)


class Labels:
    """A collection with nothing but labels."""

    def __init__(self, labels):
        self.labels = np.array(labels)


def test_draws_without_repeats_are_the_draws_of_single_images():
    labels = np.random.Generator(np.random.PCG64(1)).integers(0, 3, 200)
    everything = Usable(Labels(labels), list(range(200)), list(range(200)), np.arange(200))
    drawn, rest = draw(everything, [10, 0, 7], 5, "test", ["a", "b", "c"])
    expected = []
    for label, count in enumerate((10, 0, 7)):
        places = np.flatnonzero(labels == label)
        expected += places[
            sources.generator(5, "test", label).permutation(len(places))[:count]
        ].tolist()
    assert drawn.indices == sorted(expected)
    assert sorted(drawn.indices + rest.indices) == list(range(200))


def test_draws_of_groups_come_as_close_as_they_can():
    rng = np.random.Generator(np.random.PCG64(2))
    for seed in range(30):
        groups = np.sort(rng.integers(0, 60, 120))
        groups = np.searchsorted(groups, groups)  # the first place of each
        labels = rng.integers(0, 2, 120)[groups]
        drawn, rest = draw(
            Usable(Labels(labels), list(range(120)), list(range(120)), groups),
            [20, 11],
            seed,
            "test",
            ["a", "b"],
        )
        assert not set(groups[drawn.indices]) & set(groups[rest.indices])
        assert np.abs(np.bincount(labels[drawn.indices], minlength=2) - [20, 11]).max() <= 1


# The test


def test_labeled_images_of_the_test_are_left_out(folders, capsys):
    (folders / "test" / "cat").mkdir(parents=True)
    shutil.copy(folders / "labeled" / "cat" / "3.png", folders / "test" / "cat" / "x.png")
    photograph(2).save(folders / "labeled" / "dog" / "photo.png")
    (folders / "test" / "dog").mkdir()
    photograph(2).resize((140, 140)).save(folders / "test" / "dog" / "photo.jpg", quality=70)
    source = opened(folders, test=str(folders / "test"), labeled_as_unlabeled="all")
    assert len(keys(source, "labeled")) == 15 and not {"cat/3.png", "dog/photo.png"} & keys(
        source, "labeled"
    )
    assert not {"labeled/cat/3.png", "labeled/dog/photo.png"} & keys(source, "unlabeled")
    left_out = source.facts["held_out_images_left_out_of_labeled"]
    assert [(Path(entry["file"]).name, entry["of"], entry["bits"] < 0) for entry in left_out] == [
        ("3.png", "cat/x.png", True),
        ("photo.png", "dog/photo.jpg", False),
    ]
    assert "2 labeled images were left out of training" in repeats.in_words(source.facts)[0]
    shutil.copytree(folders / "labeled" / "cat", folders / "test" / "cat", dirs_exist_ok=True)
    with pytest.raises(InputError, match="class cat has no image left that is not in the test"):
        opened(folders, test=str(folders / "test"))


# Several classes


def test_one_picture_under_two_classes(folders):
    shutil.copy(folders / "labeled" / "cat" / "3.png", folders / "labeled" / "dog" / "x.png")
    PIL.Image.open(folders / "labeled" / "cat" / "4.png").save(
        folders / "labeled" / "dog" / "y.bmp"
    )  # the same pixels
    with pytest.raises(
        InputError,
        match=(
            r"2 pictures stand under several classes .first: .*cat/3.png is cat, .*dog/x.png is dog"
        ),
    ):
        opened(folders)
    source = opened(folders, on_error="skip")
    names = {
        Path(entry["file"]).name for entry in source.facts["images_of_several_classes_left_out"]
    }
    assert names == {"3.png", "4.png", "x.png", "y.bmp"}
    assert len(keys(source, "labeled")) + len(keys(source, "test")) == 14
    assert "4 images were left out" in repeats.in_words(source.facts)[0]


def test_another_class_in_the_test(folders):
    (folders / "test" / "dog").mkdir(parents=True)
    save(folders / "test" / "dog" / "0.png", 99)
    shutil.copy(folders / "labeled" / "cat" / "3.png", folders / "test" / "dog" / "x.png")
    with pytest.raises(
        InputError,
        match=r"1 picture stands under several classes .*cat/3.png is cat, .*dog/x.png is dog",
    ):
        opened(folders, test=str(folders / "test"))
    source = opened(folders, test=str(folders / "test"), on_error="skip")
    assert keys(source, "test") == {"dog/0.png"} and "cat/3.png" not in keys(source, "labeled")


def test_look_alikes_under_two_classes_are_told_and_stay(folders):
    photograph(1).save(folders / "labeled" / "cat" / "photo.png")
    photograph(1).save(folders / "labeled" / "dog" / "photo.jpg", quality=60)
    source = opened(folders)
    [pair] = source.facts["look_alikes_of_several_classes"]
    assert (pair["class"], pair["class_of_that"]) == ("cat", "dog")
    assert any(
        {"cat/photo.png", "dog/photo.jpg"} <= keys(source, name) for name in ("labeled", "test")
    )
    assert "warning: 1 pair of labeled images under two classes look alike" in "\n".join(
        repeats.in_words(source.facts)
    )


# Benchmarks


def test_a_benchmark_keeps_its_images():
    facts = {"repeated_in_benchmark": {"labeled": 3, "labeled_in_test": 1, "of_several_classes": 2}}
    assert (
        "identical to another: 3, to a test image: 1, to an image of another class: 2; all stay"
        in repeats.in_words(facts)[0]
    )


# The share that may go by looks alone


def test_too_many_look_alikes_stop_the_stage():
    class Found:
        def find(self, images):
            return {i: {"of": str(i % 2), "bits": 3} for i in range(len(images))}

    class Files:
        def describe(self, index):
            return f"{index}.png"

    left_out: list = []
    assert (
        repeats.HeldOutFilter(Found(), "unlabeled", 1000, left_out).places(
            Files(), range(50), [None] * 50
        )
        == []
    )
    assert len(left_out) == 50
    with pytest.raises(
        InputError,
        match=(
            r"--unlabeled: 51 or more of 1,000 images look like 2 images held out"
            r" .*near_duplicates=False"
        ),
    ):
        repeats.HeldOutFilter(Found(), "unlabeled", 1000, []).places(
            Files(), range(51), [None] * 51
        )
    many = repeats.HeldOutFilter(
        Found(), "unlabeled", 100, []
    )  # the share is 5 images, and 20 are few
    many.places(Files(), range(20), [None] * 20)
    with pytest.raises(InputError):
        many.places(Files(), range(1), [None])
