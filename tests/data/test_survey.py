"""A survey of folders reports what the run finds in them."""

from __future__ import annotations

import shutil
import tarfile

import pytest
import tensorflow_datasets as tfds

from cli.errors import InputError
from data import prepare, survey
from tests.data import recipes
from tests.data.recipes import save


@pytest.fixture
def folders(tmp_path):
    """Writes two classes of 10 and 8 images of 12 x 10 pixels, and 6 unlabeled images."""
    for name, first, count in (
        ("labeled/cat", 10, 10),
        ("labeled/dog", 30, 8),
        ("unlabeled", 50, 6),
    ):
        for i in range(count):
            save(tmp_path / name / f"{i}.png", first + i)
    return tmp_path


def recipe(folders, **data):
    return prepare.with_locations(
        recipes.config("image_folder", **data),
        {name: str(folders / name) for name in ("labeled", "unlabeled")},
    )


@pytest.mark.parametrize("whole", [0, survey.WHOLE])
@pytest.mark.parametrize(
    "data", [{}, {"validation_size": 4}, {"labeled_per_class": 5, "labeled_as_unlabeled": "rest"}]
)
def test_the_numbers_are_those_of_the_run(folders, data, whole):
    found = survey.of_images(recipe(folders, **data), whole_below=whole)
    splits = prepare.open_source(recipe(folders, **data)).splits()
    assert {name: count for name, count in found.images.items() if count} == {
        name: len(split) for name, split in splits.items()
    }
    facts = prepare.open_source(recipe(folders, **data)).facts
    assert (found.median_height, found.median_width) == (
        facts["median_height"],
        facts["median_width"],
    )
    assert found.file_bytes == sum(path.stat().st_size for path in folders.rglob("*.png"))
    assert (
        found.classes == 2
        and len(found.sample) >= 7
        and all(image[:4] == b"\x89PNG" for image in found.sample)
    )
    assert found.examined == (None if whole else 18)


def archive(path, folder):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=folder.name)
    return f"tar:{path}"


@pytest.mark.parametrize("whole", [0, survey.WHOLE])
def test_archives_are_looked_at_too(folders, whole):
    locations = {
        name: archive(folders / "tars" / f"{name}.tar", folders / name)
        for name in ("labeled", "unlabeled")
    }
    config = prepare.with_locations(recipes.config("image_folder"), locations)
    found, of_folders = (
        survey.of_images(config, whole_below=whole),
        survey.of_images(recipe(folders), whole_below=whole),
    )
    assert found._replace(seconds=0, sample=()) == of_folders._replace(seconds=0, sample=())
    assert len(found.sample) == len(of_folders.sample)


@pytest.mark.parametrize("whole", [0, survey.WHOLE])
def test_data_sets_of_tfds_are_looked_at_too(whole):
    with tfds.testing.mock_data(num_examples=40):
        config = recipes.config(
            "tfds",
            labeled="cifar10/train",
            unlabeled="imagenet2012/train",
            near_duplicates=False,
            labeled_per_class=1,
        )
        config.data.labeled_as_unlabeled, config.data.test_fraction = "rest", 0.3
        found = survey.of_images(config, whole_below=whole)
        splits = prepare.open_source(config).splits()
    assert found.classes == 10 and (found.median_height, found.median_width) == (32, 32)
    assert found.images["labeled"] == len(splits["labeled"]) == 10 and found.file_bytes > 80 * 100
    assert found.images["test"] == len(splits["test"])


def test_a_test_folder_is_counted(folders):
    for name in ("cat", "dog"):
        save(folders / "test" / name / "t.png", 90 if name == "cat" else 95)
    for whole in (0, survey.WHOLE):
        assert (
            survey.of_images(recipe(folders, test=str(folders / "test")), whole_below=whole).images[
                "test"
            ]
            == 2
        )


@pytest.mark.parametrize("whole", [0, survey.WHOLE])
@pytest.mark.parametrize("fault", ["no folder", "one class", "empty class", "damaged", "one image"])
def test_what_the_run_refuses_is_refused_with_the_same_words(folders, fault, whole):
    dog = folders / "labeled" / "dog"
    if fault == "no folder":
        shutil.rmtree(folders / "unlabeled")
    elif fault == "one class":
        shutil.rmtree(dog)
    elif fault == "empty class":
        shutil.rmtree(dog)
        dog.mkdir()
    elif fault == "damaged":
        (dog / "0.png").write_bytes((dog / "0.png").read_bytes()[:40])
    else:
        shutil.rmtree(dog)
        save(dog / "only.png", 31)
    with pytest.raises(InputError) as of_run:
        prepare.open_source(recipe(folders))
    with pytest.raises(InputError) as of_survey:
        survey.of_images(recipe(folders), whole_below=whole)
    assert str(of_survey.value) == str(of_run.value)


def test_only_a_sample_of_many_files_is_examined(folders):
    (folders / "labeled" / "cat" / "3.png").write_bytes(b"no image")
    found = survey.of_images(recipe(folders), most=2, whole_below=0)
    assert found.examined == 2 and found.images["labeled"] == 14
