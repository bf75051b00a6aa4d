"""Checks what a run costs: memory, disk and time, what cannot fit, and a measured step."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from cli import machine, recipes
from cli.errors import InputError
from cli.json_files import write_json
from data.protos import make_label
from data.records import RECORD_OVERHEAD
from tests.data.recipes import save
from training import estimates, gpus
from workflow import cost, labels, loop, measure, plans, times
from workflow.measure import Rates

GIB = 2**30
TINY = [
    f"--config.{section}.model.{key}"
    for section in ("teacher", "student")
    for key in ("width=0.1", "depth=0.1")
]
SMALL = "image_folder.py:small"


def recipe(name: str, *overrides: str):
    return recipes.from_flags(f"--config=configs/noisy_student/{name}", *overrides)


@pytest.fixture
def photos(tmp_path):
    for folder, first, count in (("labeled/cat", 10, 10), ("labeled/dog", 30, 10), ("all", 50, 6)):
        for i in range(count):
            save(tmp_path / "photos" / folder / f"{i}.png", first + i, (40, 70))
    return {
        "labeled": str(tmp_path / "photos" / "labeled"),
        "unlabeled": str(tmp_path / "photos" / "all"),
    }


def planned(config, workdir, folders, strategy="auto"):
    stages = loop.plan(config, workdir, folders, strategy)
    counts = estimates.images(config, workdir / "data", folders)
    return stages, counts


def test_memory_is_that_of_the_largest_training(photos, tmp_path, monkeypatch):
    config = recipe(SMALL, "--config.preprocessing.image_size=224")
    stages, counts = planned(config, tmp_path / "w", photos)
    monkeypatch.setattr(machine, "memory", lambda: 24 * GIB)
    found, trainings = cost.cost(config, tmp_path / "w", stages, counts)
    student = trainings[1]
    assert (
        found.memory.training is student
        and student.values["batch_size"] == 32
        and not found.memory.fits
    )
    kept = estimates.activations(student.model, 224, 128, 4, False)
    parameters = estimates.count_parameters(student.model, 2)
    weights = (20 * parameters.trained + 8 * (parameters.all - parameters.trained)) / GIB
    assert found.memory.needed == pytest.approx(cost.BASE + kept + weights) and kept > 24
    assert (
        found.problem()
        == f"student_1 needs about {found.memory.needed:.1f} GiB of memory; this machine has 24.0"
        " GiB: set config.student.batch_size=16 (now 32), or lower"
        " config.preprocessing.image_size (now 224)"
    )
    lower = recipe(SMALL, "--config.preprocessing.image_size=224", "--config.student.batch_size=16")
    # The advice helps.
    assert cost.cost(lower, tmp_path / "w", *planned(lower, tmp_path / "w", photos))[0].memory.fits
    monkeypatch.setattr(gpus, "count", lambda: 1)
    monkeypatch.setattr(gpus, "memory", lambda: 80 * GIB)
    found, _ = cost.cost(config, tmp_path / "w", stages, counts)
    assert found.memory.fits and str(found.memory).endswith("the GPU has 80.0 GiB")


def test_labels_beside_their_images_take_room(photos, tmp_path):
    """Counts a record with 1,000 float32 beside each image of ImageNet's pool."""
    config = recipe("imagenet.py:b0", "--config.balance.copy_images=False")
    stages, counts = planned(config, tmp_path / "w", {})
    balancing = [stage for stage in stages if stage.script == "run_balance.sh"]
    found = cost._disk(config, tmp_path / "w", balancing[:1], [], counts)
    label = make_label(9000, 1, np.eye(1000, dtype=np.float32)[500])
    every = counts["unlabeled"] * (len(label) + RECORD_OVERHEAD)
    assert found.needed == pytest.approx(every / GIB) and found.needed > 1000
    beside, copied = (
        recipe(SMALL, "--config.crossfit.folds=0", f"--config.balance.copy_images={copy}")
        for copy in (False, True)
    )
    needed = []
    for config in (beside, copied):
        stages, counts = planned(config, tmp_path / "v", photos)
        found, _ = cost.cost(config, tmp_path / "v", stages, counts)
        needed.append(found.disk.needed * GIB)
    balancings = sum(stage.script == "run_balance.sh" for stage in stages)
    assert needed[1] - needed[0] == pytest.approx(balancings * counts["survey"].file_bytes)


