"""One method from images to an exported model: the order of the stages, and what is refused."""

import re
from pathlib import Path

import pytest

from cli import recipes, termination, work_dirs
from cli.errors import InputError
from cli.json_files import read_json, write_json
from tests import networks
from tests.data.recipes import save
from training import estimates
from workflow import measure, one_method, plans, run_method
from workflow.measure import Rates
from workflow.times import duration

OPTIONS = {"section": "train", "strategy": "auto"}
FIXMATCH = "configs/fixmatch/digits.py"
MPL = "configs/meta_pseudo_labels/digits.py"
ROW = {"top1": 0.9, "ece": 0.05}


def recipe(name=FIXMATCH, **overrides):
    config = recipes.from_flags(f"--config={name}").copy_and_resolve_references()
    with config.unlocked():
        config.update(overrides)
    return config


def main(config, workdir, **flags):
    training = {
        "section": "train",
        "strategy": "auto",
        "cpu_devices": 1,
        "iteration": 0,
        "init": None,
    }
    one_method.main(config, str(workdir), **{**training, **flags})


@pytest.fixture(name="started")
def _started(monkeypatch):
    """Replaces stages by scripts that only leave their summaries.

    Returns the list of (stage's directory, its flags).
    """
    calls = []

    def call(command):
        flags = dict(word[2:].split("=", 1) for word in command[1:] if word.startswith("--"))
        directory = Path(flags["workdir"])
        calls.append((directory.name, {**flags, "script": command[command.index("cli") + 1]}))
        models = {Path(path).name: ROW for path in flags.get("model", "").split(",")}
        summary = {
            "models": models,
            "figures": {"summary": "f.png"},
            "report": "r.html",
            "export": "e",
        }
        write_json(directory / "summary.json", summary)
        if directory.name == "data":
            (directory / "unlabeled").mkdir(exist_ok=True)
        return 0

    monkeypatch.setattr(termination, "call", call)
    return calls


def test_every_stage_runs_in_order_and_one_table_has_the_numbers(tmp_path, started, capsys):
    main(recipe(), tmp_path / "w", cpu_devices=2, strategy="mirrored")
    assert [(name, flags["script"]) for name, flags in started] == [
        ("data", "prepare_data"),
        ("fixmatch", "train"),
        ("evaluation", "evaluate"),
        ("export", "export"),
    ]
    trained = started[1][1]
    assert trained["data"] == str(tmp_path / "w" / "data") and trained["section"] == "train"
    assert trained["cpu_devices"] == "2" and trained["strategy"] == "mirrored"
    assert started[-1][1]["model"] == str(tmp_path / "w" / "fixmatch")
    summary = read_json(tmp_path / "w" / "summary.json", one_method.SUMMARY)
    assert summary["models"] == {"fixmatch": ROW}
    rows = {line.split()[0]: line.split()[1:3] for line in one_method.table(summary).splitlines()}
    assert rows["fixmatch"] == ["90.00", "0.050"]
    assert one_method.table(summary) in capsys.readouterr().out
    assert work_dirs.done_text(tmp_path / "w").startswith(one_method.table(summary))


def test_a_method_with_a_teacher_names_its_student_and_fine_tunes_it(tmp_path, started):
    main(recipe(MPL, finetune_last=True), tmp_path / "w")
    assert [name for name, _ in started] == ["data", "student", "finetuned", "evaluation", "export"]
    by_name = dict(started)
    assert by_name["finetuned"]["init"] == str(tmp_path / "w" / "student")
    assert [Path(path).name for path in by_name["evaluation"]["model"].split(",")] == [
        "student",
        "finetuned",
    ]
    assert by_name["export"]["model"] == str(tmp_path / "w" / "finetuned")
    summary = read_json(tmp_path / "w" / "summary.json")
    assert "finetune            90.00" in one_method.table(summary)


@pytest.mark.parametrize(
    ("student", "tuned", "served"), [(0.9, 0.8, "student"), (0.8, 0.9, "finetuned")]
)
def test_the_better_one_on_validation_images_is_exported(
    tmp_path, monkeypatch, started, student, tuned, served
):
    call = termination.call

    def with_validation(command):
        call(command)
        directory = tmp_path / "w" / _name(command)
        if directory.name == "data":
            (directory / "validation").mkdir(exist_ok=True)
        if directory.name == "validation":
            models = {"student": {"top1": student}, "finetuned": {"top1": tuned}}
            write_json(directory / "summary.json", {"models": models})
        return 0

    monkeypatch.setattr(termination, "call", with_validation)
    main(recipe(MPL, finetune_last=True), tmp_path / "w", strategy="one_device")
    by_name = dict(started)
    assert by_name["validation"]["strategy"] == by_name["evaluation"]["strategy"] == "one_device"
    assert (
        by_name["validation"]["split"] == "validation" and by_name["evaluation"]["split"] == "test"
    )
    assert Path(by_name["export"]["model"]).name == served
    assert read_json(tmp_path / "w" / "summary.json")["served"] == served


