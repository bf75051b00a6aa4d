"""A study's runs, links, comparisons and tables.

The recipe's script is a stand-in that writes a summary.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli import app, recipes
from cli.errors import InputError
from cli.json_files import read_json, write_json
from experiments import study
from tests.data.recipes import save
from workflow import loop, measure, times
from workflow.settings import of_recipe

STUDIES = sorted(
    path.name
    for path in (app.ROOT / "configs" / "studies").glob("*.py")
    if path.name not in ("__init__.py", "base.py")
)
STUDIES += [
    f"meta_pseudo_labels.py:{name}"
    for name in ("small", "methods", "feedback", "ablations", "weight")
]


def config(name: str = "labels.py", *overrides: str):
    return recipes.from_flags(f"--config=configs/studies/{name}", *overrides)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_s_flags_are_the_recipe_s(name):
    loaded = config(name)
    study.check_config(loaded)
    for _, flags, *_ in loaded.runs:
        recipes.from_flags(f"--config={loaded.recipe}", *loaded.flags, *flags)
    for run in loaded.runs:  # and no flag is without effect
        for command in study.commands(loaded, Path("w"), run[0], 0):
            words = [word for word in command.words if word.startswith("--config")]
            recipes.from_flags(*words, declared=of_recipe)
    assert name in Path(app.ROOT / "configs" / "studies" / name.partition(":")[0]).read_text()


def read_by(words):
    """Returns all that the stages of a run read: the recipe without sections that are left aside.

    An example is `pseudo_label` beside `pseudo_label_1`.
    """
    recipe = recipes.from_flags(*words)
    named = {stage.arguments.get("section") for stage in loop.plan(recipe, Path(), {}, "auto")}
    kinds = ("student", "pseudo_label", "finetune")
    return {
        key: value
        for key, value in recipe.to_dict().items()
        if not (isinstance(value, dict) and key.startswith(kinds) and key not in named)
    }


def same_settings(loaded):
    """Returns pairs of runs that come to the same settings.

    A run of several stages also differs by its method.
    """
    seen, pairs = [], []
    for name, _, *method in loaded.runs:
        words = study.commands(loaded, Path("w"), name, 0)[-1].words[1:-1]
        words = [word for word in words if word.startswith("--config")]
        looped = not method or method == ["noisy_student"]
        settings = method, read_by(words) if looped else recipes.from_flags(*words).to_dict()
        pairs += [(other, name) for other, those in seen if those == settings]
        seen.append((name, settings))
    return pairs


@pytest.mark.parametrize("name", [*STUDIES, "noise.py:small"])
def test_no_two_runs_of_a_study_come_to_the_same_settings(name):
    assert same_settings(config(name)) == []


def test_a_section_that_no_stage_reads_makes_no_difference():
    """The first iteration's labels are those of `pseudo_label_1`, in a recipe that has it."""
    unlike = config("storage.py").copy_and_resolve_references()
    with unlike.unlocked():
        unlike.runs = tuple(
            (name, tuple(flag.replace("pseudo_label_1", "pseudo_label") for flag in own))
            for name, own in unlike.runs
        )
    assert same_settings(unlike) == [("full", "top3"), ("full", "top1"), ("top3", "top1")]


def test_a_study_of_another_recipe_s_first_iteration():
    """`image_folder.py` has no section for the first iteration, so the general one is read."""
    folder = config("noise.py", "--config.recipe=configs/noisy_student/image_folder.py")
    assert (
        "--config.pseudo_label.views=1"
        in study.commands(folder, Path("w"), "noised_teacher", 0)[0].words
    )
    assert (
        "--config.pseudo_label_1.views=1"
        in study.commands(config("noise.py"), Path("w"), "noised_teacher", 0)[0].words
    )
    assert same_settings(folder) == []


