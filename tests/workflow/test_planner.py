"""The plan for devices that are not here: its choices, against sums made here by other means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import recipes
from cli.errors import InputError
from efficientnet import architectures
from efficientnet.counts import multiply_adds
from training import estimates
from workflow import cost, loop, one_method, planner, plans
from workflow.accelerators import ACCELERATORS
from workflow.planner import RESERVE, Target

GIB = 2**30


def planned(
    name: str, target: Target, *overrides: str
) -> tuple[list[dict[str, Any]], Any, Any, dict[str, Any]]:
    """Returns the rows of a recipe's plan, the recipe, its trainings, and its images."""
    config = recipes.from_flags(f"--config=configs/noisy_student/{name}", *overrides)
    counts = estimates.images(config, Path("nowhere"))
    stages = loop.plan(config, Path(), {}, "auto")
    trainings = plans.trainings(config, stages, counts)
    return planner.plan(config, stages, trainings, counts, target), config, trainings, counts


@pytest.mark.parametrize("name", [f"b{i}" for i in range(8)])
def test_multiplications_are_the_published_ones(name: str) -> None:
    """Tan and Le 2019, Table 2, billions."""
    published = dict(zip((f"b{i}" for i in range(8)), (0.39, 0.70, 1.0, 1.8, 4.2, 9.9, 19.0, 37.0)))
    size = architectures.ARCHITECTURES[name].image_size
    assert multiply_adds({"name": name}, size, 1000) / 1e9 == pytest.approx(
        published[name], rel=0.05
    )


def test_the_shares_are_those_of_the_trainings_that_are_named() -> None:
    b4 = 6 * multiply_adds({"name": "b4"}, 380, 1000) * 470
    assert ACCELERATORS["A100"].share == pytest.approx(b4 / 312e12, rel=0.02)
    images = 218_950 * 2048 * 15
    l2 = 6 * multiply_adds({"name": "l2"}, 475, 1000) * images / (6 * 86_400)
    assert ACCELERATORS["v3"].share == pytest.approx(l2 / (2048 * 61.5e12), rel=0.02)


def test_l2_on_the_paper_s_cores_takes_the_paper_s_days() -> None:
    rows, *_ = planned(
        "imagenet.py:l2", Target("v3", 2048, 16 * GIB), "--config.student_1.rematerialize=False"
    )
    student = next(row for row in rows if row["stage"] == "student_1")
    assert student["fits"] and student["changes"] == {"student_1.rematerialize": True}
    assert student["hours"] == pytest.approx(6 * 24 * 8 / 6, rel=0.02)  # the forward pass once more
    assert student["steps"] == 218_950 and student["batch_size"] == 2048


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("b0", Target("A100", 8, 80e9)),
        ("b7", Target("A100", 8, 80e9)),
        ("l2", Target("v3", 512, 16 * GIB)),
    ],
)
def test_the_first_way_that_fits_is_taken(name: str, target: Target) -> None:
    rows, config, trainings, counts = planned(f"imagenet.py:{name}", target)
    by_stage = {row["stage"]: row for row in rows}
    for training in trainings:
        row, values = by_stage[training.stage.name], training.values
        room = target.memory * (1 - RESERVE)
        needs = [
            (
                cost.needs(
                    way, counts, way.values["batch_size"], True, target.devices, target.fused
                )
                * GIB,
                way.values,
            )
            for way in planner.ways(config, training, target.devices)
        ]
        fitting = [chosen for needed, chosen in needs if needed <= room]
        if not fitting:
            assert not row["fits"] and row["memory_gib"] == pytest.approx(
                min(needed for needed, _ in needs) / GIB
            )
            continue
        assert row["fits"] and row["memory_gib"] * GIB <= room
        assert (row["batch_size"], row["steps"]) == (fitting[0]["batch_size"], fitting[0]["steps"])
        # The epochs stay.
        assert row["batch_size"] * row["steps"] == values["batch_size"] * values["steps"]
        parts = fitting[0].get("accumulation", 1)
        assert row["batch_size"] % (target.devices * parts) == 0


