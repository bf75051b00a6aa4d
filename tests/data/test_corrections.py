"""Corrected labels change what is prepared, and nothing else."""

from __future__ import annotations

import csv

import pytest

from cli.errors import InputError
from data import corrections, fingerprint, prepare
from tests.data.recipes import config, save


@pytest.fixture
def folders(tmp_path):
    for shade, name in enumerate(
        [
            *(f"labeled/{c}/{i}.png" for c in ("cat", "dog") for i in range(10)),
            *(f"unlabeled/{i}.png" for i in range(6)),
        ]
    ):
        save(tmp_path / name, shade)
    save(tmp_path / "elsewhere" / "new.png", 99)
    return tmp_path


def written(folders, rows, name="corrected.csv", columns=("file", "label")):
    with open(folders / name, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(folders / name)


def recipe(folders, labels=None, **data):
    return config(
        "image_folder",
        labeled=str(folders / "labeled"),
        unlabeled=str(folders / "unlabeled"),
        labels=labels,
        **data,
    )


def prepared(folders, labels=None, **data):
    """Returns split -> key -> name of the class."""
    source = prepare.open_source(recipe(folders, labels, **data))
    names = source.label_names
    return {
        split: {
            image.key: names[image.label] if image.label is not None else "" for image in images
        }
        for split, images in source.splits().items()
    }


def test_a_corrected_label_changes_what_is_prepared(folders):
    before = prepared(folders)
    wrong = next(key for key, name in before["labeled"].items() if name == "cat")
    tested = next(iter(before["test"]))
    labels = written(
        folders,
        [
            (folders / "labeled" / wrong, "dog"),  # a label that was wrong
            ("labeled/dog/../dog/3.png", "dog"),  # one that was right
            (folders / "unlabeled/2.png", "cat"),  # an unlabeled image
            ("elsewhere/new.png", "dog"),
            (f"labeled/{tested}", "dog"),
        ],
    )
    after = prepared(folders, labels)
    assert after["test"] == {**before["test"], tested: "dog"}  # the same images as before
    added = {"corrected/2.png": "cat", "corrected/elsewhere/new.png": "dog"}
    assert after["labeled"] == {**before["labeled"], wrong: "dog", **added}
    assert after["unlabeled"].keys() == before["unlabeled"].keys() - {"2.png"}


def test_rows_of_the_runs_own_list_count_where_a_person_touched_them(folders):
    columns = ("file", "label", "given", "teacher", "checked")
    rows = [
        (folders / "labeled/cat/0.png", "cat", "cat", "dog", ""),
        (folders / "unlabeled/0.png", "cat", "", "cat", ""),
        (folders / "unlabeled/1.png", "cat", "", "cat", "x"),
        (folders / "unlabeled/2.png", "dog", "", "cat", ""),
    ]
    after = prepared(folders, written(folders, rows, columns=columns))
    assert {key for key in after["labeled"] if key.startswith("corrected/")} == {
        "corrected/1.png",
        "corrected/2.png",
    }
    with pytest.raises(InputError, match="has no corrected row among 2"):
        prepared(folders, written(folders, rows[:2], columns=columns))
    data = recipe(
        folders,
        written(
            folders,
            [*rows, (folders / "labeled/cat/1.png", "dog", "cat", "cat", "")],
            columns=columns,
        ),
    ).data
    assert corrections.open_role("labeled", data).corrected() == {
        "cat/1.png",
        "corrected/1.png",
        "corrected/2.png",
    }


def test_what_cannot_be_used_is_told_row_by_row(folders, caplog):
    labels = written(
        folders,
        [
            ("labeled/cat/0.png", "dgo"),
            ("nowhere.png", "cat"),
            ("unlabeled/0.png", ""),
            ("unlabeled/1.png", "cat"),
            ("unlabeled/1.png", "dog"),
        ],
    )
    with (
        caplog.at_level("WARNING", "absl"),
        pytest.raises(InputError, match=r"corrected\.csv has 4 rows that cannot be used"),
    ):
        prepared(folders, labels)
    lines = [record.getMessage() for record in caplog.records]
    for number, (place, why) in enumerate(
        [
            (
                "line 2: labeled/cat/0.png",
                "has the label dgo, which is not a class of --labeled (cat, dog)",
            ),
            ("line 3: nowhere.png", "does not exist"),
            ("line 4: unlabeled/0.png", "has no label"),
            ("line 6: unlabeled/1.png", "has two labels, cat and dog"),
        ]
    ):
        assert place in lines[number] and why in lines[number]
    source = prepare.open_source(recipe(folders, labels, on_error="skip"))
    assert (
        len(source.facts["skipped"]) == 4
        and "corrected/1.png" in prepared(folders, labels, on_error="skip")["labeled"]
    )


def test_changes_of_the_list_are_noticed(folders):
    labels = written(folders, [(folders / "labeled/cat/0.png", "dog")])
    data = recipe(folders, labels).data
    before = {
        role: fingerprint.listed(role, data, collection)
        for role, collection in corrections.open_collections(data).items()
    }
    assert before == {role: fingerprint.listed(role, data) for role in before}
    written(folders, [(folders / "labeled/cat/1.png", "dog")])
    assert fingerprint.listed("labeled", data)["names"] != before["labeled"]["names"]
    assert fingerprint.listed("unlabeled", data) == before["unlabeled"]


def test_only_files_can_be_corrected(folders):
    labels = written(folders, [("labeled/cat/0.png", "dog")])
    with pytest.raises(InputError, match="the embedded digits are not files"):
        prepare.open_source(config("digits", labels=labels))
    with pytest.raises(InputError, match=r"--labels: .*missing\.csv cannot be read"):
        prepared(folders, str(folders / "missing.csv"))