@pytest.fixture
def scripts(monkeypatch):
    """Records the calls of the recipe's script.

    Each call leaves data, a teacher and a summary. The summary's top-1 follows from flags and seed.
    """
    calls = []

    def call(command, **_):
        calls.append(command)
        directory = Path(command[-1].partition("=")[2])
        seed = int(command[-2].partition("=")[2])
        for part in ("data", "teacher"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        gain = {"soft": 0.02, "sharpened": 0.03, "hard": 0.01}[directory.parent.name]
        summary = {
            "teacher": {"top1": 0.9 + seed / 1e4},
            "students": [{"top1": 0.9 + gain + seed / 1e4 + 1e-3 * (seed % 2)}],
        }
        write_json(directory / "summary.json", summary)
        return 0

    monkeypatch.setattr(study.termination, "call", call)
    return calls


def test_a_study_runs_links_compares_and_ends(tmp_path, scripts, capsys):
    study.main(config(), str(tmp_path / "s"), 1)
    assert len(scripts) == 15
    assert (
        tmp_path / "s" / "hard" / "seed_101" / "teacher"
    ).resolve() == tmp_path / "s" / "soft" / "seed_101" / "teacher"
    found = read_json(tmp_path / "s" / "results.json")
    assert found["readings"]["hard"] == pytest.approx([92.0, 92.11, 92.02, 92.13, 92.04])
    soft, sharpened = found["claims"]
    assert soft["verdict"] == "holds" and soft["difference"] == pytest.approx(1.0)
    assert sharpened["verdict"] == "holds"
    assert (tmp_path / "s" / "results.png").stat().st_size > 5000
    assert "| hard | 92.06 |" in (tmp_path / "s" / "results.md").read_text()
    study.main(config(), str(tmp_path / "s"), 1)
    assert len(scripts) == 15, "a finished study was run again"
    with pytest.raises(InputError, match="another config"):
        study.main(config("labels.py", "--config.seeds=3"), str(tmp_path / "s"), 1)


@pytest.mark.parametrize("name", [*STUDIES, "noise.py:small"])
def test_every_study_ends_with_a_verdict_on_each_claim(name, tmp_path, monkeypatch, capsys):
    """The recipe's script is a stand-in; its students have a top-1 of 0.9 or more.

    The later a run comes in the study, the higher is its top-1.
    """
    loaded = config(name, "--config.seeds=2")
    names = [run for run, *_ in loaded.runs]

    def call(command, **_):
        directory = Path(command[-1].partition("=")[2])
        run, seed = directory.relative_to(tmp_path / "s").parts[:2]
        top1 = (
            0.9 + 0.001 * names.index(run) + 0.0001 * (int(seed[-1]) + 1) ** (names.index(run) % 5)
        )
        rows = [{"top1": top1 + 0.001 * i} for i in range(loaded.iterations)]
        models = {"trained": {"top1": top1}, "finetuned": {"top1": top1 + 0.001 * int(seed[-1])}}
        whole = {"exported": {"top1": top1}, "probe": {"top1": 0.8}}
        directory.mkdir(parents=True, exist_ok=True)
        write_json(
            directory / "summary.json",
            {"teacher": {"top1": 0.89}, "students": rows, "models": models, **whole},
        )
        return 0

    monkeypatch.setattr(study.termination, "call", call)
    monkeypatch.setattr(study, "figure", lambda *_: None)
    study.main(loaded, str(tmp_path / "s"), 1, labeled="photos" if loaded.of_photographs else None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert len(lines) == len(loaded.claims) > 0
    for line, (_, _, finding) in zip(lines, loaded.claims):
        assert (
            line.startswith(f"- {finding}: **")
            and "points, 95 % interval" in line
            and "2 seeds)" in line
        )


PHOTOGRAPHS = "photographs.py"


@pytest.fixture
def photographs(monkeypatch):
    """Records the calls of the scripts.

    Each call leaves a summary, with numbers of its method and seed.
    """
    calls = []

    def call(command, **_):
        calls.append(command)
        directory = Path(command[-1].partition("=")[2])
        run, seed = directory.parts[-2:] if directory.name != "data" else directory.parts[-3:-1]
        gain = {
            "uda": 0.03,
            "fixmatch": 0.001 * (int(seed[-1]) - 2),
            "mpl": 0.02,
            "noisy_student": 0.04,
        }.get(run, 0.0)
        top1 = 0.7 + gain + 0.001 * (int(seed[-1]) % 2)
        summary = {"exported": {"top1": top1}, "teacher": {"top1": 0.7}, "probe": {"top1": 0.66}}
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "summary.json", summary)
        return 0

    monkeypatch.setattr(study.termination, "call", call)
    return calls


def of(command):
    """Returns run and seed of a stand-in's call."""
    return command[-1].rpartition("/seed_")[0].rpartition("/")[2], command[-2]


def test_photographs_are_given_by_flag_and_done_piece_by_piece(tmp_path, photographs, capsys):
    loaded, directory = config(PHOTOGRAPHS), tmp_path / "s"
    study.main(loaded, str(directory), labeled="photos", only="uda:1,noisy_student:0")
    done = [(name, int(seed.partition("=")[2])) for name, seed in map(of, photographs)]
    assert done == [("data", 0), ("noisy_student", 0), ("data", 1), ("uda", 1)]
    assert all(f"--labeled={Path('photos').absolute()}" in command for command in photographs)
    lines = [json.loads(line) for line in (directory / "readings.jsonl").read_text().splitlines()]
    assert lines[0]["run"] == "noisy_student" and lines[0]["top1"] == {
        "probe": pytest.approx(66.0),
        "supervised": pytest.approx(70.0),
        "noisy_student": pytest.approx(74.0),
    }
    assert (
        lines[1] == {"run": "uda", "seed": 1, "top1": {"uda": pytest.approx(73.1)}}
        and len(lines) == 2
    )
    assert "left: uda:0, fixmatch:0, mpl:0, noisy_student:1" in capsys.readouterr().out
    assert not (directory / "summary.json").exists()
    study.main(loaded, str(directory), labeled="photos")
    assert len(photographs) == 25, "a finished run was run again"
    found = {claim["finding"]: claim for claim in read_json(directory / "results.json")["claims"]}
    assert found["Noisy Student is better than its teacher"]["verdict"] == "holds"
    assert found["FixMatch is better than supervised fine-tuning"]["verdict"] == "not decided"
    assert found["Meta Pseudo Labels is better than UDA"]["verdict"] == "opposite"
    assert "by Holm's correction" in (directory / "results.md").read_text()
    with pytest.raises(InputError, match="another config"):
        study.main(loaded, str(directory), labeled="others")


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (PHOTOGRAPHS, {}, "--labeled is missing"),
        (
            PHOTOGRAPHS,
            {"labeled": "p", "only": "uda,udda"},
            "no run udda; the runs are data, noisy_student",
        ),
        (PHOTOGRAPHS, {"labeled": "p", "only": "uda:7"}, "no run uda:7; .* the seeds 0 to 4"),
        ("labels.py", {"labeled": "p"}, "--labeled: this study has its own images"),
    ],
)
def test_photographs_and_runs_that_a_study_does_not_take(tmp_path, name, flags, message):
    with pytest.raises(InputError, match=message):
        study.main(config(name), str(tmp_path / "s"), **flags)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", [PHOTOGRAPHS, "photographs.py:10", "photographs.py:smoke"])
