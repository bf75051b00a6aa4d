"""Lists of images with labels as sources: their content, and the messages about wrong ones."""

from __future__ import annotations

import json

import ml_collections
import pytest

from cli.errors import InputError
from data import fingerprint, sources
from data.image_list import files_of
from data.sources import open_collection


def settings(**values):
    return ml_collections.ConfigDict(
        {
            "source": "image_folder",
            "label_offset": 0,
            "on_error": "fail",
            "convert": False,
            **values,
        }
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.png", "c.png"):
        path = tmp_path / "list" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "elsewhere.png").write_bytes(b"elsewhere")
    return tmp_path / "list"


def opened(path, role="labeled", **values):
    return open_collection(str(path), role, settings(**values))


def test_the_forms_say_the_same(folder, tmp_path):
    rows = [
        ("sub/b.png", "dog"),
        ("a.png", "cat"),
        (str(tmp_path / "elsewhere.png"), "7"),
        ("./c.png", "dog"),
    ]
    texts = {
        "l.csv": "file,label,note\n" + "".join(f"{file},{label},x\n" for file, label in rows),
        "semicolons.csv": "\ufefflabel;file\r\n"
        + "".join(f"{label} ; {file}\r\n" for file, label in rows),
        "l.json": json.dumps(
            [{"file": file, "label": int(label) if label == "7" else label} for file, label in rows]
        ),
        "l.jsonl": "".join(
            json.dumps({"file": file, "label": label}) + "\n" for file, label in rows
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        found = opened(folder / name)
        assert found.label_names == ("7", "cat", "dog"), name
        keys = [found.key(i) for i in range(4)]
        assert dict(zip(keys, found.labels.tolist())) == {
            str(tmp_path / "elsewhere.png"): 0,
            "a.png": 1,
            "c.png": 2,
            "sub/b.png": 2,
        }
        assert list(found.read(range(4))) == [b"elsewhere", b"a.png", b"c.png", b"sub/b.png"]
    assert files_of(str(folder / "l.csv"))[:2] == [str(folder / "sub/b.png"), str(folder / "a.png")]
    unlabeled = opened(folder / "l.csv", "unlabeled")
    assert unlabeled.label_names == () and unlabeled.labels.tolist() == [-1] * 4


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "l.csv",
            "image,label\na.png,cat\n",
            r"\(line 2\) has no column file \(it has image, label\)",
        ),
        ("l.csv", "file,class\na.png,cat\n", r"\(line 2\) has no column label"),
        (
            "l.csv",
            "file,label\na.png,cat\nc.png,\n",
            r"\(line 3\) has no label for c.png; mend the row",
        ),
        ("l.csv", "file,label\n,cat\n", r"\(line 2\) names no file"),
        ("l.csv", "file,label\na.png,cat,1\n", "line 2 has 3 cells for 2 columns"),
        ("l.csv", 'file,label\na.png,"ca\nt"\n', r"\(line 2\) has a line break in its label"),
        ("l.csv", "file,label\n", "has no row that can be used"),
        ("l.csv", "", "has no row that can be used"),
        ("l.json", "{}", "a list of objects is needed"),
        ("l.json", "[1]", "entry 1 is not an object"),
        ("l.jsonl", '{"file": "a.png", "label": "cat"}\n{', "is damaged"),
        ("missing.csv", None, "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder, name, text, match):
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=match) as caught:
        opened(folder / name)
    assert str(caught.value).startswith(f"--labeled: {folder / name} ") and "\n" not in str(
        caught.value
    )


def test_rows_that_can_be_skipped(folder):
    (folder / "l.csv").write_text("file,label\na.png,cat\nmissing.png,cat\nc.png,\n")
    found = opened(folder / "l.csv", on_error="skip")
    assert [problem["file"] for problem in found.problems] == [f"{folder / 'l.csv'}, line 4"]
    contents = list(found.read(range(2)))
    assert contents[0] == b"a.png" and "No such file" in contents[1]
    assert found.describe(1) == f"{folder / 'missing.png'} (l.csv, line 3)"


def test_a_change_of_a_label_is_noticed(folder):
    data = settings(labeled=str(folder / "l.csv"))
    (folder / "l.csv").write_text("file,label\na.png,cat\nc.png,dog\nsub/b.png,dog\n")
    before = fingerprint.listed("labeled", data)
    assert before["files"] == {"cat": 1, "dog": 2} and before == fingerprint.listed(
        "labeled", data, opened(folder / "l.csv")
    )
    (folder / "l.csv").write_text("label,file\ndog,sub/b.png\ncat,a.png\ndog,c.png\n")
    assert fingerprint.listed("labeled", data) == before  # rows in another order say the same
    (folder / "l.csv").write_text("file,label\na.png,dog\nc.png,cat\nsub/b.png,dog\n")
    assert fingerprint.listed("labeled", data)["names"] != before["names"]


def test_a_list_needs_no_prefix_beside_folders():
    assert sources.split_location("x/labels.CSV", "image_folder") == ("manifest", "x/labels.CSV")
    assert sources.split_location("x/labels.csv", "tar") == ("tar", "x/labels.csv")
    assert sources.split_location("manifest:labels.txt", "tar") == ("manifest", "labels.txt")
    assert sources.absolute("/x/labels.csv", "image_folder") == "manifest:/x/labels.csv"
