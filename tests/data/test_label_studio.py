"""Label Studio's JSON, in and out, against examples in the form of its documentation."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from cli.errors import InputError
from data import label_studio
from data.image_list import open_list, read_rows
from data.sources import Request


def annotated(image, *choices, cancelled=False):
    """Returns a task of an export, with the documentation's fields."""
    value = {"choices": list(choices)}
    result = {
        "id": "Dx_aB91ISN",
        "type": "choices",
        "value": value,
        "to_name": "img",
        "from_name": "tag",
        "origin": "manual",
    }
    annotation = {
        "id": 1001,
        "completed_by": 10,
        "result": [result],
        "was_cancelled": cancelled,
        "ground_truth": False,
        "lead_time": 4.288,
    }
    times = {
        "created_at": "2021-03-09T21:52:49.513742Z",
        "updated_at": "2021-03-09T22:16:08.746926Z",
    }
    return {
        "id": 1,
        "project": 83,
        **times,
        "data": {"image": image},
        "annotations": [annotation],
        "predictions": [],
    }


def test_an_export_is_a_list_of_labels(tmp_path):
    tasks = [
        annotated("/data/local-files/?d=photos/a%20b.png", "cat"),
        annotated(f"file://{tmp_path}/c.png", "dog"),
        annotated("/data/local-files/?d=/absolute/d.png", "cat"),
        annotated("plain.png", "dog"),
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = open_list(Request(str(tmp_path / "export.json"), "labeled"))
    assert {file.path: found.label_names[file.label] for file in found.files()} == {
        f"{tmp_path}/photos/a b.png": "cat",
        f"{tmp_path}/c.png": "dog",
        "/absolute/d.png": "cat",
        f"{tmp_path}/plain.png": "dog",
    }


def rows(tmp_path, *tasks):
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return read_rows(str(tmp_path / "export.json"), ("file", "label"), InputError)


def test_tasks_without_a_label_are_unchecked(tmp_path):
    skipped, empty = annotated("a.png", "cat", cancelled=True), annotated("b.png")
    found = rows(tmp_path, skipped, empty, annotated("c.png", "cat"))
    assert [(row.values["label"], row.values["checked"]) for row in found] == [
        ("", ""),
        ("", ""),
        ("cat", "yes"),
    ]


@pytest.mark.parametrize(
    ("task", "match"),
    [
        (
            annotated("https://example.com/1.jpg", "cat"),
            r"entry 1: https://example.com/1.jpg is not a local file",
        ),
        (annotated("/data/upload/1/abc.png", "cat"), "is not a local file"),
        (annotated("a.png", "cat", "dog"), r"entry 1: a.png has several labels \(cat, dog\)"),
        ({"data": {}, "annotations": []}, "its data has no image"),
    ],
)
def test_what_cannot_be_used(tmp_path, task, match):
    with pytest.raises(InputError, match=match):
        rows(tmp_path, task)


def test_tasks_come_back_as_they_went():
    task = label_studio.task("/photos/ü &?.png", "cat", 0.75, "iteration 1", "label_next")
    assert task["predictions"] == [
        {
            "model_version": "iteration 1",
            "score": 0.75,
            "result": [
                {
                    "from_name": "label",
                    "to_name": "image",
                    "type": "choices",
                    "value": {"choices": ["cat"]},
                }
            ],
        }
    ]
    assert label_studio.is_task(task)
    assert label_studio.values(task) == {
        "file": "/photos/ü &?.png",
        "label": "",
        "checked": "",
    }  # a prediction is not a person's label
    annotation = {"result": task["predictions"][0]["result"], "was_cancelled": False}
    assert label_studio.values({**task, "annotations": [annotation]})["label"] == "cat"


def test_the_interface_has_the_names_of_the_tasks():
    view = ElementTree.fromstring(label_studio.interface(["cat", 'a "b" <c>']))
    image, choices = view
    assert (image.attrib["name"], image.attrib["value"]) == ("image", "$image")
    assert (choices.attrib["name"], choices.attrib["toName"]) == ("label", "image")
    assert [choice.attrib["value"] for choice in choices] == ["cat", 'a "b" <c>']