def test_b7_fits_on_eight_gpus_and_says_how() -> None:
    target = Target("A100", 8, 80e9)
    rows, *_ = planned("imagenet.py:b7", target)
    shown = planner.text(rows, target)
    student = next(row for row in rows if row["stage"] == "student_1")
    assert student["fits"] and student["changes"]["student.rematerialize"] is True
    assert f"--config.student.accumulation={student['changes']['student.accumulation']}" in shown
    # The flags that the plan prints give what the plan says.
    flags = [
        f"--config.{key}={value}" for row in rows for key, value in row.get("changes", {}).items()
    ]
    again, *_ = planned("imagenet.py:b7", target, *flags)
    assert [(row.get("memory_gib"), row["hours"]) for row in again] == [
        (row.get("memory_gib"), row["hours"]) for row in rows
    ]
    assert all(not row.get("changes") for row in again)


def test_the_flags_of_a_recipe_whose_steps_follow_its_batch_give_its_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*flags: str) -> dict[str, Any]:
        config = recipes.from_flags(
            "--config=configs/meta_pseudo_labels/imagenet_jft.py:l2", *flags
        )
        one_method.main(config, str(tmp_path / "w"), dry_run=True, devices=8, device="A100")
        value = json.loads(capsys.readouterr().out.splitlines()[-1])
        return next(row for row in value["stages"] if "memory_gib" in row)

    first = plan()
    assert "train.batch_size" in first["changes"] and "train.steps" not in first["changes"]
    again = plan(*(f"--config.{key}={value}" for key, value in first["changes"].items()))
    assert [again[key] for key in ("steps", "batch_size", "hours")] == [
        first[key] for key in ("steps", "batch_size", "hours")
    ]
    assert not again["changes"]


def test_later_teachers_label_the_selection_alone() -> None:
    rows, *_ = planned("imagenet.py:b7", Target("A100", 8, 80e9), "--config.iterations=2")
    by_stage = {row["stage"]: row for row in rows}
    assert (
        by_stage["pseudo_label_2"]["requests"] == by_stage["balance_2"]["requests"] == 65_000
    )  # 130 million images


def test_hours_and_bytes_by_hand() -> None:
    rows, *_ = planned("imagenet.py:b0", Target("A100", 8, 80e9))
    by_stage = {row["stage"]: row for row in rows}
    images = by_stage["student_1"]["steps"] * 2048 * 2
    each = multiply_adds({"name": "b0"}, 224, 1000)
    repeated = 8 if by_stage["student_1"]["changes"].get("student.rematerialize") else 6
    assert by_stage["student_1"]["hours"] == pytest.approx(
        images * repeated * each / (8 * 0.040 * 312e12) / 3600
    )
    assert by_stage["student_1"]["terabytes_read"] == pytest.approx(images * 110_000 / 1e12)
    assert by_stage["pseudo_label_1"]["hours"] == pytest.approx(
        300e6 * 2 * each / (8 * 0.040 * 312e12) / 3600
    )
    assert by_stage["pseudo_label_1"]["requests"] == 150_000
    assert by_stage["teacher"]["device_hours"] == pytest.approx(8 * by_stage["teacher"]["hours"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((8, None, None), "--devices needs --memory"),
        ((8, "80", None), r"--memory=80: a number with a unit"),
        ((8, "0GiB", None), "a number with a unit"),
        ((8, None, "A10"), "no device 'A10'; known: A100, H100, v3, v5e"),
    ],
)
def test_unusable_flags(flags: tuple[int, Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Target.of_flags(*flags)


def test_flags() -> None:
    assert Target.of_flags(0, None, None) is None
    assert Target.of_flags(8, "80GiB", None) == Target("", 8, 80 * GIB)
    assert Target.of_flags(0, None, "v3") == Target("v3", 1, 16 * GIB)
    assert Target.of_flags(2, "40GB", "A100") == Target("A100", 2, 40e9)


def test_devices_that_do_not_divide_the_batch() -> None:
    with pytest.raises(
        InputError,
        match=r"--devices=7: config\.teacher\.batch_size=2048 does not divide among them",
    ):
        planned("imagenet.py:b0", Target("A100", 7, 80e9))


def test_meta_pseudo_labels_on_the_paper_s_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests that two networks of L2 do not fit one core each; the plan says so."""
    config = recipes.from_flags("--config=configs/meta_pseudo_labels/imagenet_jft.py:l2")
    one_method.main(config, str(tmp_path / "w"), dry_run=True, devices=512, device="v3")
    said = capsys.readouterr().out
    value = json.loads(said.splitlines()[-1])
    assert value["devices"] == 512 and "does not fit" in said
    row = next(row for row in value["stages"] if "memory_gib" in row)
    assert not row["fits"] and row["memory_gib"] > 16
    assert not (tmp_path / "w").exists()
