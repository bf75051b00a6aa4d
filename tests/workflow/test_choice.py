"""The choice of the served model, and the sentence about it."""

import numpy as np
import pytest

from cli.errors import InputError
from cli.json_files import read_json
from workflow import choice
from workflow.choice import CROSS_FITTING, LAST, VALIDATION, Answers

ADVICE = (
    "; try more unlabeled images of the same classes, a higher balance.threshold or a lower"
    " student.schedule.base"
)


def answers(*right):
    """Returns answers of teacher and students; each is right where its row of 0 and 1 says so."""
    right = np.array(right, bool)
    labels = np.arange(right.shape[1]) % 3
    chosen = np.where(right, labels, (labels + 1) % 3)
    models = ("teacher", *(f"student_{i}" for i in range(1, len(right))))
    keys = np.array([f"{i:04d}" for i in range(len(labels))])
    return Answers(
        keys, labels, models, np.eye(3, dtype=np.float32)[chosen], np.zeros(len(labels), int)
    )


def first(count, of=1000):
    return np.arange(of) < count


def test_a_student_is_served_where_it_is_better_and_the_verdict_says_by_how_much():
    found = choice.decide(VALIDATION, answers(first(800), first(790), first(840)))
    assert found["served"] == "student_2" and found["images"] == 1000
    assert found["models"] == {
        "teacher": {"top1": 0.8},
        "student_1": {"top1": 0.79},
        "student_2": {"top1": 0.84},
    }
    worse, better = found["comparisons"]
    assert (worse["model"], worse["to"], worse["replaces"]) == ("student_1", "teacher", False)
    assert (better["model"], better["to"], better["replaces"]) == ("student_2", "teacher", True)
    assert better["difference"] == pytest.approx(0.04) and better["p_value"] == pytest.approx(
        2 * 0.5**40
    )
    low, high = better["interval"]
    assert 0.02 < low < 0.035 and 0.045 < high < 0.06
    assert (
        found["verdict"]
        == "student_2: 84.0 % of 1,000 validation images, 4.0 points above the teacher (95 %"
        f" interval {100 * low:.1f} to {100 * high:.1f})"
    )


def test_every_comparison_is_printed_as_an_estimate():
    found = choice.decide(VALIDATION, answers(first(800), first(790), first(790)))
    one, other = choice.estimates(found)
    assert one.startswith(
        "student_1: 79.0 % of 1,000 held-out images; minus teacher: -1.0 points (95 % interval -1."
    )
    assert (
        one.endswith(", McNemar p = 0.002)")
        and other.startswith("student_2: 79.0 %")
        and "minus teacher: -1.0" in other
    )
    assert choice.estimates(choice.last(2, 0)) == []


def test_a_student_is_compared_with_the_best_before_it():
    found = choice.decide(VALIDATION, answers(first(800), first(850), first(840), first(850)))
    assert found["served"] == "student_1"  # the first of two equally good models
    assert [(row["to"], row["replaces"]) for row in found["comparisons"]] == [
        ("teacher", True),
        ("student_1", False),
        ("student_1", False),
    ]


def test_a_gain_that_may_be_chance_is_called_so():
    teacher, student = np.zeros(100, bool), np.zeros(100, bool)
    teacher[:50], student[3:55] = True, True  # 5 against 3
    verdict = choice.decide(CROSS_FITTING, answers(teacher, student))["verdict"]
    assert verdict.startswith(
        "student_1: 52.0 % of 100 labeled images, by cross-fitting, 2.0 points above the teacher,"
        " which may be chance (95 % interval -"
    )


def test_the_teacher_is_served_where_all_students_are_worse():
    found = choice.decide(VALIDATION, answers(first(462), first(300), first(330)))
    assert found["served"] == "teacher" and found["to_teacher"]["model"] == "student_2"
    assert found["verdict"].startswith(
        "no student is better than the teacher: the teacher is exported (46.2 % of 1,000 validation"
        " images; "
    )
    assert (
        "the best student, student_2, is 13.2 points below, 95 % interval -15." in found["verdict"]
    )
    assert found["verdict"].endswith(ADVICE)
    even = choice.decide(VALIDATION, answers(first(462), first(462)))
    assert (
        even["served"] == "teacher"
        and "student_1, is as good, 95 % interval 0.0 to 0.0)" in even["verdict"]
    )


def test_without_held_out_images_the_last_student_is_served_and_nothing_is_claimed(tmp_path):
    found = choice.last(2, 0)
    assert (found["served"], found["on"], found["to_teacher"]) == ("student_2", LAST, None)
    assert (
        found["verdict"]
        == "not known whether the unlabeled images helped: no validation images were held out; the"
        " last student, student_2, is exported"
    )
    assert (
        "only 24 validation images were held out, 200 are needed" in choice.last(2, 24)["verdict"]
    )
    for written in (found, choice.decide(VALIDATION, answers([1, 0], [1, 1]))):
        choice.write(tmp_path, written)
        assert read_json(tmp_path / "choice.json", choice.SCHEMA) == written


def test_answers_are_read_as_they_were_written(tmp_path):
    one = answers([1, 0, 1], [1, 1, 1])
    one.write(tmp_path / "folds" / "answers.npz")
    again = choice.read_answers(tmp_path / "folds" / "answers.npz")
    assert again.models == ("teacher", "student_1")
    assert all(np.array_equal(value, getattr(one, name)) for name, value in again._asdict().items())
    assert again.right().tolist() == [[True, False, True], [True, True, True]]


def test_answers_to_other_images_are_not_compared(tmp_path):
    for number, (name, keys) in enumerate({"teacher": ["a", "b"], "student_1": ["a", "c"]}.items()):
        folder = tmp_path / f"validation_{number}" / name
        folder.mkdir(parents=True)
        np.savez(
            folder / "predictions.npz",
            keys=keys,
            labels=[0, 1],
            probabilities=np.eye(2, dtype=np.float32),
        )
    with pytest.raises(InputError, match="validation_1 is of other images than validation_0"):
        choice.of_evaluations(tmp_path, ["teacher", "student_1"])