def test_the_methods_learn_from_the_same_photographs_and_weights(name):
    loaded, seen, starts = config(name), [], set()
    for run, *_ in loaded.runs:
        flags = [
            word
            for word in study.commands(loaded, Path("w"), run, 3)[0].words
            if word.startswith("--config")
        ]
        recipe = recipes.from_flags(*flags)
        seen.append((recipe.seed, recipe.data.to_dict(), recipe.preprocessing.image_size))
        starts.add(recipe.init)
    assert all(one == seen[0] for one in seen) and starts == {"efficientnet-lite0"}
    assert seen[0][1]["labeled_per_class"] == {
        "photographs.py:10": 10,
        "photographs.py:smoke": 2,
    }.get(name, 20)


def test_a_study_may_be_moved(tmp_path, scripts):
    study.main(config(), str(tmp_path / "s"), 1)
    for path in (
        tmp_path / "s" / "summary.json",
        *(tmp_path / "s" / "hard").glob("seed_101/summary.json"),
    ):
        path.unlink()
    (tmp_path / "s").rename(tmp_path / "moved")
    teacher = tmp_path / "moved" / "hard" / "seed_101" / "teacher"
    assert teacher.resolve() == tmp_path / "moved" / "soft" / "seed_101" / "teacher"
    teacher.unlink()
    teacher.symlink_to(tmp_path / "s" / "gone")  # as studies of before linked
    study.main(config(), str(tmp_path / "moved"), 1)
    assert teacher.resolve() == tmp_path / "moved" / "soft" / "seed_101" / "teacher"


