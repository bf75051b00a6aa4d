"""Every command's plan has the papers' numbers, and no row of a table is left out of the map."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from experiments import audit, paper_map
from experiments.papers import first_version, meta_pseudo_labels, noisy_student
from experiments.papers.row import DRY_RUN, IMPOSSIBLE, READY, RUN, Differs, Row, numbers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "paper_map.md"
LOOP = "./run_noisy_student.sh --config=configs/noisy_student/imagenet.py:b0 --workdir=W"

# Counted in the papers, not in the tables here: rows of a table, times columns where each cell is a
# separate run. For figures: the models or panels drawn.
ITEMS = {
    "noisy_student": {
        "Table 1": 2,
        "Table 2": 23,
        "Table 3": 9,
        "Table 4": 8,
        "Table 5": 7,
        "Table 6": 10,
        "Figure 2": 16,
        "Figure 3": 3,
        "Figure 4": 2,
    },
    "first_version": {"Table 7": 4, "Table 8": 6, "Table 9": 24, "Figure 4": 20},
    "meta_pseudo_labels": {"Table 1": 2, "Table 2": 23, "Table 3": 9, "Table 4": 29, "Figure 2": 3},
}
ROWS = {
    "noisy_student": noisy_student.ROWS,
    "first_version": first_version.ROWS,
    "meta_pseudo_labels": meta_pseudo_labels.ROWS,
}


@pytest.mark.parametrize("paper", ROWS)
def test_every_command_is_one_and_has_the_paper_s_numbers(paper: str) -> None:
    wrong = {row.part: found for row in ROWS[paper] if (found := audit.check_row(row))}
    assert not wrong


@pytest.mark.parametrize("paper", ITEMS)
def test_no_row_of_a_table_or_figure_is_left_out(paper: str) -> None:
    found: dict[str, list[str]] = {}
    for row in ROWS[paper]:
        for part in re.findall(r"(?:Table|Figure) \d", row.part):
            found.setdefault(part, []).extend(row.items)
    assert {part: len(found[part]) for part in ITEMS[paper]} == ITEMS[paper]
    assert all(len(set(items)) == len(items) for items in found.values())


@pytest.mark.parametrize(
    ("paper", "tables", "figures"), [("noisy_student", 6, 4), ("meta_pseudo_labels", 4, 2)]
)
def test_every_table_and_figure_has_a_row(paper: str, tables: int, figures: int) -> None:
    parts = " ".join(row.part for row in ROWS[paper])
    wanted = {f"Table {i + 1}" for i in range(tables)} | {f"Figure {i + 1}" for i in range(figures)}
    assert wanted <= set(re.findall(r"(?:Table|Figure) \d", parts))


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == paper_map.page(), (
        "run `python -m experiments.paper_map > docs/paper_map.md`"
    )


GOOD = Row(
    "part",
    "here",
    DRY_RUN,
    commands=(LOOP,),
    numbers=(numbers("student_1", "Section 3.1", batch_size=2048),),
    ran=("docs/results.md#noise",),
)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            {"numbers": (numbers("student_1", "Section 3.1", batch_size=512),)},
            r"student_1\.batch_size is 2048; Section 3\.1: 512",
        ),
        (
            {"numbers": (numbers("student_1", "Section 3.1", batch=2048),)},
            r"student_1\.batch is None",
        ),
        (
            {"numbers": (numbers("student_2", "Section 3.1", steps=1),)},
            r"no training 'student_2'; .*teacher, student_1$",
        ),
        (
            {"numbers": (numbers("student_1", "Table 4", steps=Differs(1, 2, "why")),)},
            r"student_1\.steps is 437899; Table 4: 2",
        ),
        (
            {"numbers": (numbers("student_1", "Table 4", steps=Differs(437_899, 437_899, "why")),)},
            r"student_1\.steps is the paper's by now",
        ),
        (
            {"commands": (LOOP, f"{LOOP} --config.student.batch_size=512")},
            r"student_1\.batch_size is 512; Section 3\.1: 2048",  # of the second command
        ),
        (
            {"commands": (LOOP.replace("b0", "b9"),)},
            r"imagenet\.py has no variant b9; the variants are",
        ),
        (
            {"commands": (LOOP.replace("imagenet.py", "image_net.py"),)},
            r"no file configs/noisy_student/image_net\.py",
        ),
        ({"commands": (f"{LOOP} --steps=5",)}, r"--steps is not a flag"),
        ({"commands": (f"{LOOP} --config.balance.treshold=0.5",)}, r"no key 'balance\.treshold'"),
        ({"commands": (f"{LOOP} --config.balance.threshold=2",)}, r"balance\.threshold is 2\.0"),
        (
            {"commands": (f"{LOOP} --config.student.frozen_blocks=3",)},
            r"frozen_blocks=3 needs --init",
        ),
        ({"commands": ("./run_noisystudent.sh",)}, r"no script \./run_noisystudent\.sh"),
        ({"commands": ("./run_tests.sh tests/no_test.py",)}, r"no test file tests/no_test\.py"),
        ({"commands": ("./run_tool.sh wieghts",)}, r"did you mean weights"),
        ({"ran": ("docs/gone.md",)}, r"no file docs/gone\.md"),
        ({"ran": ("docs/results.md#gone",)}, r"docs/results\.md has no heading #gone"),
        ({"commands": (), "numbers": ()}, r"it has no command"),
        ({"numbers": ()}, r"compared with nothing"),
        ({"verdict": IMPOSSIBLE}, r"does not say why"),
        ({"verdict": RUN, "ran": ()}, r"does not name the place of its results"),
        ({"verdict": "done"}, r"'done' is not one of run, "),
    ],
)
def test_the_audit_finds(change: dict[str, object], error: str) -> None:
    assert audit.check_row(GOOD) == []
    found = audit.check_row(dataclasses.replace(GOOD, **change))
    assert found and re.search(error, found[0]), found


def test_exit_code_and_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dataclasses.replace(GOOD, ran=("docs/gone.md",))
    ready = Row("more", "here", READY, commands=(LOOP,))
    monkeypatch.setattr(audit, "CHAPTERS", {"Paper": (GOOD, ready)})
    assert audit.main() == 0
    monkeypatch.setattr(audit, "CHAPTERS", {"Paper": (GOOD, wrong, ready)})
    assert audit.main() == 1
    told = capsys.readouterr().out
    assert "WRONG dry run             part\n      no file docs/gone.md\n" in told
    assert told.endswith("0 impossible here; 1 numbers compared with the papers'; 1 wrong\n")