def test_what_cannot_fit_is_refused_by_dry_run_and_run(photos, tmp_path, monkeypatch, capsys):
    config, workdir = recipe(SMALL, "--config.preprocessing.image_size=224"), tmp_path / "w"
    stages, _ = planned(config, workdir, photos)
    monkeypatch.setattr(machine, "memory", lambda: 24 * GIB)
    monkeypatch.setattr(times, "table", lambda *_: pytest.fail("a step was measured"))
    with pytest.raises(
        InputError, match=r"student_1 needs about .* set config\.student\.batch_size=16"
    ):
        cost.dry_run(config, workdir, photos, stages)
    assert (
        "missing: nothing\nmemory: student_1 needs about" in (said := capsys.readouterr().out)
        and "time: not measured" in said
    )
    monkeypatch.setattr(loop, "run_stage", lambda *_: pytest.fail("a stage was started"))
    with pytest.raises(InputError, match=r"student_1 needs about"):
        loop.main(
            config,
            str(workdir),
            **photos,
            test=None,
            strategy="auto",
            tpu="",
            iterations=None,
            dry_run=False,
            beam_options=[],
        )
    assert not workdir.exists()
    monkeypatch.setattr(machine, "memory", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "disk_free", lambda path: 1000)
    with pytest.raises(
        InputError,
        match=(
            r"the run needs about 0\.\d GiB of disk; 0\.0 GiB are free: free some, name a --workdir"
        ),
    ):
        cost.announce(config, workdir, photos, stages)


def test_another_machine_s_run_is_told_not_refused_and_not_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(times, "table", lambda *_: pytest.fail("a step was measured"))
    config = recipe("imagenet.py:l2")
    cost.dry_run(config, tmp_path / "w", {}, loop.plan(config, tmp_path / "w", {}, "auto"))
    out = capsys.readouterr().out
    assert "time: not measured, because the run does not fit: student_3 needs about" in out
    assert "Add --devices=8 --device=A100, or the like, to plan for other devices." in out
    assert not list(tmp_path.iterdir())


def test_the_run_says_in_a_line_what_it_comes_to(photos, tmp_path, capsys):
    flags = [
        "--config.iterations=1",
        *(f"--config.{name}.min_steps=10" for name in ("teacher", "student")),
    ]
    config = recipe(SMALL, *flags)
    stages, _ = planned(config, tmp_path / "w", photos)
    cost.announce(config, tmp_path / "w", photos, stages)
    # Two folds, and all images.
    assert capsys.readouterr().out.startswith("to come: 6 trainings, 180 steps, 14,400 images")
    config = recipe(SMALL, *flags, "--config.crossfit.folds=0")
    cost.announce(config, tmp_path / "w", photos, stages)
    line = capsys.readouterr().out
    assert line.startswith("to come: 2 trainings, 60 steps, 4,800 images; about 0.")
    assert line.endswith("GiB of memory; --dry_run measures the time\n") and line.count("\n") == 1
    (tmp_path / "w" / "teacher").mkdir(parents=True)
    write_json(tmp_path / "w" / "teacher" / "summary.json", {})
    cost.announce(config, tmp_path / "w", photos, stages)
    assert capsys.readouterr().out.startswith("to come: 1 training, 30 steps, 3,840 images")
    # The run's first stage says what is wrong.
    cost.announce(config, tmp_path / "v", {**photos, "labeled": str(tmp_path / "away")}, stages)
    expected = recipe("imagenet.py:b0")
    # The data are not prepared: nothing is known.
    cost.announce(expected, tmp_path / "v", {}, loop.plan(expected, tmp_path / "v", {}, "auto"))
    assert not capsys.readouterr().out


