"""The order of the stages, what a failed one does, and the tables."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cli import app, recipes, termination, work_dirs
from cli.errors import InputError
from cli.json_files import read_json, write_json
from workflow import choice, loop, plans, quickstart, run, running

CONFIG = recipes.from_flags("--config=configs/noisy_student/digits.py", "--config.iterations=3")


def test_each_student_teaches_the_next():
    stages = loop.plan(CONFIG, Path("w"), {}, "auto")
    assert [stage.name for stage in stages] == [
        *("prepare", "teacher"),
        *("pseudo_label_1", "balance_1", "student_1"),
        *("pseudo_label_2", "balance_2", "student_2"),
        *("pseudo_label_3", "balance_3", "student_3"),
        *("evaluate", "export"),
    ]
    by_name = {stage.name: stage for stage in stages}
    assert by_name["pseudo_label_1"].arguments["teacher"] == Path("w/teacher")
    assert by_name["pseudo_label_2"].arguments["teacher"] == Path("w/student_1")
    assert by_name["student_2"].arguments["pseudo_labeled"] == Path("w/pseudo_labeled_2")
    assert by_name["evaluate"].arguments["model"] == "w/teacher,w/student_1,w/student_2,w/student_3"
    assert by_name["export"].arguments["model"] == Path("w/student_3")


def test_an_iterations_own_section_is_used():
    config = CONFIG.copy_and_resolve_references()
    with config.unlocked():
        config.student_1 = config.student.copy_and_resolve_references()
    by_name = {stage.name: stage.arguments for stage in loop.plan(config, Path("w"), {}, "auto")}
    assert [by_name[f"student_{i}"]["section"] for i in (1, 2, 3)] == [
        "student_1",
        "student",
        "student",
    ]
    assert [by_name[f"pseudo_label_{i}"]["section"] for i in (1, 2, 3)] == [
        "pseudo_label_1",
        "pseudo_label",
        "pseudo_label",
    ]


def test_an_online_student_needs_no_stored_labels():
    config = changed(iterations=2)
    config.student.online = True
    plan = loop.plan(config, Path("w"), {}, "auto")
    assert [stage.name for stage in plan] == [
        "prepare",
        "teacher",
        "student_1",
        "student_2",
        "evaluate",
        "export",
    ]
    assert "of predictions" not in plans.describe(config, Path("w"), {}, plan)
    assert (
        plan[3].arguments["teacher"] == Path("w/student_1")
        and "pseudo_labeled" not in plan[3].arguments
    )


def of_selection(config):
    """Returns name -> the balanced set that the stage labels again.

    Covers the stages that label and balance.
    """
    stages = loop.plan(config, Path("w"), {}, "auto")
    beam = {stage.name: stage.arguments.get("selection") for stage in stages if stage.beam}
    return {name: path and path.name for name, path in beam.items()}, [
        stage.name for stage in stages
    ]


def test_the_first_teacher_selects_once_and_the_others_label_its_set():
    found, _ = of_selection(changed(iterations=2, selection="once"))
    assert found == {
        **{"pseudo_label_1": None, "balance_1": None},
        **{"pseudo_label_2": "pseudo_labeled_1", "balance_2": "pseudo_labeled_1"},
    }
    assert set(of_selection(CONFIG)[0].values()) == {None}


def test_a_selector_selects_for_all_teachers():
    config = changed(iterations=1, selection="once")
    with config.unlocked():
        config.selector = config.teacher.copy_and_resolve_references()
    loop.check_loop(config)
    found, names = of_selection(config)
    assert found == {
        **{"pseudo_label_0": None, "balance_0": None},
        **{"pseudo_label_1": "pseudo_labeled_0", "balance_1": "pseudo_labeled_0"},
    }
    assert names[:5] == ["prepare", "selector", "pseudo_label_0", "balance_0", "teacher"]
    config.student.online = True  # it labels the selected images within its step
    loop.check_loop(config)
    student = next(
        stage for stage in loop.plan(config, Path("w"), {}, "auto") if stage.name == "student_1"
    )
    assert (
        student.arguments["selection"] == Path("w/pseudo_labeled_0")
        and "pseudo_labeled" not in student.arguments
    )
    config.selection = "each_iteration"
    with pytest.raises(
        InputError,
        match=r"config\.selector selects images once, for all teachers; set config\.selection=once",
    ):
        loop.check_loop(config)


def test_an_online_student_selects_nothing():
    config = changed(iterations=2, selection="once")
    config.student.online = True
    with pytest.raises(
        InputError,
        match=r"selection=once: .* stored labels, but config\.student\.online=True stores none\."
        r" Set --config\.selection=each_iteration or --config\.student\.online=False, or give",
    ):
        loop.check_loop(config)
    with config.unlocked():  # the first one's labels select; the second labels that set
        config.student_1 = config.student.copy_and_resolve_references()
        config.student_1.online = False
    loop.check_loop(config)
    stages = loop.plan(config, Path("w"), {}, "auto")
    student = next(stage for stage in stages if stage.name == "student_2")
    assert student.arguments["selection"] == Path("w/pseudo_labeled_1")


def test_every_stage_has_its_script():
    for stage in loop.plan(CONFIG, Path("w"), {}, "auto"):
        assert (app.ROOT / stage.script).is_file()


def script(command):
    """Returns the script that does what a Python command does."""
    return f"run_{command[command.index('cli') + 1]}.sh"


def main(config=CONFIG, **flags):
    values = {name: None for name in ("labeled", "unlabeled", "test", "iterations")}
    loop.main(
        config=config,
        **{**values, "strategy": "auto", "tpu": "", "dry_run": False, "beam_options": [], **flags},
    )


def changed(**overrides):
    config = CONFIG.copy_and_resolve_references()
    with config.unlocked():
        config.update(overrides)
    return config


def answer(directory, top1, keys):
    """Writes the answers of a model that is right on the first images, a share `top1` of them."""
    labels = np.arange(len(keys)) % 2
    right = np.arange(len(keys)) < round(top1 * len(keys))
    probabilities = np.eye(2, dtype=np.float32)[np.where(right, labels, 1 - labels)]
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(
        directory / "predictions.npz",
        keys=np.array(keys),
        labels=labels,
        probabilities=probabilities,
        seconds=1.0,
    )


@pytest.fixture(name="scores")
def _scores():
    """Returns each model's top-1 on the validation split, and the split's number of images."""
    return {
        "images": 0,
        "teacher": 0.80,
        "student_1": 0.85,
        "student_2": 0.84,
        "student_3": 0.85,
        "student_4": 0.90,
    }


@pytest.fixture(name="started")
def _started(monkeypatch, scores):
    """Replaces stages by scripts that only leave their summaries, and answers.

    The answers have the top-1 of `scores` on the validation split. Returns the list of calls.
    """
    calls = []

    def call(command):
        flags = dict(flag[2:].split("=", 1) for flag in command[1:] if flag.startswith("--"))
        directory = Path(flags["workdir"])
        calls.append((directory.name, flags))
        if directory.name == "data":
            (directory / "unlabeled").mkdir(parents=True, exist_ok=True)
        names = [Path(path).name for path in flags.get("model", "").split(",")]
        models = {name: {"top1": scores.get(name, 0), "ece": 0.0} for name in names}
        summary = {
            "models": models,
            "figures": {"summary": "f.png"},
            "report": "r.html",
            "export": "e",
        }
        if directory.name == "data" and scores["images"]:
            summary["splits"] = {
                "labeled": {"images": 900},
                "validation": {"images": scores["images"]},
            }
        if flags.get("split") == "validation":
            answer(directory / names[0], scores[names[0]], [f"{i:03d}" for i in range(100)])
        write_json(directory / "summary.json", summary)
        return 0

    monkeypatch.setattr(termination, "call", call)
    return calls


def test_a_stage_gets_no_settings_that_it_would_refuse(tmp_path, monkeypatch, started):
    """Tests that with the set of the first selection the second takes no settings of balancing."""
    own = ["--config.balance.threshold=0.7", "--config.teacher.model.width=1.5"]
    monkeypatch.setattr(loop.app, "recipe_flags", lambda: ["--config=digits.py", *own])
    monkeypatch.setattr(loop, "require_weights", lambda *_: None)
    monkeypatch.setattr(loop.cost, "announce", lambda *_: None)
    (tmp_path / "mine.h5").touch()
    mine = str(tmp_path / "mine.h5")
    monkeypatch.chdir(tmp_path)
    main(changed(iterations=2, selection="once"), workdir=str(tmp_path / "w"), init="mine.h5")
    given = {name: flags for name, flags in started}
    assert given["pseudo_labeled_1"]["config.balance.threshold"] == "0.7"
    assert given["pseudo_labeled_2"]["selection"] == str(tmp_path / "w" / "pseudo_labeled_1")
    assert "config.balance.threshold" not in given["pseudo_labeled_2"]
    for name in ("data", "teacher", "predictions_1", "pseudo_labeled_2", "student_2"):
        assert given[name]["config.teacher.model.width"] == "1.5"
        assert given[name]["config.init"] == mine


def test_patience_stops_the_iterations_and_serves_the_best(tmp_path, started):
    config = changed(iterations=10, patience=2)
    config.data.validation_size = 50
    main(config, workdir=str(tmp_path))
    names = [name for name, _ in started]
    assert [name for name in names if name.startswith("student")] == [
        "student_1",
        "student_2",
        "student_3",
    ]
    assert names[-2:] == ["evaluation", "export"]
    assert [flags["split"] for name, flags in started if name.startswith("validation")] == [
        "validation"
    ] * 4
    assert Path(dict(started)["export"]["model"]).name == "student_1"
    assert Path(dict(started)["evaluation"]["model"].split(",")[-1]).name == "student_3"
    summary = read_json(tmp_path / "summary.json")
    assert summary["served"] == "student_1" and summary["validation_top1"] == [
        0.80,
        0.85,
        0.84,
        0.85,
    ]
    with pytest.raises(InputError, match="stopped by its patience"):
        main(config, workdir=str(tmp_path), iterations="+1")


def test_the_teacher_is_served_where_all_students_are_worse(tmp_path, started, scores, capsys):
    scores.update({"images": 200, "teacher": 0.462, "student_1": 0.30, "student_2": 0.33})
    main(changed(iterations=2), workdir=str(tmp_path))
    names = [name for name, _ in started]
    assert names[1:3] == ["teacher", "validation_0"] and names[-2:] == ["evaluation", "export"]
    assert Path(dict(started)["export"]["model"]).name == "teacher"
    assert [Path(path).name for path in dict(started)["evaluation"]["model"].split(",")] == [
        "teacher",
        "student_1",
        "student_2",
    ]
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if not line.startswith(("==", "to come:"))
    ]
    assert lines[0].startswith(
        "no student is better than the teacher: the teacher is exported (46.0 % of 100 validation"
        " images; "
    )
    assert lines[1].startswith("stage ")
    summary = read_json(tmp_path / "summary.json")
    assert (
        summary["verdict"]
        == lines[0]
        == read_json(tmp_path / "choice.json", choice.SCHEMA)["verdict"]
    )
    assert summary["served"] == "teacher" and len(summary["students"]) == 2


def test_without_validation_images_the_last_student_is_served(tmp_path, started, capsys):
    main(changed(iterations=2), workdir=str(tmp_path))
    assert not any("validation" in name for name, _ in started)
    assert Path(dict(started)["export"]["model"]).name == "student_2"
    verdict = (
        "not known whether the unlabeled images helped: no validation images were held out; the"
        " last student, student_2, is exported"
    )
    assert (
        next(
            line
            for line in capsys.readouterr().out.splitlines()
            if not line.startswith(("==", "to come:"))
        )
        == verdict
    )
    assert read_json(tmp_path / "summary.json")["verdict"] == verdict


def test_more_iterations_choose_again(tmp_path, started, scores):
    scores.update({"images": 200, "student_1": 0.70, "student_2": 0.90})
    main(changed(iterations=1), workdir=str(tmp_path))
    assert read_json(tmp_path / "choice.json")["served"] == "teacher"
    main(changed(iterations=1), workdir=str(tmp_path), iterations="+1")
    assert (
        read_json(tmp_path / "choice.json")["served"]
        == "student_2"
        == read_json(tmp_path / "summary.json")["served"]
    )


def test_data_without_unlabeled_images_end_before_the_teacher(tmp_path, started, monkeypatch):
    call = termination.call

    def without(command):
        code = call(command)
        (tmp_path / "w" / "data" / "unlabeled").rmdir()
        return code

    monkeypatch.setattr(termination, "call", without)
    with pytest.raises(
        InputError, match=r"data has no unlabeled images; delete it, and give --unlabeled or set"
    ):
        main(workdir=str(tmp_path / "w"))
    assert [name for name, _ in started] == ["data"]


def test_patience_that_ends_with_the_last_iteration(tmp_path, started):
    config = changed(iterations=2, patience=1)
    config.data.validation_size = 50
    main(config, workdir=str(tmp_path))
    assert len(read_json(tmp_path / "summary.json")["students"]) == 2
    with pytest.raises(InputError, match="stopped by its patience"):
        main(config, workdir=str(tmp_path), iterations="+1")


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.5], 1, True),
        ([0.5, 0.4, 0.6], 1, False),
        ([0.5, 0.4, 0.3], 2, True),
    ],
)
def test_patience(scores, patience, expected):
    assert loop.exhausted(scores, patience) is expected


@pytest.mark.parametrize("killed", [False, True])
def test_more_iterations_for_a_finished_run(tmp_path, started, monkeypatch, killed):
    config = changed(iterations=1)
    for workdir, message in ((tmp_path / "none", "there is no run"), (tmp_path, "there is no run")):
        with pytest.raises(InputError, match=message):
            main(config, workdir=str(workdir), iterations="+1")
    main(config, workdir=str(tmp_path))
    with pytest.raises(InputError, match=r"must be \+1"):
        main(config, workdir=str(tmp_path), iterations="2")
    with pytest.raises(InputError, match="another config"):  # and nothing is lost
        main(changed(iterations=1, seed=7), workdir=str(tmp_path), iterations="+2")
    assert (tmp_path / "summary.json").exists()
    if killed:  # after the new number was written

        def kill(self):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", kill)
            with pytest.raises(KeyboardInterrupt):
                main(config, workdir=str(tmp_path), iterations="+2")
    main(config, workdir=str(tmp_path), iterations="+2")
    assert work_dirs.done_text(tmp_path) is None  # the same words ask for two more
    assert read_json(tmp_path / "config.json")["iterations"] == 3
    assert len(read_json(tmp_path / "summary.json")["students"]) == 3
    assert list(read_json(tmp_path / "evaluation_of_1" / "summary.json")["models"]) == [
        "teacher",
        "student_1",
    ]
    assert list(read_json(tmp_path / "summary.json")["seconds"])[-5:] == [
        "pseudo_label_3",
        "balance_3",
        "student_3",
        "evaluate",
        "export",
    ]
    # Killed on the way: the same command does not ask for two more.
    (tmp_path / "summary.json").unlink()
    main(config, workdir=str(tmp_path), iterations="+2")
    assert read_json(tmp_path / "config.json")["iterations"] == 3


def test_an_unfinished_run_takes_a_corrected_config(tmp_path, started):
    config = changed(iterations=1)
    main(config, workdir=str(tmp_path))
    assert (
        work_dirs.done_text(tmp_path)
        == f"{loop.table(read_json(tmp_path / 'summary.json'))}\n{tmp_path} is done; delete it, or "
        + "name another --workdir, to run again"
    )
    with pytest.raises(
        InputError, match=r"another config \(balance.threshold: 0.7 -> 0.5\)"
    ):  # it is done
        main(changed(iterations=1, balance={"threshold": 0.5}), workdir=str(tmp_path))
    (tmp_path / "summary.json").unlink()
    main(changed(iterations=1, balance={"threshold": 0.5}), workdir=str(tmp_path))
    assert read_json(tmp_path / "config.json")["balance"]["threshold"] == 0.5


def test_more_iterations_fine_tune_again(tmp_path, started):
    config = changed(iterations=1, finetune_last=True)
    main(config, workdir=str(tmp_path))
    main(config, workdir=str(tmp_path), iterations="+1")
    assert [Path(flags["init"]).name for name, flags in started if name == "finetuned"] == [
        "student_1",
        "student_2",
    ]
    assert (tmp_path / "finetuned_of_1" / "summary.json").exists()
    assert read_json(tmp_path / "choice.json")["verdict"].endswith(
        "is exported; student_2 is fine-tuned before the export"
    )


def test_a_student_may_start_from_its_teacher():
    by_name = {
        stage.name: stage.arguments
        for stage in loop.plan(changed(student_init="teacher"), Path("w"), {}, "auto")
    }
    assert [by_name[f"student_{i}"]["init"] for i in (1, 2, 3)] == [
        Path("w/teacher"),
        Path("w/student_1"),
        Path("w/student_2"),
    ]
    assert (
        "init"
        not in {stage.name: stage.arguments for stage in loop.plan(CONFIG, Path("w"), {}, "auto")}[
            "student_1"
        ]
    )


def test_pretrained_weights_are_the_teacher_s_and_unless_told_otherwise_the_students():
    def inits(**overrides):
        stages = loop.plan(changed(iterations=2, **overrides), Path("w"), {}, "auto")
        return [
            stage.arguments.get("init")
            for stage in stages
            if stage.name in ("teacher", "student_1", "student_2")
        ]

    assert inits(init="imagenet") == ["imagenet"] * 3
    assert inits(init="imagenet", student_init="scratch") == ["imagenet", None, None]
    assert inits(init="imagenet", student_init="teacher") == [
        "imagenet",
        Path("w/teacher"),
        Path("w/student_1"),
    ]
    assert inits() == [None] * 3


def test_the_loop_names_unusable_weights_before_the_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "run_stage", lambda *arguments: pytest.fail("a stage was started"))
    with pytest.raises(InputError, match=r"--init=imagnet: .*did you mean imagenet\?"):
        main(changed(), workdir=str(tmp_path / "w"), init="imagnet")
    with pytest.raises(
        InputError, match="student_init=pretrained needs the weights to start from: give --init"
    ):
        main(changed(student_init="pretrained"), workdir=str(tmp_path / "v"))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_has_the_network_of_the_weights():
    config = changed(iterations=1, init="efficientnet-lite1")
    text = plans.describe(config, Path("w"), {}, loop.plan(config, Path("w"), {}, "auto"))
    assert text.count(": lite1, 4,") == text.count("starts from efficientnet-lite1:lite1, ") == 2
    config = changed(iterations=1, init="efficientnet-lite1", student_init="teacher")
    text = plans.describe(config, Path("w"), {}, loop.plan(config, Path("w"), {}, "auto"))
    assert text.count(": lite1, 4,") == 2 and text.count("starts from") == 1


def test_a_student_of_unlabeled_images_alone_is_fine_tuned_on_the_labeled_ones():
    config = changed(iterations=2)
    config.student.labeled = False
    stages = loop.plan(config, Path("w"), {}, "auto")
    assert [stage.name for stage in stages[4:8]] == [
        "pretrain_1",
        "student_1",
        "pseudo_label_2",
        "balance_2",
    ]
    by_name = {stage.name: stage for stage in stages}
    assert by_name["student_2"].script == "run_finetune.sh"
    assert (
        by_name["student_2"].arguments["init"]
        == by_name["pretrain_2"].directory
        == Path("w/pretrained_2")
    )
    assert (
        by_name["student_2"].arguments["section"] == "finetune_student"
        and by_name["pretrain_2"].arguments["section"] == "student"
    )
    assert by_name["pseudo_label_2"].arguments["teacher"] == by_name["student_1"].directory
    text = plans.describe(config, Path("w"), {}, stages)
    assert (
        text.count("500 steps of 0 + 200 images") == 2
        and text.count("200 steps of 50 + 0 images") == 2
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"iterations": 0}, r"^config\.iterations is 0; it must be at least 1"),
        (
            {"student_init": "zero"},
            "student_init is 'zero'; it can be pretrained, teacher or scratch, or None",
        ),
        (
            {"crossfit": {"folds": 1}},
            r"crossfit\.folds is 1; it must be at least 2, or 0 to turn cross-fitting off",
        ),
        ({"patience": 0}, "patience is 0; it must be at least 1, or None"),
        ({"patience": 1}, "patience needs a validation split"),
        (
            {
                "crossfit": {"folds": 2},
                "data": {"validation_size": 100},
                "student": {"final_weights": "best"},
            },
            "but cross-fitting uses its own held-out images",
        ),
        ({"balance": {"threshold": 1.5}}, r"config\.balance\.threshold is 1\.5"),
        (
            {"pseudo_label": {"precision": "float8"}},
            r"config\.pseudo_label\.precision is 'float8'; it can be float32",
        ),
        (
            {"student": {"pseudo_labels": "sofft"}},
            r"student\.pseudo_labels is 'sofft'; it can be soft or hard; did you mean 'soft'",
        ),
        (
            {"student": {"epochs": 60.0}},
            r"config\.student: a train section needs either steps or epochs",
        ),
        (
            {"student": {"model": {"name": "b99"}}},
            r"config\.student: model\.name: there is no architecture 'b99'",
        ),
        (
            {"student": {"schedule": {"name": "sine"}}},
            r"config\.student\.schedule\.name is 'sine'; it can be exponential",
        ),
        (
            {"teacher": {"optimizer": {"name": "lion"}}},
            r"config\.teacher\.optimizer\.name is 'lion'; it can be rmsprop",
        ),
        (
            {"teacher": {"model": {"name": "b99"}}},
            r"config\.teacher: model\.name: there is no architecture 'b99'",
        ),
        (
            {"teacher": {"precision": "float8"}},
            r"config\.teacher\.precision is 'float8'; it can be float32",
        ),
        (
            {"evaluate": {"split": "tset"}},
            r"config\.evaluate\.split is 'tset'; it can be labeled, test",
        ),
        (
            {"evaluate": {"split": "validation"}},
            r"config\.evaluate\.split=validation needs a validation split",
        ),
        (
            {"pseudo_label": {"calibrate": True}},
            r"config\.pseudo_label\.calibrate needs a validation split",
        ),
        (
            {"student": {"final_weights": "best", "evaluate_every": 10}},
            r"student\.final_weights=best needs",
        ),
        (
            {"student": {"accumulation": 3}},
            r"student\.batch_size=50 does not divide by student\.accumulation=3",
        ),
        ({"student": {"frozen_blocks": 1}}, r"student\.frozen_blocks=1 needs --init"),
        ({"student": {"temperature": 0.0}}, r"student\.temperature is 0\.0; it must be above 0"),
        (
            {"student": {"schedule": {"name": "exponential", "decay_epochs": 0.0}}},
            r"decay_epochs is 0\.0; it must be above 0",
        ),
        (
            {"student": {"model": {"dropout": 1.0}}},
            r"model\.dropout is 1\.0; it must be at least 0 and below 1",
        ),
        (
            {"student": {"model": {"width": 0.0}}},
            r"config\.student\.model\.width is 0\.0; it must be above 0",
        ),
        (
            {"student": {"model": {"strides": (1, 2)}}},
            r"config\.student: model: EfficientNet strides must be 7",
        ),
    ],
)
def test_settings_of_the_loop_that_are_impossible(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        main(changed(**overrides), workdir=str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_comma_in_the_directory_s_name_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="a,b has a comma"):
        main(workdir=str(tmp_path / "a,b"))
    assert not (tmp_path / "a,b").exists()


def test_several_hosts_must_be_named_and_extend_no_run(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match="--strategy=multi_worker: TF_CONFIG is ''; it must name"):
        main(workdir=str(tmp_path / "w"), strategy="multi_worker")
    with pytest.raises(InputError, match="--iterations cannot be combined with --strategy=multi"):
        main(workdir=str(tmp_path / "w"), strategy="multi_worker", iterations="+1")
    assert not (tmp_path / "w").exists()


def test_the_trainings_are_told_which_tpu(tmp_path, monkeypatch, capsys):
    commands = {}

    def call(command):
        commands[script(command)] = command
        (tmp_path / "w" / "data" / "unlabeled").mkdir(parents=True, exist_ok=True)
        write_json(tmp_path / "w" / "data" / "summary.json", {})
        return termination.EXIT_CODE if script(command) == "run_teacher.sh" else 0

    monkeypatch.setattr(termination, "call", call)
    with pytest.raises(SystemExit) as stop:
        main(workdir=str(tmp_path / "w"), strategy="tpu", tpu="mine")
    assert stop.value.code == 143
    assert (
        "== teacher was stopped; the same command continues from there" in capsys.readouterr().err
    )
    assert {"--strategy=tpu", "--tpu=mine"} <= set(commands["run_teacher.sh"])
    assert not any(word.startswith("--tpu") for word in commands["run_prepare_data.sh"])


def test_a_mistyped_flag_is_no_option_of_beam(tmp_path):
    with pytest.raises(
        InputError, match="--dryrun: neither a flag of this stage nor an option of Apache Beam"
    ):
        main(workdir=str(tmp_path / "w"), beam_options=["--dryrun"])
    assert not (tmp_path / "w").exists()


def test_bad_input_of_the_first_stage_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(termination, "call", lambda command: 2)
    with pytest.raises(SystemExit) as stop:
        main(workdir=str(tmp_path / "w"))
    assert stop.value.code == 2
    assert not (tmp_path / "w").exists()


def test_a_finished_stage_compares_its_config_itself_and_keeps_its_time(tmp_path, monkeypatch):
    codes = {"run_prepare_data.sh": 0, "run_teacher.sh": 0, "run_pseudo_label.sh": 1}
    started = []

    def call(command):
        started.append(script(command))
        return codes[started[-1]]

    monkeypatch.setattr(termination, "call", call)
    (tmp_path / "w" / "data" / "unlabeled").mkdir(parents=True)
    (tmp_path / "w" / "data" / "summary.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        main(workdir=str(tmp_path / "w"))
    assert stop.value.code == 1
    assert started == list(codes)
    seconds = read_json(tmp_path / "w" / "seconds.json")
    assert list(seconds) == ["teacher", "pseudo_label_1"]  # not `prepare`, which was done


def test_an_interrupted_stage_s_seconds_add_up(tmp_path, monkeypatch):
    def call(command):
        if script(command) == "run_prepare_data.sh":
            (tmp_path / "w" / "data" / "unlabeled").mkdir(parents=True, exist_ok=True)
            (tmp_path / "w" / "data" / "summary.json").write_text("{}")
            return 0
        clock[0] += 100
        raise KeyboardInterrupt

    clock = [0.0]
    monkeypatch.setattr(termination, "call", call)
    monkeypatch.setattr(running.time, "time", lambda: clock[0])
    for expected in (100, 200):
        with pytest.raises(KeyboardInterrupt):
            main(workdir=str(tmp_path / "w"))
        assert read_json(tmp_path / "w" / "seconds.json")["teacher"] == expected


def test_fine_tuning_comes_last_and_is_what_is_served():
    config = CONFIG.copy_and_resolve_references()
    config.finetune_last = True
    by_name = {stage.name: stage for stage in loop.plan(config, Path("w"), {}, "auto")}
    assert by_name["finetune"].arguments["init"] == Path("w/student_3")
    assert by_name["export"].arguments["model"] == Path("w/finetuned")


SUMMARY = {
    "teacher": {"top1": 0.91, "ece": 0.05},
    "students": [{"top1": 0.95, "ece": 0.04}, {"top1": 0.97, "ece": 0.03}],
    "seconds": {"teacher": 10.0, "student_1": 20.0, "student_2": 30.0, "export": 1.5},
}


def test_table_of_a_run():
    lines = loop.table(SUMMARY).splitlines()
    assert lines[1].split() == ["teacher", "91.00", "0.050", "10.0"]
    assert lines[-1].split() == ["total", "61.5"]
    with_probe = loop.table({**SUMMARY, "probe": {"top1": 0.7, "ece": 0.2}}).splitlines()
    assert with_probe[-2].split() == ["probe", "70.00", "0.200"] and with_probe[-1] == lines[-1]


def test_seeds_are_compared():
    worse = {**SUMMARY, "students": [{"top1": 0.9, "ece": 0.1}, {"top1": 0.9, "ece": 0.1}]}
    results = quickstart.compare([SUMMARY, worse])
    assert results["gain"] == pytest.approx([6.0, -1.0])
    assert results["mean_gain"] == pytest.approx(2.5)
    assert results["min_gain"] == pytest.approx(-1.0)
    assert quickstart.table(results).splitlines()[-2].split()[1:] == [
        "91.00",
        "92.50",
        "93.50",
        "2.50",
    ]


def test_the_loop_as_one_call(tmp_path, monkeypatch):
    """Tests that the stages get the call's recipe and settings, not those of this process.

    A stage's exit code becomes an exception.
    """
    called = []

    def call(command):
        called.append(command)
        if script(command) == "run_teacher.sh":
            return 2
        (tmp_path / "w" / "data" / "unlabeled").mkdir(parents=True)
        write_json(
            tmp_path / "w" / "data" / "summary.json", {"splits": {"validation": {"images": 250}}}
        )
        return 0

    monkeypatch.setattr(termination, "call", call)
    monkeypatch.setattr(sys, "argv", ["pytest", "--config=another.py"])
    given = {"labeled": tmp_path / "l", "unlabeled": tmp_path / "u", "workdir": tmp_path / "w"}
    with pytest.raises(RuntimeError, match="ended with exit code 2"):
        run(**given, settings={"iterations": 1, "teacher.epochs": 3.0})
    for command in called:
        flags = [word for word in command if word.startswith("--config")]
        assert flags == [
            "--config=configs/noisy_student/image_folder.py",
            "--config.iterations=1",
            "--config.teacher.epochs=3.0",
        ]
    assert f"--labeled={tmp_path / 'l'}" in called[0]
    with pytest.raises(InputError, match=r"the recipe has no key 'student\.stepz'"):
        run(**given, settings={"student.stepz": 1})


def test_a_finished_loop_gives_its_summary_again(tmp_path):
    row = {"top1": 0.5, "ece": 0.1}
    summary = {"teacher": row, "students": [row], "seconds": {"teacher": 1.0}}
    config = recipes.from_flags("--config=configs/noisy_student/digits.py")
    loop.work_dirs.start(tmp_path, loop.resolved(config, {}), of_parts=True)
    (tmp_path / "data").mkdir()
    loop.work_dirs.finish(tmp_path, summary)
    assert run(workdir=tmp_path, recipe="configs/noisy_student/digits.py") == summary
