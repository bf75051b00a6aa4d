"""JSON files: what a reader may rely on.

A damaged file gives one line that names the file and the key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import json_files, work_dirs
from cli.errors import InputError

SCHEMA = {
    "top1": float,
    "names": [str],
    "range?": ([float, float], None),
    "models": {str: {"steps": int, "best?": (int, None)}},
    "on": bool,
}
VALUE = {
    "top1": 1,
    "names": ["ä"],
    "range": [0.5, 1],
    "models": {"a": {"steps": 3, "best": None, "more": [1e-9]}},
    "on": True,
    "else": None,
}


def write(path: Path, content: bytes | str | Any) -> Path:
    text = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_what_fits_is_returned_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", VALUE)
    assert json_files.read_json(path, SCHEMA) == json_files.read_json(path) == VALUE
    del VALUE["range"]
    assert json_files.read_json(write(path, VALUE), SCHEMA) == VALUE
    with pytest.raises(FileNotFoundError):
        json_files.read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b'"\xff"', "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"Infinity", "Infinity is not a finite number"),
        (b"[NaN, 1]", "NaN is not a finite number"),
        (b"1e999", "1e999 is not a finite number"),
        (b"9" * 5000, "has 5000 digits and is too large"),
        (str(2**64), "has 20 digits and is too large"),
        (b'"x"', r"its value is 'x', not an object"),
        ({}, "it has no top1"),
        ({**VALUE, "top1": True}, "top1 is True, not a number"),
        ({**VALUE, "names": {}}, r"names is \{\}, not a list"),
        ({**VALUE, "names": ["a", 1]}, r"names\[1\] is 1, not a text"),
        ({**VALUE, "names": ["\ud800"]}, r"names\[0\] is '\\ud800', not a text"),
        ({**VALUE, "range": [1.0]}, r"range is \[1.0\], not a list of 2"),
        ({**VALUE, "models": {"b": {"steps": 1.5}}}, "models.b.steps is 1.5, not a whole number"),
        ({**VALUE, "models": {"b": {}}}, "it has no models.b.steps"),
        ({**VALUE, "on": 1}, "on is 1, not true or false"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: Any, why: str) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(InputError, match=f"{why}.*; create it or fetch it again$") as error:
        json_files.read_json(path, SCHEMA)
    assert (
        str(error.value).startswith(f"{path} is damaged: ")
        and "\n" not in str(error.value)
        and len(str(error.value)) < 400
    )


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(IsADirectoryError"):
        json_files.read_json(tmp_path)


def test_nothing_is_written_that_is_not_json(tmp_path: Path) -> None:
    value = {"a": float("nan"), "b": [float("inf"), (-float("inf"), 1.5)], "c\udce9": "caf\udce9 ü"}
    json_files.write_json(tmp_path / "a.json", value)
    assert json_files.read_json(tmp_path / "a.json") == {
        "a": None,
        "b": [None, [None, 1.5]],
        "c\udce9": "caf\udce9 ü",
    }
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_lines_but_for_one_that_a_kill_has_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"step": 1}\n{"step": 2}\n{"step"')
    assert json_files.read_json_lines(path, {"step": int}) == [
        ('{"step": 1}', {"step": 1}),
        ('{"step": 2}', {"step": 2}),
    ]
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 2 is damaged: step is '2', not a whole number"
    ):
        json_files.read_json_lines(write(path, '{"step": 1}\n{"step": "2"}\n'), {"step": int})


def test_values_that_do_not_go_together(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"a\.json is damaged: KeyError: 'b'"),
        json_files.reading(tmp_path / "a.json"),
    ):
        _ = {"a": 1}["b"]


@pytest.mark.parametrize("text", ['"x"', "[]", "{", '{"a": Infinity}'])
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_work_directory_with_a_damaged_file(tmp_path: Path, name: str, text: str) -> None:
    work_dirs.start(tmp_path / "w", {"a": 1})
    work_dirs.finish(tmp_path / "w", {"top1": 0.5})
    (tmp_path / "w" / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"{name} is damaged: "):
        work_dirs.start(tmp_path / "w", {"a": 1})
    if name == "summary.json":
        with pytest.raises(InputError, match="is damaged: "):
            work_dirs.require_finished(tmp_path / "w", "x", "y")


def test_a_summary_of_another_shape(tmp_path: Path) -> None:
    work_dirs.start(tmp_path / "w", {"a": float("nan")})
    work_dirs.finish(tmp_path / "w", {"steps": None})
    with pytest.raises(
        InputError, match=r"summary\.json is damaged: steps is None, not a whole number"
    ):
        work_dirs.start(tmp_path / "w", {"a": float("nan")}, summary_schema={"steps": int})
