"""The list of labels for a person: its rows, the images to look at, and what the loop does."""

from __future__ import annotations

import csv
import io
import json

import ml_collections
import numpy as np
import PIL.Image
import pytest

from cli.errors import InputError
from cli.json_files import write_json
from data import label_studio
from data.protos import make_example, make_prediction
from data.records import write_split
from workflow import labels
from workflow.labels import ImageAnswers

NAMES = ("cat", "dog", "eel")
SETTINGS = {
    "source": "image_folder",
    "label_offset": 0,
    "on_error": "fail",
    "convert": False,
    "labels": None,
    "test": None,
}


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


ANSWERS = {  # key -> the teacher's and the student's answer
    "clear.png": ([0.90, 0.05, 0.05], [0.90, 0.05, 0.05]),
    "split/cat_or_dog.png": ([0.55, 0.40, 0.05], [0.45, 0.50, 0.05]),
    "dog_or_cat.png": ([0.44, 0.54, 0.02], [0.44, 0.54, 0.02]),
    "eel_or_cat.png": ([0.30, 0.10, 0.60], [0.30, 0.10, 0.60]),
    "strange.png": ([0.35, 0.33, 0.32], [0.34, 0.34, 0.32]),
}
LABELED = {"cat/1.png": 0, "cat/wrong.png": 0, "dog/1.png": 1, "eel/1.png": 2}


@pytest.fixture
def run(tmp_path):
    """Makes what the loop leaves behind after one iteration, as far as the list reads it."""
    for key in ANSWERS:
        image(tmp_path / "unlabeled" / key)
    for key in LABELED:
        image(tmp_path / "labeled" / key)
    w = tmp_path / "w"
    examples = (make_example(b"x", key, label) for key, label in LABELED.items())
    write_split(
        w / "data/labeled", "labeled", examples, 1, len(LABELED), kind="labeled", label_names=NAMES
    )
    write_split(
        w / "data/unlabeled",
        "unlabeled",
        (make_example(b"x", key) for key in ANSWERS),
        2,
        len(ANSWERS),
        kind="unlabeled",
    )
    data = {
        **SETTINGS,
        "labeled": str(tmp_path / "labeled"),
        "unlabeled": str(tmp_path / "unlabeled"),
    }
    write_json(w / "data/config.json", {"data": data})
    write_json(w / "data/summary.json", {})
    for number in (1, 2):
        predictions = (
            make_prediction(key, np.array(both[number - 1], np.float32), 0)
            for key, both in ANSWERS.items()
        )
        where = w / f"predictions_{number}"
        write_split(
            where,
            "predictions",
            predictions,
            2,
            len(ANSWERS),
            kind="predictions",
            label_names=NAMES,
        )
        write_json(where / "summary.json", {})
    kept = ["clear.png", "clear.png", "dog_or_cat.png", "eel_or_cat.png"]
    records = (
        make_example(b"x", key, probabilities=np.array(ANSWERS[key][0], np.float32)) for key in kept
    )
    write_split(
        w / "pseudo_labeled_1",
        "pseudo_labeled",
        records,
        2,
        len(kept),
        kind="pseudo_labeled",
        label_names=NAMES,
    )
    write_json(
        w / "pseudo_labeled_1/config.json",
        {"balance": {"threshold": 0.5, "max_confidence": 1.0, "fraction": 1.0}},
    )
    write_json(w / "pseudo_labeled_1/summary.json", {"images_per_class": 1})
    return tmp_path


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_image(run, capsys):
    labels.main(str(run / "w"), None, 1)
    found = rows(run / "w/labels_1.csv")
    assert tuple(found[0]) == labels.COLUMNS and len(found) == len(ANSWERS) + len(LABELED)
    by_file = {row["file"]: row for row in found}
    clear = by_file[str(run / "unlabeled/clear.png")]
    assert {
        name: clear[name]
        for name in (
            "label",
            "confidence",
            "role",
            "kept",
            "why",
            "given",
            "teacher",
            "student",
            "ask",
        )
    } == {
        "label": "cat",
        "confidence": "0.9000",
        "role": "unlabeled",
        "kept": "2",
        "why": "",
        "given": "",
        "teacher": "cat",
        "student": "cat",
        "ask": "",
    }
    between = by_file[str(run / "unlabeled/split/cat_or_dog.png")]
    assert (between["teacher"], between["student"], between["kept"]) == ("cat", "dog", "0")
    assert between["why"] == "only the 1 most confident of its class are kept"
    strange = by_file[str(run / "unlabeled/strange.png")]
    assert strange["why"] == "not above the threshold 0.5"
    wrong = by_file[str(run / "labeled/cat/wrong.png")]
    assert (
        wrong["label"],
        wrong["given"],
        wrong["teacher"],
        wrong["confidence"],
        wrong["role"],
    ) == ("cat", "cat", "", "", "labeled")
    assert [row["ask"] for row in found[:3]] == ["label_next", "out_of_domain", ""]
    assert (
        found[1] is not None
        and found[1]["file"].endswith("strange.png")
        and found[0]["file"].endswith("cat_or_dog.png")
    )
    assert (
        "1 to label next, 1 perhaps out of domain, 0 with labels that look wrong (cross-fitting is"
        " needed" in capsys.readouterr().out
    )


