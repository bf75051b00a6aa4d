"""Cross-fitting: the stages of the folds, on real images with a small network, killed once."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli import commands, recipes, termination
from cli.app import parse
from cli.errors import InputError
from cli.json_files import read_json, write_json
from data import records
from tests.networks import NAME
from workflow import choice, crossfit, loop, one_method, plans

MODELS = ("teacher", "student_1")
FLAGS = [
    "--config=configs/noisy_student/image_folder.py:b0",
    "--config.iterations=1",
    "--config.crossfit.folds=2",
    "--config.student.online=True",
    "--config.preprocessing.image_size=16",
    *(f"--config.{section}.model.name={NAME}" for section in ("teacher", "student")),
    *(
        f"--config.{section}.{key}"
        for section in ("teacher", "student")
        for key in ("steps=2", "epochs=None", "batch_size=4")
    ),
]


def test_each_fold_has_the_loop_s_stages_and_evaluates_every_model():
    config = recipes.from_flags(*FLAGS[:3])
    stages = crossfit.plan(config, Path("w"), {"labeled": "l"}, "auto")
    assert [stage.name for stage in stages[:3]] == [
        "fold_1/prepare",
        "fold_2/prepare",
        "fold_1/teacher",
    ]
    assert [stage.name.partition("/")[2] for stage in stages if stage.counted == "fold_2"] == [
        *(
            "prepare",
            "teacher",
            "validation_0",
            "pseudo_label_1",
            "balance_1",
            "student_1",
            "validation_1",
        )
    ]
    assert stages[1].arguments == {"labeled": "l", "config.data.folds": 2, "config.data.fold": 2}
    assert stages[3].arguments == {
        "data": Path("w/folds/1/data"),
        "model": Path("w/folds/1/teacher"),
        "split": "validation",
    }


def test_an_evaluation_of_one_model_compares_with_no_other_one():
    """A recipe's baseline is a model of the last evaluation, which each model's own one lacks."""
    config = recipes.from_flags(*FLAGS[:3]).copy_and_resolve_references()
    with config.unlocked():
        config.evaluate.baseline = "student_1"
    loop.check_loop(config)
    stages = {stage.name: stage.arguments for stage in crossfit.plan(config, Path("w"), {}, "auto")}
    assert stages["fold_1/validation_0"]["config.evaluate.baseline"] == "teacher"
    assert "config.evaluate.baseline" not in stages["fold_1/validation_1"]
    assert (
        "config.evaluate.baseline"
        not in one_method.validate(config, Path("w"), Path("w/a"), Path("w/student_1")).arguments
    )
    config.evaluate.baseline = "student_2"
    with pytest.raises(
        InputError, match=r"no model 'student_2'; the run evaluates teacher, student_1$"
    ):
        loop.check_loop(config)


@pytest.mark.parametrize(
    ("flags", "prepared", "expected"),
    [
        ((), {"labeled": 96}, choice.CROSS_FITTING),
        ((), {"labeled": 850, "validation": 198}, choice.VALIDATION),  # 200 but for repeated images
        (
            ("--config.data.validation_size=24",),
            {"labeled": 96, "validation": 24},
            choice.CROSS_FITTING,
        ),
        (
            ("--config.data.validation_size=24", "--config.patience=1"),
            {"labeled": 96, "validation": 24},
            choice.VALIDATION,
        ),
        (
            ("--config.data.validation_size=24", "--config.crossfit.folds=0"),
            {"labeled": 96, "validation": 24},
            choice.LAST,
        ),
        (
            ("--config.data.validation_size=200", "--config.crossfit.folds=0"),
            {"labeled": 96, "validation": 200},
            choice.VALIDATION,
        ),
        (("--config.crossfit.folds=0",), {"labeled": 96}, choice.LAST),
    ],
)
def test_what_decides(tmp_path, flags, prepared, expected):
    write_json(
        tmp_path / "summary.json",
        {"splits": {name: {"images": count} for name, count in prepared.items()}},
    )
    assert choice.basis(recipes.from_flags(FLAGS[0], *flags), choice.held_out(tmp_path)) == expected


@pytest.mark.parametrize("name", ["digits.py", "imagenet.py:b0", "svhn.py"])
def test_the_papers_recipes_serve_the_last_student(name):
    assert (
        choice.basis(recipes.from_flags(f"--config=configs/noisy_student/{name}"), 0) == choice.LAST
    )


@pytest.mark.parametrize(("labeled", "validation", "said"), [(96, 0, True), (960, 240, False)])
def test_a_dry_run_tells_of_it(tmp_path, labeled, validation, said):
    config = recipes.from_flags(*FLAGS)
    counts = {"labeled": labeled, "unlabeled": 50, "validation": validation, "classes": 2}
    counts |= {"median_height": 20, "median_width": 20, "survey": None}
    text = plans.describe(config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto"), counts)
    assert ("0 images are held out for validation" in text) == said
    assert ("the run takes about 3 times as long (--config.crossfit.folds=0 turns" in text) == said


def images(directory):
    """Returns key -> SHA-256 of the file of each image of a split."""
    manifest = records.read_manifest(directory)
    features = [
        tf.train.Example.FromString(record).features.feature
        for path in manifest.paths
        for record in records.read_shard(path)
    ]
    return {
        f["image/key"].bytes_list.value[0].decode(): hashlib.sha256(
            f["image/encoded"].bytes_list.value[0]
        ).hexdigest()
        for f in features
    }


@pytest.fixture(name="folders")
def _folders(tmp_path):
    """Makes two classes of ten colors of noise, and a pool of half of these and six others."""
    rng = np.random.default_rng(0)
    for i in range(26):
        pixels = rng.integers(0, 120, (20, 20, 3)) + np.array((120, 0, 0) if i % 2 else (0, 0, 120))
        encoded = tf.io.encode_png(tf.constant(pixels, tf.uint8)).numpy()
        for path in (
            f"labeled/class_{i % 2}/{i}.png" if i < 20 else "",
            f"pool/{i}.png" if i >= 10 else "",
        ):
            if path:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_bytes(encoded)
    return {"labeled": str(tmp_path / "labeled"), "unlabeled": str(tmp_path / "pool")}


def test_folds_end_to_end_with_a_kill_on_the_way(folders, tmp_path, monkeypatch, capsys):
    """All stages run in this process; those after the folds only leave what the loop reads."""
    workdir, begun = tmp_path / "w", []

    def call(command):
        name, words = command[command.index("cli") + 1], command[command.index("cli") + 2 :]
        stage = commands.find([name, *words])[0]
        values = parse(stage, words)
        directory = Path(values["workdir"])
        begun.append(directory.relative_to(workdir).as_posix())
        if begun.count("folds/2/student_1") == 1 and begun[-1] == "folds/2/student_1":
            raise KeyboardInterrupt
        if directory.name == "data" or "folds" in directory.parts:
            commands.load(stage.target)(**values)
        else:
            row = {"top1": 0.5, "ece": 0.1}
            rows = {
                "models": dict.fromkeys(MODELS, row),
                "figures": {"summary": "f"},
                "report": "r",
                "export": "e",
            }
            write_json(directory / "summary.json", rows)
        return 0

    monkeypatch.setattr(termination, "call", call)
    monkeypatch.setattr(
        "evaluation.evaluate._draw", lambda directory, evaluations: {"summary": "f"}
    )  # half of the test's time
    monkeypatch.setattr(
        "evaluation.report.write", lambda directory, *rest: directory / "report.html"
    )
    monkeypatch.setattr(
        "data.prepare.run", commands.load("data.prepare:main")
    )  # this process may keep its GPU
    values = {
        "config": recipes.from_flags(*FLAGS),
        "workdir": str(workdir),
        **folders,
        "test": None,
        "iterations": None,
    }
    values |= {
        "strategy": "auto",
        "tpu": "",
        "dry_run": False,
        "beam_options": [],
        "config_flags": FLAGS,
    }
    with pytest.raises(KeyboardInterrupt):
        loop._loop(**values)
    assert not (workdir / "teacher").exists() and not (workdir / "choice.json").exists()
    first = (workdir / "folds/1/student_1/model/model.weights.h5").stat().st_mtime_ns
    loop._loop(**values)
    assert (workdir / "folds/1/student_1/model/model.weights.h5").stat().st_mtime_ns == first
    output = capsys.readouterr().out
    assert (
        "It trains teacher and students 2 more times" in output
        and "== fold_2/student_1: ./run_student.sh" in output
    )

    labeled = images(workdir / "data/labeled")
    answers = choice.read_answers(workdir / "folds" / "answers.npz")
    assert answers.keys.tolist() == sorted(labeled) and answers.models == MODELS
    assert answers.probabilities.shape == (2, len(labeled), 2) and set(answers.folds) == {1, 2}
    np.testing.assert_allclose(answers.probabilities.sum(axis=2), 1, rtol=1e-5)
    assert answers.labels.tolist() == [int(key.partition("/")[0][-1]) for key in answers.keys]
    for fold in (1, 2):
        data = workdir / "folds" / str(fold) / "data"
        held_out = images(data / "validation")
        assert held_out.keys() == set(answers.keys[answers.folds == fold])
        learned = {*images(data / "labeled").values(), *images(data / "unlabeled").values()}
        assert learned and not learned & set(held_out.values())
        assert {*images(data / "labeled").values(), *held_out.values()} == set(labeled.values())

    chosen, summary = (read_json(workdir / name) for name in ("choice.json", "summary.json"))
    assert chosen == choice.decide(choice.CROSS_FITTING, answers) and chosen["images"] == len(
        labeled
    )
    assert summary["verdict"] == chosen["verdict"] and summary["served"] == chosen["served"]
    assert list(summary["seconds"]) == [
        "prepare",
        "fold_1",
        "fold_2",
        "teacher",
        "student_1",
        "evaluate",
        "export",
    ]
    table = output[output.rindex(chosen["verdict"]) :].splitlines()
    assert table[1].split()[:3] == ["stage", "top-1", "%"]
    assert begun[-1] == "export"

    moved = workdir / "folds/1/validation_0/teacher/predictions.npz"
    stored = dict(np.load(moved))
    np.savez(workdir / "folds/2/validation_0/teacher/predictions.npz", **stored)
    np.savez(workdir / "folds/2/validation_1/student_1/predictions.npz", **stored)
    with pytest.raises(InputError, match=r"folds answers \d+ of \d+ labeled images; delete it"):
        crossfit.collect(workdir, 2, list(MODELS))
