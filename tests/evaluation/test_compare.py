"""Seeds put together: the numbers by hand, the runs that fit, and the page."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cli.errors import InputError
from cli.json_files import write_json
from evaluation import compare, evaluate, page


def row(top1, error, mce, pgd):
    return {
        "top1": top1,
        "ece": 0.05,
        "c": {"mean_error": error, "mce": mce},
        "adversarial": {"fgsm_mean_top1": pgd + 0.1, "pgd_top1": pgd},
    }


ROWS = [
    {"teacher": row(0.90, 0.30, 100.0, 0.1), "student_1": row(0.95, 0.20, 66.7, 0.2)},
    {"teacher": row(0.92, 0.28, 100.0, 0.2), "student_1": row(0.94, 0.22, 78.6, 0.2)},
    {"teacher": row(0.94, 0.25, 100.0, 0.3), "student_1": row(0.93, 0.20, 80.0, 0.3)},
]


def summary():
    names = ["teacher", "student_1"]
    return {
        "runs": {f"seed_{i}": f"runs/seed_{i}" for i in range(3)},
        "models": names,
        **compare.aggregate(ROWS, names),
    }


def test_numbers_and_gains():
    result = summary()
    assert set(result["numbers"]) == {
        "top1",
        "ece",
        "c_error",
        "mce",
        "fgsm",
        "pgd",
    }  # no sequences were evaluated
    assert result["numbers"]["top1"]["teacher"]["values"] == pytest.approx([90, 92, 94])
    gain = result["gains"]["top1"]
    assert gain["values"] == pytest.approx([5, 2, -1]) and gain["mean"] == pytest.approx(2)
    expected = stats.t.interval(0.95, 2, loc=2, scale=stats.sem([5, 2, -1]))
    assert gain["interval"] == pytest.approx(expected)
    paired = stats.ttest_rel(
        [row["student_1"]["top1"] for row in ROWS], [row["teacher"]["top1"] for row in ROWS]
    )
    assert gain["p_value"] == pytest.approx(paired.pvalue)
    assert result["gains"]["ece"]["p_value"] is None  # no seed differs


def test_table_says_which_way_is_better():
    lines = {line.split("  ")[0]: line for line in compare.table(summary()).splitlines()}
    assert (
        "2 of 3" in lines["top-1 (%)"]
        and "3 of 3" in lines["error under corruptions (%)"]
        and "3 of 3" in lines["mCE (baseline = 100)"]
    )
    assert "+2.00 ± 7.45" in lines["top-1 (%)"]
    assert "3 seeds" in compare.table(summary())


def test_one_seed_has_no_interval():
    result = compare.aggregate(ROWS[:1], ["teacher", "student_1"])
    assert result["gains"]["top1"]["interval"] is None
    assert (
        "±"
        not in compare.table(
            {"runs": {"r": ""}, "models": ["teacher", "student_1"], **result}
        ).splitlines()[1]
    )


def test_page():
    text = page.render("seeds.html", title="Over seeds", **compare.body(summary()))
    assert text.count("<svg") == 6 and "seed_2" in text and "2 of 3" in text


def test_runs(tmp_path, capsys):
    for name in ("seed_0", "seed_1", "other"):
        (tmp_path / name / "data").mkdir(parents=True)
        for model in ("teacher", "student_1", "student_2", "student_10"):
            write_json(tmp_path / name / model / "summary.json", {})
    (tmp_path / "seed_x").mkdir()
    runs = compare.find_runs(f"{tmp_path}/seed_*,{tmp_path}/other,{tmp_path}/other")
    assert list(runs) == ["seed_0", "seed_1", "other"]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and told[0].startswith(f"{tmp_path}/seed_x is left out")
    assert compare.models_of(tmp_path / "other") == [
        "teacher",
        "student_1",
        "student_2",
        "student_10",
    ]
    (tmp_path / "seed_1" / "student_10" / "summary.json").unlink()
    assert list(compare.with_models(runs, ["teacher", "student_10"])) == ["seed_0", "other"]
    assert (
        capsys.readouterr().out == f"{tmp_path}/seed_1 is left out: it has no finished student_10\n"
    )
    with pytest.raises(InputError, match="none of the runs has all of teacher, student_3"):
        compare.with_models(runs, ["teacher", "student_3"])
    with pytest.raises(InputError, match="no directory with data"):
        compare.find_runs(f"{tmp_path}/seed_x")


def test_a_run_whose_name_is_also_a_pattern(tmp_path):
    for name in ("run [v1], {a}", "run v"):
        (tmp_path / name / "data").mkdir(parents=True)
    assert list(compare.find_runs(f"{tmp_path}/run [v1], {{a}}")) == ["run [v1], {a}"]
    assert list(evaluate._named(f"{tmp_path}/run [v1], {{a}}")) == ["run [v1], {a}"]


def test_two_runs_of_one_name_are_refused(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "seed_0" / "data").mkdir(parents=True)
    with pytest.raises(InputError, match="same name"):
        compare.find_runs(f"{tmp_path}/*/seed_0")


def test_other_test_images_are_refused(tmp_path):
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        value = {
            "name": "test",
            "kind": "labeled",
            "num_records": 1,
            "label_names": ["x"],
            "label_offset": 0,
            "extra": {},
        }
        write_json(
            tmp_path / name / "manifest.json",
            {**value, "files": [{"name": "t", "records": 1, "sha256": digest}]},
        )
        (tmp_path / name / "t").touch()
    compare._require_same_images([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(InputError, match="other test images"):
        compare._require_same_images([tmp_path / "a", tmp_path / "b"])


def test_means_of_numbers_are_percent():
    numbers = compare.aggregate(
        [{"a": {"top1": np.float64(0.5), "c": {"mean_error": 0.25}}}], ["a"]
    )["numbers"]
    assert {key: by_model["a"]["values"] for key, by_model in numbers.items()} == {
        "top1": [50],
        "c_error": [25],
    }