def test_labels_that_teacher_and_student_contradict_out_of_fold(run):
    teacher = {
        "cat/1.png": [0.1, 0.9, 0.0],
        "cat/wrong.png": [0.2, 0.2, 0.6],
        "dog/1.png": [0.9, 0.1, 0.0],
        "eel/1.png": [0.0, 0.1, 0.9],
    }
    student = {**teacher, "cat/1.png": [0.9, 0.1, 0.0], "dog/1.png": [0.3, 0.1, 0.6]}
    keys = sorted(teacher)
    (run / "w/folds").mkdir()
    np.savez(
        run / "w/folds/answers.npz",
        keys=np.array(keys),
        labels=np.array([LABELED[key] for key in keys]),
        models=np.array(["teacher", "student_1"]),
        probabilities=np.array(
            [[one[key] for key in keys] for one in (teacher, student)], np.float32
        ),
        folds=np.array([1, 2, 1, 2]),
    )
    assert labels.write(run / "w", 1).endswith("2 with labels that look wrong")
    found = rows(run / "w/labels_1.csv")
    wrong = [
        (row["file"], row["given"], row["teacher"], row["student"], row["confidence"])
        for row in found
        if row["ask"] == "looks_wrong"
    ]
    assert wrong == [
        (str(run / "labeled/dog/1.png"), "dog", "cat", "eel", "0.1000"),
        (str(run / "labeled/cat/wrong.png"), "cat", "eel", "eel", "0.2000"),
    ]


def test_the_images_to_look_at_are_spread_over_the_classes():
    def seen(*probabilities):
        second, first = sorted(probabilities)[-2:]
        top = int(np.argmax(probabilities))
        return ImageAnswers(
            "", "unlabeled", top, first, 0, "", top, top, top, first, first - second
        )

    cats = [seen(0.50, 0.49, 0.01), seen(0.51, 0.48, 0.01), seen(0.52, 0.47, 0.01)]
    images = [*cats, seen(0.1, 0.8, 0.1), seen(0.1, 0.2, 0.7), seen(0.4, 0.3, 0.3)]
    assert labels.choose(images, 1) == {0: "label_next", 5: "out_of_domain"}
    asked = labels.choose(images[:5] + [seen(0.4, 0.3, 0.3)] * 3, 3)
    assert [i for i, kind in asked.items() if kind == "label_next"] == [0, 4, 3]
    assert labels.choose(images, 0) == {}


def test_what_a_person_has_edited_stays(run):
    labels.write(run / "w", 1)
    path = run / "w/labels_1.csv"
    labels.write(run / "w", 1)
    path.write_text(path.read_text().replace("cat", "dog", 1))
    with pytest.raises(InputError, match="was edited"):
        labels.write(run / "w", 1)


def test_a_student_that_has_not_answered(run):
    (run / "w/predictions_2/summary.json").unlink()
    with pytest.raises(
        InputError, match="the student of iteration 1 has not answered yet; finish the run"
    ):
        labels.main(str(run / "w"), None, 1)
    assert not (run / "w/labels_1.csv").exists()
    assert labels.write(run / "w", 1, ask=1).endswith("so only the teacher's answers count")
    found = rows(run / "w/labels_1.csv")
    assert {row["student"] for row in found} == {""} and [row["ask"] for row in found].count(
        "label_next"
    ) == 1


def test_images_whose_sources_are_gone_have_their_keys(run, capsys):
    (run / "unlabeled").rename(run / "moved")
    labels.write(run / "w", 1)
    assert "note: the images' files cannot be listed" in capsys.readouterr().out
    assert {
        row["file"] for row in rows(run / "w/labels_1.csv") if row["role"] == "unlabeled"
    } == set(ANSWERS)


def test_the_loop_writes_it_when_the_student_has_answered(run, capsys):
    config = ml_collections.ConfigDict({"pseudo_label": {}})
    w = run / "w"
    (last,) = labels.answer_stages(config, w, 1)
    assert (last.script, last.directory, last.arguments["teacher"]) == (
        "run_pseudo_label.sh",
        w / "predictions_2",
        w / "student_1",
    )
    labels.write_after(w / "predictions_1", w)
    labels.write_after(w / "folds/1/predictions_2", w)
    assert not (w / "labels_1.csv").exists()
    labels.write_after(w / "predictions_2", w)
    assert (
        w / "labels_1.csv"
    ).exists() and "labels_1.csv: 4 labeled and 5 unlabeled images" in capsys.readouterr().out
    labels.write_after(w / "predictions_2", w)  # continued: a person may have edited it
    assert capsys.readouterr().out == ""
    assert labels.answer_stages(config, w, 2) == []  # its students learned from no stored labels
    write_json(
        w / "data/config.json",
        {"data": {**SETTINGS, "source": "digits", "labeled": None, "unlabeled": None}},
    )
    assert labels.answer_stages(config, w, 1) == []  # no files to look at


def test_tasks_for_label_studio(run, capsys):
    labels.main(str(run / "w"), 1, 2, str(run / "tasks.json"))
    tasks = json.loads((run / "tasks.json").read_text())
    assert len(tasks) == 4 and "4 tasks for Label Studio" in capsys.readouterr().out
    found = [label_studio.values({**task, "annotations": task["predictions"]}) for task in tasks]
    asked = [row for row in rows(run / "w/labels_1.csv") if row["ask"]]
    assert [(one["file"], one["label"]) for one in found] == [
        (row["file"], row["label"]) for row in asked
    ]
    assert "eel" in (run / "tasks.xml").read_text()
    for key in ANSWERS:
        (run / "unlabeled" / key).unlink()
    with pytest.raises(InputError, match="are not files"):
        labels.write_tasks(run / "w", 1, run / "tasks.json")