def test_fewer_images_stay_fewer_on_ones_own_folders():
    runs = {
        name: flags
        for name, flags, *_ in config("noise.py:small", "--config.flags=('--labeled=a',)").runs
    }
    assert all("--config.balance.fraction=0.125" in flags for flags in runs.values())


def test_a_run_that_changes_the_teacher_trains_its_own():
    beyond = config("beyond.py")
    assert study.linked(beyond, "recipe") == []
    assert study.linked(beyond, "last_weights") == ["data"]
    assert study.linked(beyond, "class_thresholds") == ["data", "teacher"]


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the measurement; returns the names of what was measured.

    The first step ends after 11 s, and each further step takes 2 s.
    """
    names = []

    def rates(self, training, batch_size):
        names.append(training.stage.name)
        return measure.Rates(first=11.0, step=2.0, first_answer=3.0, answer=0.5)

    monkeypatch.setattr(measure.Bench, "rates", rates)
    return names


def test_a_dry_run_counts_what_is_not_linked(tmp_path, capsys, measured):
    """Counts 800 steps of 50 images for the teacher, 500 of 50 + 200 for each student."""
    study.main(config("joint.py"), str(tmp_path / "s"), 1, dry_run=True)
    said = capsys.readouterr().out
    rows = {
        line.split()[0]: line.replace(",", "").split()[-3:]
        for line in said.partition("\n\n")[0].splitlines()
    }
    assert rows["joint"] == ["10", str(5 * 1300), str(5 * (800 * 50 + 500 * 250))]
    assert rows["apart"] == ["10", str(5 * 700), str(5 * (500 * 200 + 200 * 50))]
    assert rows["5"] == ["30", str(5 * 3300), str(5 * (40_000 + 125_000 + 110_000 + 140_000))]
    assert measured.count("teacher") == 1
    assert f"  joint                 {times.duration(5 * (2 * 11 + 2 * (799 + 499)))}" in said
    assert not (tmp_path / "s").exists()


def test_a_dry_run_of_photographs_measures_each_kind_of_training_once(tmp_path, capsys, measured):
    for name, first in (("cat", 0), ("dog", 100)):
        for i in range(60):
            save(tmp_path / "photos" / name / f"{i}.png", first + i, (40, 70))
    small = config("photographs.py:5")
    study.main(small, str(tmp_path / "s"), dry_run=True, labeled=str(tmp_path / "photos"))
    rows = {
        line.split()[0]: line.replace(",", "").split()[-3:]
        for line in capsys.readouterr().out.partition("\n\n")[0].splitlines()
    }
    assert rows["noisy_student"] == [
        str(5 * 3 * 3),
        str(45 * 200),
        str(5 * 3 * 200 * (32 + 2 * 128)),
    ]  # and two folds
    assert (
        rows["uda"] == ["5", "2500", str(2500 * 128)]
        and rows["mpl"][0] == "10"
        and rows["data"] == ["0", "0", "0"]
    )
    assert sorted(measured) == [
        "fixmatch",
        "student",
        "student_1",
        "teacher",
        "uda",
    ]  # fine-tuning is as the teacher


def test_seeds_side_by_side_give_the_same(tmp_path, scripts):
    for jobs in (1, 2):
        study.main(config(), str(tmp_path / str(jobs)), jobs)
    assert len(scripts) == 30
    assert read_json(tmp_path / "1" / "results.json") == read_json(tmp_path / "2" / "results.json")


def test_an_interrupted_study_goes_on(tmp_path, scripts, monkeypatch):
    whole = study.termination.call

    def call(command, **options):
        return 137 if len(scripts) == 4 else whole(command, **options)

    monkeypatch.setattr(study.termination, "call", call)
    with pytest.raises(SystemExit) as stop:
        study.main(config(), str(tmp_path / "s"), 1)
    assert stop.value.code == 137
    monkeypatch.setattr(study.termination, "call", whole)
    study.main(config(), str(tmp_path / "s"), 1)
    assert len(scripts) == 15


def test_a_run_of_several_stages(tmp_path, monkeypatch):
    """Tests that each stage is called once with the recipe's flags and its own.

    A run is read from its last stage. A run that failed goes on with the stage that it was at.
    """
    called = []

    def call(command, **_):
        directory = Path(command[-1].partition("=")[2])
        called.append(
            (
                f"run_{command[command.index('cli') + 1]}.sh",
                str(directory.relative_to(tmp_path)),
                command[1:-1],
            )
        )
        if len(called) == 2:
            return 137
        directory.mkdir(parents=True, exist_ok=True)
        feedback = "none" if "--config.train.feedback=none" in command else "soft"
        write_json(
            directory / "summary.json",
            {"models": {"trained": {"top1": {"none": 0.5, "soft": 0.75}[feedback]}}},
        )
        return 0

    monkeypatch.setattr(study.termination, "call", call)
    two = config(
        "meta_pseudo_labels.py:ablations", "--config.seeds=2"
    ).copy_and_resolve_references()
    with two.unlocked():
        two.runs, two.readings, two.claims = (
            two.runs[1:3],
            two.readings[1:3],
            [("uda", "h_0", "UDA is better than its student")],
        )
    with pytest.raises(SystemExit):
        study.main(two, str(tmp_path), 1)
    study.main(two, str(tmp_path), 1)
    names = [name for name, *_ in called]
    assert names[:2] == ["run_prepare_data.sh", "run_meta_pseudo_labels.sh"]
    h_0, uda = (
        ["run_prepare_data.sh", script, "run_evaluate.sh"]
        for script in ("run_meta_pseudo_labels.sh", "run_train.sh")
    )
    assert names[2:] == [*h_0, *uda, *h_0, *uda]
    script, directory, flags = called[3]
    assert (script, directory) == ("run_meta_pseudo_labels.sh", "h_0/seed_0/trained")
    assert {
        f"--data={tmp_path}/h_0/seed_0/data",
        "--config.seed=0",
        "--config.train.feedback=none",
    } <= set(flags)
    assert (tmp_path / "uda" / "seed_1" / "data").resolve() == tmp_path / "h_0" / "seed_1" / "data"
    found = read_json(tmp_path / "results.json")
    assert found["readings"] == {"h_0": [50.0, 50.0], "uda": [75.0, 75.0]}


def test_a_stage_may_read_another_run_s_directory(tmp_path):
    loaded = config("meta_pseudo_labels.py")
    made = study.commands(loaded, tmp_path, "reduced_mpl", 3)
    assert [command.directory.name for command in made] == [
        "data",
        "predictions",
        "pseudo_labeled",
        "trained",
        "evaluation",
    ]
    assert f"--teacher={tmp_path}/uda/seed_3/trained" in made[1].words
    flags = [word for word in made[3].words if word.startswith("--config")]
    assert recipes.from_flags(*flags).train.method == "reduced_meta_pseudo_labels"


def test_the_interval_is_student_s(tmp_path):
    """Compares with a table's value: t of 0.975 at 4 degrees of freedom is 2.776."""
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = study.compare(90 + differences, np.full(5, 90.0))
    assert found["difference"] == pytest.approx(3.0)
    assert found["high"] - found["difference"] == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    assert found["verdict"] == "holds"
    assert study.compare(np.full(5, 90.0), 90 + differences)["verdict"] == "opposite"
    assert study.compare([1.0, -1.0, 0.5], [0.0, 0.0, 0.0])["verdict"] == "not decided"


def test_all_the_same_difference_is_no_division_by_zero():
    claims = [
        study.compare(np.full(5, 91.0), np.full(5, 90.0)),
        study.compare(np.full(5, 90.0), np.full(5, 90.0)),
    ]
    assert [claim["verdict"] for claim in study.corrected(claims)] == ["holds", "not decided"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correction": "bonferroni"}, "it can be none or holm"),
        ({"seeds": 1}, "at least 2"),
        ({"claims": (("soft", "nothing", "?"),)}, "no reading 'nothing'"),
        (
            {"readings": (("soft", "nothing", "teacher.top1"),), "claims": ()},
            "read from run 'nothing'",
        ),
        ({"runs": (("soft", (), "nothing"),)}, "has the method 'nothing'"),
    ],
)
def test_a_study_that_cannot_be_run(change, message):
    broken = config().copy_and_resolve_references()
    with broken.unlocked():
        for key, value in change.items():
            broken[key] = value
    with pytest.raises(InputError, match=message):
        study.check_config(broken)
