"""The order of the stages, what a failed one does, and the tables."""

from pathlib import Path

import pytest

from noisy_student import loop, quickstart
from stages import app
from stages.errors import InputError
from stages.files import read_json

CONFIG = app.parse(["loop", "--config=configs/noisy_student/digits.py"], {})["config"]


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
    assert [by_name[f"student_{i}"]["section"] for i in (1, 2, 3)] == ["student_1", "student", "student"]
    assert [by_name[f"pseudo_label_{i}"]["section"] for i in (1, 2, 3)] == ["pseudo_label_1", "pseudo_label", "pseudo_label"]


def test_every_stage_has_its_script():
    for stage in loop.plan(CONFIG, Path("w"), {}, "auto"):
        assert (app.ROOT / stage.script).is_file()


def main(**flags):
    values = {"labeled": None, "unlabeled": None, "test": None, "strategy": "auto", "dry_run": False, "beam_options": [], "arguments": []}
    loop.main(config=CONFIG, **{**values, **flags})


def test_bad_input_of_the_first_stage_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.subprocess, "call", lambda command: 2)
    with pytest.raises(SystemExit) as stop:
        main(workdir=str(tmp_path / "w"))
    assert stop.value.code == 2
    assert not (tmp_path / "w").exists()


def test_a_finished_stage_compares_its_config_itself_and_keeps_its_time(tmp_path, monkeypatch):
    codes = {"run_prepare_data.sh": 0, "run_teacher.sh": 0, "run_pseudo_label.sh": 1}
    started = []

    def call(command):
        started.append(Path(command[0]).name)
        return codes[started[-1]]

    monkeypatch.setattr(loop.subprocess, "call", call)
    (tmp_path / "w" / "data").mkdir(parents=True)
    (tmp_path / "w" / "data" / "summary.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        main(workdir=str(tmp_path / "w"))
    assert stop.value.code == 1
    assert started == list(codes)
    seconds = read_json(tmp_path / "w" / "seconds.json")
    assert list(seconds) == ["teacher", "pseudo_label_1"]  # not `prepare`, which was done


def test_an_interrupted_stage_s_seconds_add_up(tmp_path, monkeypatch):
    def call(command):
        if command[0].endswith("run_prepare_data.sh"):
            (tmp_path / "w" / "data").mkdir(parents=True, exist_ok=True)
            (tmp_path / "w" / "data" / "summary.json").write_text("{}")
            return 0
        clock[0] += 100
        raise KeyboardInterrupt

    clock = [0.0]
    monkeypatch.setattr(loop.subprocess, "call", call)
    monkeypatch.setattr(loop.time, "time", lambda: clock[0])
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


def test_a_stray_argument_is_refused(tmp_path):
    with pytest.raises(InputError, match="unexpected argument"):
        main(workdir=str(tmp_path / "w"), arguments=["photos"])


SUMMARY = {
    "teacher": {"top1": 0.91, "ece": 0.05},
    "students": [{"top1": 0.95, "ece": 0.04}, {"top1": 0.97, "ece": 0.03}],
    "seconds": {"teacher": 10.0, "student_1": 20.0, "student_2": 30.0, "export": 1.5},
}


def test_table_of_a_run():
    lines = loop.table(SUMMARY).splitlines()
    assert lines[1].split() == ["teacher", "91.00", "0.050", "10.0"]
    assert lines[-1].split() == ["total", "61.5"]


def test_seeds_are_compared():
    worse = {**SUMMARY, "students": [{"top1": 0.9, "ece": 0.1}, {"top1": 0.9, "ece": 0.1}]}
    results = quickstart.compare([SUMMARY, worse])
    assert results["gain"] == pytest.approx([6.0, -1.0])
    assert results["mean_gain"] == pytest.approx(2.5)
    assert results["min_gain"] == pytest.approx(-1.0)
    assert quickstart.table(results).splitlines()[-2].split()[1:] == ["91.00", "92.50", "93.50", "2.50"]


@pytest.mark.parametrize("seeds", ["0", "five", "-1"])
def test_seeds_must_be_a_number(seeds):
    with pytest.raises(InputError, match="--seeds"):
        quickstart.main(workdir="w", seeds=seeds, arguments=[])