def test_the_same_command_runs_only_what_is_not_done(tmp_path, monkeypatch, started):
    call = termination.call
    codes = {"fixmatch": 143}
    monkeypatch.setattr(
        termination, "call", lambda command: codes.get(_name(command)) or call(command)
    )
    with pytest.raises(SystemExit) as stop:
        main(recipe(), tmp_path / "w")
    assert stop.value.code == 143 and not (tmp_path / "w" / "summary.json").exists()
    codes.clear()
    main(recipe(), tmp_path / "w")
    assert (tmp_path / "w" / "summary.json").exists()
    config = recipe()
    config.train.threshold = 0.5
    with pytest.raises(InputError, match=r"another config \(train\.threshold: 0\.95 -> 0\.5"):
        main(config, tmp_path / "w")


def _name(command):
    return next(
        Path(word.partition("=")[2]).name for word in command if word.startswith("--workdir=")
    )


def test_prepared_data_are_trained_on_alone(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(
        one_method.train,
        "main",
        lambda config, workdir, data, **flags: given.update(flags, data=data),
    )
    main(recipe(), tmp_path / "w", data="d", iteration=2)
    assert given["data"] == "d" and given["iteration"] == 2 and given["dry_run"] is False
    with pytest.raises(InputError, match="--labeled: --data=d is prepared already; leave one out"):
        main(recipe(), tmp_path / "w", data="d", labeled="photos")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "configs/uda/image_folder.py",
            {},
            r"neither prepared data \(--data\) nor images: --labeled is not given",
        ),
        ("configs/uda/image_folder.py", {"labeled": "/nowhere"}, "--labeled: there is no /nowhere"),
        (
            f"{MPL}:reduced",
            {},
            "--data is missing: reduced_meta_pseudo_labels learns from what other stages make",
        ),
        (FIXMATCH, {"pseudo_labeled": "p"}, "--pseudo_labeled has no effect without --data"),
        (FIXMATCH, {"strategy": "multi_worker"}, "--strategy=multi_worker needs --data"),
        (FIXMATCH, {"init": "imagnet"}, r"--init=imagnet: .*did you mean imagenet\?"),
        (
            "configs/noisy_student/digits.py",
            {},
            "no training 'train' in the config; it has .*teacher",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_stage(tmp_path, started, name, flags, message):
    with pytest.raises(InputError, match=message):
        main(recipe(name), tmp_path / "w", **flags)
    assert not started and not (tmp_path / "w").exists()


def test_supervised_learning_needs_no_unlabeled_images(tmp_path, started):
    (tmp_path / "photos").mkdir()
    config = recipe("configs/supervised/digits.py")
    config.data.source = "image_folder"
    main(config, tmp_path / "w", labeled=str(tmp_path / "photos"))
    assert [name for name, _ in started] == ["data", "supervised", "evaluation", "export"]
    folders = {"labeled": str(tmp_path / "photos")}
    uda = recipe("configs/uda/image_folder.py")
    assert one_method.missing(uda, "train", folders, tmp_path) == ["--unlabeled is not given"]


def test_supervised_learning_on_folders_needs_no_pool(tmp_path, started):
    name = "configs/supervised/image_folder.py:small"
    main(recipe(name), tmp_path / "w", labeled=str(tmp_path))
    # The preparation wants a pool.
    assert started[0][1]["config.data.labeled_as_unlabeled"] == "all"
    main(recipe(name), tmp_path / "v", labeled=str(tmp_path), unlabeled=str(tmp_path))
    assert len(started) == 8 and "config.data.labeled_as_unlabeled" not in started[4][1]


STAGES = ["prepare", "student", "finetune", "evaluate", "export"]


def test_a_dry_run_tells_stages_and_trainings_and_measures_them(tmp_path, monkeypatch, capsys):
    measured = []

    def rates(self, training, batch_size):
        measured.append(training.stage.name)
        return Rates(first=11.0, step=2.0, first_answer=3.0, answer=0.5)

    monkeypatch.setattr(measure.Bench, "rates", rates)
    monkeypatch.setattr(measure, "STARTED", 1.0)
    main(recipe(MPL, finetune_last=True), tmp_path / "w", dry_run=True)
    told = capsys.readouterr().out
    stages, times = (
        told.partition(title)[2].splitlines()[1:6] for title in ("stages:", "time on this machine:")
    )
    assert [line.split()[0] for line in stages] == [line.split()[0] for line in times] == STAGES
    assert told.count("learning rate:") == 3 and "missing: nothing\nmemory: " in told
    assert (
        measured == ["student", "finetune"] and "1,000 steps; one step takes 2 s, measured" in told
    )
    assert f"evaluate        {duration(1 + 2 * (3 + 400 * 0.5))}" in told, (
        "two models, and 400 test images"
    )
    assert not list(tmp_path.iterdir())


def test_a_dry_run_on_prepared_data_measures_its_training(tmp_path, monkeypatch, capsys):
    rates = Rates(first=11.0, step=2.0, first_answer=3.0, answer=0.5)
    monkeypatch.setattr(measure.Bench, "rates", lambda *_: rates)
    monkeypatch.setattr(measure, "STARTED", 1.0)
    data = tmp_path / "data"
    data.mkdir()
    splits = {"labeled": {"images": 50}, "unlabeled": {"images": 100}}
    summary = {"splits": splits, "label_names": list("0123456789")}
    write_json(data / "summary.json", {**summary, "median_height": 8, "median_width": 8})
    config = recipe()
    main(config, tmp_path / "w", data=str(data), dry_run=True)
    told = capsys.readouterr().out
    steps = int(re.search(r"([\d,]+) steps of", told)[1].replace(",", ""))
    assert f"  total           about {duration(1 + 11 + 2 * (steps - 1))}" in told
    assert "one step takes 2 s, measured" in told and not (tmp_path / "w").exists()
    main(config, tmp_path / "w", data=str(tmp_path / "gone"), dry_run=True)
    assert "time on" not in capsys.readouterr().out


def test_a_dry_run_s_step_is_the_method_s_own(tmp_path):
    """UDA's step on folders, with the network of the tests; both networks of Meta Pseudo Labels."""
    for name, first in (("labeled/cat", 0), ("labeled/dog", 10), ("all", 20)):
        for i in range(4):
            save(tmp_path / name / f"{i}.png", first + i, (40, 70))
    folders = {"labeled": str(tmp_path / "labeled"), "unlabeled": str(tmp_path / "all")}
    flags = ["--config.preprocessing.image_size=16", "--config.train.batch_size=4"]
    uda = one_method.alone(
        recipes.from_flags(
            "--config=configs/uda/image_folder.py:wrn_28_2", *flags, *networks.flags("train")
        ),
        None,
    )
    counts = estimates.images(uda, tmp_path / "w", folders)
    [training] = plans.trainings(
        uda, one_method.plan(uda, tmp_path / "w", folders, OPTIONS)[:2], counts
    )
    with measure.Bench(uda, counts, counts["survey"].sample) as bench:
        assert bench.rates(training, 4).step > 0
    config = one_method.alone(
        recipes.from_flags("--config=configs/meta_pseudo_labels/image_folder.py"),
        "efficientnet-lite0",
    )
    stages = one_method.plan(
        config, tmp_path / "w", folders, {**OPTIONS, "init": "efficientnet-lite0"}
    )
    student, tuned = plans.trainings(config, stages, counts)
    with measure.Bench(config, counts, ()) as bench:
        section = bench._recipe(student, 4)[0].train
    assert (
        section.teacher.model.name == section.student.model.name == tuned.model["name"] == "lite0"
    )
    assert student.weights and not tuned.weights


@pytest.mark.parametrize("name", ["supervised", "uda", "fixmatch", "meta_pseudo_labels"])
def test_the_recipes_for_folders_start_from_the_same_weights_by_the_same_habits(name):
    config = recipe(f"configs/{name}/image_folder.py")
    loop_of_noisy_student = recipe("configs/noisy_student/image_folder.py:lite0")
    for key in ("init", "preprocessing", "data"):
        assert config[key] == loop_of_noisy_student[key]
    teacher, train = loop_of_noisy_student.teacher, config.train
    networks = (train.teacher, train.student) if name == "meta_pseudo_labels" else (train,)
    for network in networks:
        assert network.model == teacher.model and network.schedule.base == teacher.schedule.base
        assert (network.optimizer.name, network.optimizer.nesterov) == ("sgd", True)
    for key in ("frozen_blocks", "ema_decay", "weight_decay"):
        assert train[key] == teacher[key]
    one_method.check_run(config, {"section": "train", "strategy": "auto"})
    small = recipes.from_flags(f"--config=configs/{name}/image_folder.py", "--config.smoke=True")
    assert small.init is None and small.train.frozen_blocks == 0


def test_one_call_does_the_same(tmp_path, started):
    summary = run_method(recipe=FIXMATCH, workdir=tmp_path / "w", settings={"train.steps": 20})
    assert summary["models"] == {"fixmatch": ROW} and summary["export"] == "e"
    assert "--config.train.steps=20" in (tmp_path / "w" / "commands.txt").read_text()
