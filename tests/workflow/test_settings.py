"""The settings of whole recipes: every recipe passes, and what others say of them is up to date."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from cli import app, commands
from cli.errors import InputError
from cli.settings import describe
from workflow import settings, settings_page
from workflow.methods import METHODS, settings_of

RECIPES = [
    *(f"{method}/digits.py" for method in ("supervised", "uda", "fixmatch")),
    *(f"uda/{name}" for name in ("image_folder.py:wrn_28_2", "cifar10_4k.py", "svhn_1k.py")),
    *(
        f"supervised/{name}"
        for name in ("cifar10.py", "svhn.py", "imagenet.py:b0", "imagenet.py:l2")
    ),
    *("supervised/imagenet.py:resnet50", "uda/imagenet_10pct.py", "uda/imagenet_jft.py"),
    *(
        f"noisy_student/{name}"
        for name in ("digits.py", "svhn.py", "cifar10.py", "image_folder.py:small")
    ),
    *(f"noisy_student/imagenet.py:{name}" for name in ("b0", "l2", "v1", "l2_b0")),
    *(f"meta_pseudo_labels/{name}" for name in ("digits.py", "digits.py:reduced", "svhn_1k.py")),
    *(f"meta_pseudo_labels/cifar10_4k.py:{name}" for name in ("paper", "release")),
    *(f"meta_pseudo_labels/{name}" for name in ("image_folder.py", "imagenet_10pct.py")),
    *(f"meta_pseudo_labels/imagenet_jft.py:{name}" for name in ("resnet50", "l2", "b6_wide")),
    "evaluation/default.py",
]
DIGITS = "--config=configs/noisy_student/digits.py"


def parsed(*words: str) -> ConfigDict:
    values = app.parse(commands.TABLE["evaluate"], [*words, "--workdir=w", "--model=m"])
    return values["config"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes(name):
    settings.check_recipe(parsed(f"--config=configs/{name}"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("balance.threshold=7", r"config\.balance\.threshold is 7\.0; it must be at least 0 and b"),
        ("seed=-1", r"config\.seed is -1; it must be at least 0"),
        (
            "pseudo_label_1.precision=half",
            r"config\.pseudo_label_1\.precision is 'half'; it can be",
        ),
        (
            "teacher.optimizer.name=adm",
            r"teacher\.optimizer\.name is 'adm'; .*; did you mean 'adam'",
        ),
        ("finetune.schedule.base=nan", r"config\.finetune\.schedule\.base is nan"),
        ("data.on_error=ignore", r"config\.data\.on_error is 'ignore'; it can be fail or skip"),
        (
            "student.method=nosy_student",
            r"student\.method is 'nosy_student'; .* you mean 'noisy_stu",
        ),
        ("evaluate.split=tset", r"evaluate\.split is 'tset'; .*; did you mean 'test'"),
    ],
)
def test_an_impossible_value_is_refused_when_the_recipe_is_read(word, message):
    with pytest.raises(InputError, match=message):
        parsed(DIGITS, f"--config.{word}")


def test_sections_of_other_names_are_known_by_what_they_hold():
    config = parsed("--config=configs/meta_pseudo_labels/digits.py").copy_and_resolve_references()
    with config.unlocked():
        config.student_2 = config.student.copy_and_resolve_references()
        config.longer = config.train.copy_and_resolve_references()
    for key, value in (("student_2.temperature", 0.0), ("longer.uda.temperature", 0.0)):
        bad = config.copy_and_resolve_references()
        bad.update_from_flattened_dict({key: value})
        with pytest.raises(InputError, match=rf"config\.{key} is 0\.0; it must be above 0"):
            settings.check_recipe(bad)
    with config.unlocked():
        config.balanec = ConfigDict({"threshold": 0.5})
    with pytest.raises(InputError, match=r"config\.balanec is not a setting; did you mean balance"):
        settings.check_recipe(config)


@pytest.mark.parametrize(
    "stage", [stage for stage in commands.STAGES if stage.recipes], ids=lambda stage: stage.name
)
def test_every_stage_refuses_it_before_it_does_anything(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "load", lambda target: pytest.fail(f"{target} was begun"))
    with pytest.raises(
        InputError, match=r"^config\.balance\.threshold is 7\.0; it must be at least 0"
    ):
        app.run(stage, [DIGITS, "--config.balance.threshold=7", f"--workdir={tmp_path / 'w'}"])
    assert not list(tmp_path.iterdir())


def test_the_command_line_needs_no_tensorflow_to_refuse_or_explain(tmp_path):
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = (
            "import sys\nfrom cli import app\ntry: app.main()\nfinally: assert 'tensorflow' not in"
            " sys.modules"
        )
        environment = {**os.environ, "PYTHONPATH": str(app.ROOT)}
        command = [sys.executable, "-c", program, "balance", *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path
        )

    refused = run(DIGITS, "--config.balance.threshold=7", f"--workdir={tmp_path / 'w'}")
    expected = "error: config.balance.threshold is 7.0; it must be at least 0 and below 1\n"
    assert (refused.returncode, refused.stderr) == (2, expected)
    told = run("--help", "balance.threshold")
    assert told.returncode == 0
    assert told.stdout.startswith("--config.balance.threshold=0.3    (at least 0 and below 1)\n")
    assert not list(tmp_path.iterdir())


def test_the_page_is_up_to_date():
    page = (app.ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == settings_page.page(), "python -m workflow.settings_page > docs/settings.md"


def test_meanings_are_sentences():
    every = [
        *settings.RECIPE.walk(),
        *(row for name in METHODS for row in settings_of(name).walk()),
    ]
    for key, setting in every:
        assert re.fullmatch(r"[A-Z0-9(a-z].*[.)]", setting.meaning), key
        for sentence in re.split(r"(?<=\.)\s", setting.meaning):
            assert len(sentence.split()) <= 25, key


def test_choices_are_what_the_modules_know():
    from data import preprocessing, randaugment
    from data.settings import PREPROCESSING, RANDAUGMENT_MODES, RANDAUGMENT_TABLES
    from meta_pseudo_labels import feedback
    from meta_pseudo_labels.settings import ESTIMATORS, PSEUDO_LABELS

    assert set(RANDAUGMENT_TABLES) == set(randaugment.TABLES)
    assert set(RANDAUGMENT_MODES) == set(randaugment._MODE_OPS)
    fields = {field.name for field in dataclasses.fields(preprocessing.Preprocessing)}
    assert set(PREPROCESSING) == fields
    assert set(ESTIMATORS) == set(feedback.ESTIMATORS)
    assert set(PSEUDO_LABELS) == set(feedback.PSEUDO_LABELS)


def test_help_about_sections():
    declared = settings.of_recipe({})
    text = describe(declared, "train.uda")
    assert (
        text.startswith("Unsupervised Data Augmentation") and "--config.train.uda.weight=8" in text
    )
    for key in ("train.unlabeled_weight", "train.feedback", "student.temperature", "train.online"):
        assert describe(declared, key).startswith(f"--config.{key}=")


FILTERED = "meta_pseudo_labels/imagenet_10pct.py"
"""A recipe with a base that only filters the pseudo-labels."""


@pytest.mark.parametrize(
    ("recipe", "words", "why"),
    [
        (FILTERED, "balance.images_per_class=12800", "config.balance.balance is False"),
        ("noisy_student/digits.py", "teacher.online=True", "config.teacher.method is 'supervised'"),
        (
            "noisy_student/digits.py",
            "student.schedule.decay_rate=0.9",
            "config.student.schedule.name is 'cosine'",
        ),
        (
            "noisy_student/digits.py",
            "student.optimizer.nesterov=True",
            "config.student.optimizer.name is 'rmsprop'",
        ),
        ("noisy_student/digits.py", "student.min_steps=9", "config.student.epochs is None"),
        (
            "noisy_student/digits.py",
            "preprocessing.cutout_const=9",
            "config.preprocessing.randaugment_ops is ('Rot",
        ),
        (
            "noisy_student/imagenet.py:l2_b0",
            "student.preprocessing.randaugment_magnitude=9",
            "student.preprocessing.randaugment_layers is 0",
        ),
        (
            "noisy_student/image_folder.py",
            "teacher.model.width=2",
            "config.init is 'efficientnet-lite0'",
        ),
        (
            "noisy_student/image_folder.py",
            "data.out_of_domain=9",
            "config.data.source is 'image_folder'",
        ),
        (
            "meta_pseudo_labels/digits.py",
            "train.calibrator.hidden=9",
            "config.train.method is 'meta_pseudo_labels'",
        ),
        (
            "meta_pseudo_labels/digits.py",
            "train.baseline_decay=0.9",
            "config.train.feedback is 'soft'",
        ),
        (
            "meta_pseudo_labels/digits.py:reduced",
            "train.uda.weight=9",
            "config.train.method is 'reduced_meta_pseudo",
        ),
        (
            "uda/digits.py",
            "train.uda.weight=0 train.uda.threshold=0.9",
            "config.train.uda.weight is 0.0",
        ),
        (
            "fixmatch/digits.py",
            "train.unlabeled_weight=0 train.threshold=0.9",
            "config.train.unlabeled_weight is 0.0",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(recipe, words, why):
    *others, word = words.split()
    given = [f"--config.{other}" for other in (*others, word)]
    with pytest.raises(InputError) as error:
        parsed(f"--config=configs/{recipe}", *given)
    assert str(error.value).startswith(f"--config.{word} has no effect while ") and why in str(
        error.value
    )


def test_the_same_settings_pass_with_what_they_need():
    both = "balance.images_per_class=12800 balance.balance=True"
    assert (
        parsed(
            f"--config=configs/{FILTERED}", *(f"--config.{word}" for word in both.split())
        ).balance.images_per_class
        == 12800
    )
    parsed(
        DIGITS,
        "--config.student.schedule.name=exponential",
        "--config.student.schedule.decay_rate=0.9",
    )
    parsed(
        "--config=configs/noisy_student/image_folder.py",
        "--config.teacher.model.width=2",
        "--config.init=None",
    )


@pytest.mark.parametrize("name", ["teacher", "train"])
def test_weights_of_a_file_leave_the_network_to_the_recipe(tmp_path, name):
    """The recipe starts from published weights, with their network; the flag takes their place."""
    (tmp_path / "mine.h5").touch()
    method = {"teacher": "noisy_student", "train": "fixmatch"}[name]
    words = [
        *(f"--config=configs/{method}/image_folder.py", f"--config.{name}.model.width=2"),
        "--workdir=w",
    ]
    command = commands.TABLE["noisy_student" if name == "teacher" else "train"]
    assert app.parse(command, [*words, f"--init={tmp_path}/mine.h5"])["config"].init
    for init in (["--init=imagenet"], []):
        with pytest.raises(
            InputError, match=rf"^--config\.{name}\.model\.width=2 has no effect while"
        ):
            app.parse(command, [*words, *init])


def test_a_selection_takes_no_settings_of_balancing():
    command = commands.TABLE["balance"]
    flags = ["--workdir=w", "--data=d", "--predictions=p", "--config.balance.threshold=0.5"]
    assert app.parse(command, [DIGITS, *flags])["config"].balance.threshold == 0.5
    with pytest.raises(
        InputError, match=r"threshold=0\.5 has no effect with --selection=s; leave one of them out$"
    ):
        app.parse(command, [DIGITS, *flags, "--selection=s"])


def test_a_section_that_no_stage_reads_is_refused():
    config = parsed(DIGITS)
    settings.require_read(
        config, {"student.steps": "9", "seed": "1", "data.folds": "1"}, {"student", "balance"}
    )
    with pytest.raises(
        InputError,
        match=(
            r"^--config\.finetune\.epochs has no effect: no stage of this run reads"
            r" config\.finetune; they read st"
        ),
    ):
        settings.require_read(config, {"finetune.epochs": "9"}, {"student"})


def test_a_value_that_each_training_has_of_its_own_is_refused():
    config, given = (
        parsed("--config=configs/noisy_student/imagenet.py:b7"),
        {"preprocessing.image_size": "64"},
    )
    refusal = (
        r"each training of this run has its own value; set"
        r" config\.student\.preprocessing\.image_size, config\.teacher\.p"
    )
    with pytest.raises(InputError, match=refusal):
        settings.require_read(config, given, {"student", "teacher", "balance"})
    settings.require_read(config, given, {"student", "finetune_student"})