def test_hints_about_other_recipes(photos, tmp_path, monkeypatch):
    config = recipe("image_folder.py")
    counts = planned(config, tmp_path / "w", photos)[1]
    small = "hint: the images' median side is 40 px; for less than 64 px try image_folder.py:small"
    assert plans.advice(config, counts) == [small]
    assert plans.advice(config, {**counts, "median_height": 64.0}) == []
    assert (
        plans.advice(recipe(SMALL), counts)
        == plans.advice(recipe("digits.py"), {**counts, "median_height": 8})
        == []
    )
    monkeypatch.setattr(gpus, "count", lambda: 1)
    gpu = "a GPU is here: `image_folder.py:b0 --init=imagenet` at 224 px is worth trying"
    assert plans.advice(config, {**counts, "median_height": 64.0}) == [gpu]


def test_replicas_on_gpus_that_are_not_there_are_missing(photos, tmp_path):
    config = recipe("image_folder.py")
    for strategy, missing in (
        ("mirrored", ["--strategy=mirrored: TensorFlow sees no GPU"]),
        ("auto", []),
    ):
        assert (
            plans.missing(
                config, tmp_path / "w", photos, loop.plan(config, tmp_path / "w", photos, strategy)
            )
            == missing
        )


# Time


def test_a_step_is_measured_as_the_run_takes_it(photos, tmp_path):
    config = recipe(
        SMALL,
        *TINY,
        "--config.teacher.batch_size=8",
        "--config.student.batch_size=8",
        "--config.iterations=1",
    )
    stages, counts = planned(config, tmp_path / "w", photos)
    student = plans.trainings(config, stages, counts)[1]
    began = time.perf_counter()
    with measure.Bench(config, counts, counts["survey"].sample) as bench:
        directory = Path(bench._directory.name)
        rates = bench.rates(student, 4)
        assert directory.is_dir()
    assert (
        0 < rates.step < rates.first < time.perf_counter() - began
        and 0 < rates.answer < rates.first_answer
    )
    assert not directory.exists() and not (tmp_path / "w").exists()


def test_fixed_blocks_need_weights_that_are_here(photos, tmp_path, monkeypatch):
    config = recipe("image_folder.py", "--config.init=imagenet:b0")
    stages, counts = planned(config, tmp_path / "w", photos)
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        measure.Bench(config, counts, ()) as bench,
        pytest.raises(measure.Unmeasured, match="the weights are not here"),
    ):
        bench.rates(plans.trainings(config, stages, counts)[0], 4)


