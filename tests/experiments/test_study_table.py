"""Tables of a study that is not finished, and those of docs/results.md."""

import re
import shlex
from pathlib import Path

import pytest

from cli import app, recipes
from cli.errors import InputError
from cli.json_files import to_json
from experiments import study, study_table

READINGS = {"probe": 66.0, "supervised": 70.0, "noisy_student": 74.0}


def config(name="photographs.py"):
    return recipes.from_flags(f"--config=configs/studies/{name}")


def write(path: Path, rows) -> Path:
    path.write_text("".join(f"{to_json(row)}\n" for row in rows), encoding="utf-8")
    return path


def row(run, seed, **top1):
    return {"run": run, "seed": seed, "top1": top1}


def rows(many):
    """Returns the lines of `many` seeds, with another mean and spread for each method."""
    lines = []
    for seed in range(many):
        more = {name: value + seed % 3 for name, value in READINGS.items()}
        lines.append(row("noisy_student", seed, **more))
        lines += [
            row(run, seed, **{run: 70.5 + i + seed % 2})
            for i, run in enumerate(("uda", "fixmatch", "mpl"))
        ]
    return lines


def shown(path):
    loaded = config()
    return study_table.tables(loaded, study_table.read(loaded, path))


def test_nothing_is_run(tmp_path):
    text = shown(write(tmp_path / "r", []))
    assert text.count("| not run yet |") == 6 + 8 and "nan" not in text


def test_some_seeds_have_means_and_no_verdict(tmp_path):
    text = shown(write(tmp_path / "r", rows(5)[:9]))  # seeds 0 and 1, and seed 2 of Noisy Student
    assert "| probe | 67.00 | 1.00 | 66.00 | 67.00 | 68.00 |  |  |" in text
    assert "| uda | 71.00 | 0.71 | 70.50 | 71.50 |  |  |  |" in text
    assert text.count("| not run yet |") == 8
    text = shown(write(tmp_path / "r", [r for r in rows(5) if r["run"] == "noisy_student"]))
    assert "| Noisy Student is better than its teacher | open until all are run | +4.00 |" in text
    assert text.count("open until") == 3


def test_a_whole_study_has_the_verdicts_of_its_results(tmp_path):
    loaded = config()
    lines = rows(5)
    text = shown(write(tmp_path / "r", lines))
    assert "not run yet" not in text and "open" not in text
    values = {
        name: [line["top1"][name] for line in lines if name in line["top1"]]
        for name, *_ in loaded.readings
    }
    expected = study.corrected(
        [
            {"finding": finding, **study.compare(values[better], values[worse])}
            for better, worse, finding in loaded.claims
        ]
    )
    for claim in expected:
        found = f"| {claim['finding']} | **{claim['verdict']}** | {claim['difference']:+.2f} |"
        assert found in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row("uda", 7, uda=1.0), "line 1 of .* has seed 7; the study's are 0 to 4"),
        (row("uda", 0, mpl=1.0), "has mpl of run uda; this study has no such reading"),
    ],
)
def test_readings_of_another_study(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        shown(write(tmp_path / "r", [line]))
    with pytest.raises(InputError, match="does not exist"):
        shown(tmp_path / "gone")


PAGE = (app.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for line in re.findall(
        r"^\./run_experiment\.sh study_table (.*)$", PAGE.replace("\\\n", ""), re.MULTILINE
    )
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1].rpartition("/")[2])
def test_the_page_has_what_its_command_prints(words, monkeypatch, capsys):
    """A table under a command, and both tables of it are there to the letter."""
    monkeypatch.chdir(app.ROOT)
    flags = [word for word in words if word.startswith("--config")]
    (path,) = [word.partition("=")[2] for word in words if word.startswith("--readings")]
    study_table.main(recipes.from_flags(*flags), path)
    assert capsys.readouterr().out.strip() in PAGE


def test_every_file_of_readings_is_on_the_page():
    files = sorted(path.name for path in (app.ROOT / "docs" / "readings").iterdir())
    assert sorted(words[-1].rpartition("/")[2] for words in COMMANDS) == files