def test_the_time_of_each_stage(photos, tmp_path, monkeypatch):
    config, workdir = recipe(SMALL, "--config.pseudo_label.views=2"), tmp_path / "w"
    measured = []

    def rates(self, training, batch_size):
        measured.append((training.stage.name, batch_size))
        return Rates(first=11.0, step=2.0, first_answer=3.0, answer=0.5)

    monkeypatch.setattr(measure.Bench, "rates", rates)
    monkeypatch.setattr(measure, "STARTED", 1.0)
    stages, counts = planned(config, workdir, photos)
    text = times.table(config, stages, counts)
    assert measured == [
        ("student_1", 32),
        ("teacher", 32),
    ]  # the longest first; student_2 is as student_1
    assert "student_1       20 minutes     600 steps; one step takes 2 s, measured" in text
    student, label, evaluate = 1 + 11 + 599 * 2, 1 + 3 + 2 * 6 * 0.5, 1 + 3 * (3 + 4 * 0.5)
    timed = times._measured(config, plans.trainings(config, stages, counts), counts)[0]
    found = times.seconds(config, stages, plans.trainings(config, stages, counts), timed, counts)
    assert (found["student_2"], found["pseudo_label_2"], found["evaluate"]) == (
        student,
        label,
        evaluate,
    )
    folds = 2 * sum(
        seconds for name, seconds in found.items() if name not in ("evaluate", "export")
    )
    assert (
        f"folds           {times.duration(folds)}" in text
    )  # 3 labeled images a class decide nothing
    assert (
        f"total           about {times.duration(sum(found.values()) + folds)}" in text
        and "not measured" not in text
    )

    monkeypatch.setattr(measure, "BUDGET", -1.0)  # no time for any
    assert "not measured: teacher, pseudo_label_1" in times.table(config, stages, counts)
    spent = iter([0.0, 99.0])
    monkeypatch.setattr(measure, "BUDGET", 60.0)
    monkeypatch.setattr(measure.Bench, "spent", property(lambda self: next(spent)))
    timed = times._measured(config, plans.trainings(config, stages, counts), counts)[0]
    assert timed["teacher"].how == "reckoned from student_1" and timed["teacher"].rates == Rates(
        9.5, 0.5, 3.0, 0.5
    )


def test_of_a_large_step_a_part_is_measured(photos, tmp_path):
    config = recipe(
        "image_folder.py:b4",
        "--config.preprocessing.image_size=224",
        "--config.student.accumulation=2",
    )
    stages, counts = planned(config, tmp_path / "w", photos)
    teacher, student, _ = plans.trainings(config, stages, counts)
    kept = estimates.activations(student.model, 224, 4, 4, False)
    part = times.measurable(student)
    assert (
        2 <= part < 32 and part % 2 == 0 and part * kept <= times.MEASURED_GIB < (part + 2) * kept
    )
    assert times.measurable(teacher) > part


def test_a_dry_run_tells_all_of_it_and_writes_nothing(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure.Bench, "rates", lambda *_: Rates(11.0, 2.0, 3.0, 0.5))
    flags = {
        "test": None,
        "strategy": "auto",
        "tpu": "",
        "iterations": None,
        "dry_run": True,
        "beam_options": [],
    }
    loop.main(recipe(SMALL), str(tmp_path / "w"), **photos, **flags)
    said = capsys.readouterr().out
    parts = (
        "16 labeled and 6",
        "held out: 4 test",
        "stages:",
        "min_steps raises that to 600",
        "missing: nothing\nmemory: ",
        "disk: ",
        "total ",
    )
    assert [said.count(part) > 0 for part in parts] == [True] * len(parts)
    assert sorted(said.index(part) for part in parts) == [said.index(part) for part in parts]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.4, "3 s"),
        (99.0, "99 s"),
        (1500.0, "25 minutes"),
        (27000.0, "7.5 hours"),
        (8.64e6, "100 days"),
    ],
)
def test_durations(seconds, text):
    assert times.duration(seconds) == text


def test_the_plan_has_the_answers_of_the_last_student(photos, tmp_path):
    """They are a stage of the run where the unlabeled images are files, and not too many."""
    config, w = recipe(SMALL), tmp_path / "w"
    stages = loop.plan(config, w, photos, "auto")
    found = labels.foreseen(config, w, photos, stages, 6)
    assert [stage.name for stage in found[-4:]] == ["student_2", "labels", "evaluate", "export"]
    assert found[-3].directory == w / "predictions_3"
    assert found[-3].arguments["teacher"] == w / "student_2"
    assert [stage for stage in found if stage.name != "labels"] == stages
    assert labels.foreseen(config, w, photos, stages, labels.MOST + 1) == stages
    assert labels.foreseen(config, w, {"unlabeled": "tar:pool"}, stages, 6) == stages
    digits = recipe("digits.py")
    assert labels.foreseen(digits, w, {}, loop.plan(digits, w, {}, "auto"), 6)[-3].name != "labels"
