"""Every recipe of Meta Pseudo Labels: it tells its plan, and its small networks take a step."""

from __future__ import annotations

import pytest

from cli import app, commands, recipes
from cli.errors import InputError
from data import prepare
from meta_pseudo_labels.method import META_PSEUDO_LABELS
from training import resolve
from workflow import train

RECIPES = [
    "digits.py",
    "digits.py:reduced",
    "image_folder.py",
    "cifar10_4k.py",
    "cifar10_4k.py:release",
    "svhn_1k.py",
    "imagenet_10pct.py",
    "imagenet_jft.py:resnet50",
    "imagenet_jft.py:l2",
    "imagenet_jft.py:b6_wide",
]


def recipe(name: str, *overrides: str):
    return recipes.from_flags(f"--config=configs/meta_pseudo_labels/{name}", *overrides)


def resolved(config):
    return resolve.section(config.train.to_dict(), labeled_examples=1000, unlabeled=True)


def describe(config, data):
    return train.describe(config, "train", data, {"pseudo_labeled": None, "teacher": None})


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_tells_the_plan(name, tmp_path):
    expected = [
        "--config.expected.labeled=1000",
        "--config.expected.unlabeled=5000",
        "--config.expected.classes=7",
    ]
    text = describe(
        recipe(name, *(expected if name == "image_folder.py" else ())), tmp_path / "data"
    )
    assert text.count("learning rate:") == (1 if name == "digits.py:reduced" else 2)
    assert "missing: " in text and not list(tmp_path.iterdir())


def test_the_paper_s_numbers(tmp_path):
    """Tests Section 3.2: 4,000 labeled and 41,000 other images, a network of 1.45M parameters.

    Section 4: batches of 2,048 and 16,384.
    """
    text = describe(recipe("cifar10_4k.py"), tmp_path)
    assert "4,000 labeled and 41,000 unlabeled images" in text
    assert text.count("parameters (1,467,610 trained), 32 px") == 2
    assert (
        text.count("0.0489 at 33,333") == 1
    )  # the teacher's, on the way down from 0.05: 0.1 per 256 images, at 128
    text = describe(recipe("imagenet_jft.py:l2"), tmp_path)
    less = describe(recipe("imagenet_jft.py:l2", "--config.train.rematerialize=True"), tmp_path)
    approximation = ("--config.train.feedback=soft", "--config.train.approximate_feedback=True")
    soft = describe(
        recipe("imagenet_jft.py:l2", "--config.train.rematerialize=True", *approximation), tmp_path
    )
    for described, teacher, student in (
        (text, "150,996.1", "79,939.1"),
        (less, "15,007.5", "7,945.2"),
        (soft, "15,007.5", "7,945.2"),
    ):
        assert [f"{size} GiB for activations" in described for size in (teacher, student)] == [
            True,
            True,
        ]
    assert (
        text.count("parameters (480,309,308 trained), 512 px") == 2
        and text.count("1,000,000 steps of 2,048 + 16,384 images") == 2
    )


@pytest.mark.parametrize("name", ["l2", "b6_wide"])
def test_the_large_networks_have_noisy_student_s_hyper_parameters(name):
    """Section 4: all of them but the resolution."""
    config, other = (
        recipe(f"imagenet_jft.py:{name}"),
        recipes.from_flags("--config=configs/noisy_student/imagenet.py:l2"),
    )
    student = other.student
    for network in (config.train.teacher, config.train.student):
        assert network.optimizer.to_dict() == student.optimizer.to_dict()
        assert network.schedule.base == student.schedule.base
        assert network.schedule.warmup_steps == int(
            student.schedule.warmup_epochs * 1_281_167 / 2048
        )
        assert network.model.get("dropout") is None and network.model.batch_norm_momentum == 0.99
    for key in ("batch_size", "label_smoothing", "weight_decay", "ema_decay", "precision"):
        assert config.train[key] == student[key], key
    for key in ("randaugment_layers", "randaugment_magnitude"):
        assert config.preprocessing[key] == student.preprocessing[key]
    for key in (
        "randaugment_table",
        "randaugment_mode",
        "translate_const",
        "cutout_const",
        "style",
        "flip",
        "mean",
        "std",
    ):
        assert config.preprocessing[key] == other.preprocessing[key], key


def test_a_dry_run_names_the_command_that_makes_the_data(tmp_path):
    """Tests that the flags that it names are those of the command, which takes them."""
    config = recipe("imagenet_jft.py:l2")
    missing = describe(config, tmp_path / "data").rpartition("missing: ")[2]
    made_by = (
        "./run_prepare_data.sh with the same --config, --labeled=LOCATION --unlabeled=LOCATION"
        f" --workdir={tmp_path / 'data'}"
    )
    assert missing == f"--data: {tmp_path / 'data'} is not prepared; make it by {made_by}"
    words = ["--config=configs/meta_pseudo_labels/imagenet_jft.py:l2", *made_by.split()[-3:]]
    assert app.parse(commands.TABLE["prepare_data"], words)["unlabeled"] == "LOCATION"
    assert (
        "--labeled"
        not in describe(recipe("digits.py"), tmp_path / "data").rpartition("missing: ")[2]
    )


FEEDBACK = {
    "digits.py": "soft",
    "image_folder.py": "soft",
    "cifar10_4k.py:release": "finite_difference",
}


@pytest.mark.parametrize(
    "name", [*RECIPES, "imagenet_10pct.py:release", "image_folder.py:resnet50"]
)
def test_the_paper_s_experiments_have_the_paper_s_feedback(name):
    """Drawn labels and the cosine minus its average (Appendix C.3).

    Digits and folders have what a study is for.
    """
    train = recipe(name).train
    expected = FEEDBACK.get(name) or FEEDBACK.get(name.partition(":")[0], "cosine")
    assert (train.feedback, train.pseudo_labels, train.baseline_decay) == (
        expected,
        "sampled",
        0.99,
    )


@pytest.mark.parametrize(
    ("name", "batch", "whole", "eighth"),
    [
        ("cifar10_4k.py", 16, "300,000 steps of 128 + 896", "2,400,000 steps of 16 + 112"),
        (
            "imagenet_10pct.py",
            128,
            "700,000 steps of 1,024 + 15,360",
            "5,600,000 steps of 128 + 1,920",
        ),
        (
            "imagenet_jft.py:l2",
            256,
            "1,000,000 steps of 2,048 + 16,384",
            "8,000,000 steps of 256 + 2,048",
        ),
    ],
)
def test_an_eighth_of_the_batch_takes_eight_times_the_steps(name, batch, whole, eighth, tmp_path):
    """As many epochs, and a schedule of the same shape: warm-up, wait and ramp follow, too."""
    flag = f"--config.train.batch_size={batch}"
    plans = [describe(recipe(name, *flags), tmp_path) for flags in ((), (flag,))]
    for plan, steps in zip(plans, (whole, eighth)):
        assert plan.count(f"  {steps} images") == 2
    epochs = [
        {line.partition("images ")[2] for line in plan.splitlines() if " steps of " in line}
        for plan in plans
    ]
    assert epochs[0] == epochs[1] and len(epochs[0]) == 1
    first, second = (resolved(recipe(name, *flags)) for flags in ((), (flag,)))
    for of in (lambda s: s["student"]["schedule"]["wait_steps"], lambda s: s["uda"]["ramp_steps"]):
        assert of(second) == 8 * of(first) > 0
    assert "(steps_for_batch)" in plans[1] and "(steps_for_batch)" not in plans[0]


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_4k.py:paper2",
        "imagenet_jft.py:l1",
        "imagenet_10pct.py:paper2",
        "svhn_1k.py:release",
    ],
)
def test_a_recipe_that_is_not_there(name):
    with pytest.raises(InputError, match=r"the variants are|the release has no command for SVHN"):
        recipe(name)


def test_the_release_has_one_command_for_a_tenth_of_imagenet():
    assert recipe("imagenet_10pct.py:release").to_dict() == recipe("imagenet_10pct.py").to_dict()


@pytest.mark.parametrize("name", ["cifar10_4k.py:release", "digits.py", "image_folder.py:wrn_28_2"])
def test_a_smoke_run_takes_a_step(name, tmp_path):
    config = recipe(name, "--config.smoke=True", "--config.data.labeled_as_unlabeled=rest")
    prepare.main(config, str(tmp_path / "data"))
    flags = {"strategy": "one_device", "cpu_devices": 1, "tpu": "", "profile_steps": None}
    train.main(config, str(tmp_path / "run"), str(tmp_path / "data"), **flags)
    assert (tmp_path / "run" / "summary.json").exists()


LARS = "--config.train.student.optimizer.name=lars"


@pytest.mark.parametrize("name", [*RECIPES, "imagenet_10pct.py:release"])
def test_an_approximation_is_taken_where_it_is_asked_for(name):
    """No recipe takes one by itself.

    The paper's and the release's feedback need no factor of the optimizer.
    """
    soft = "--config.train.feedback=soft"
    with pytest.raises(
        InputError, match=r"a step of lars is not\. Use feedback 'finite_difference' or 'cosine'"
    ):
        META_PSEUDO_LABELS.check(resolved(recipe(name, LARS, soft)))
    section = resolved(recipe(name, LARS, soft, "--config.train.approximate_feedback=True"))
    assert "'soft' is an approximation under lars" in META_PSEUDO_LABELS.check(section)
    assert [
        META_PSEUDO_LABELS.check({**section, "feedback": other})
        for other in ("finite_difference", "cosine", "none")
    ] == [None] * 3
    assert META_PSEUDO_LABELS.check(resolved(recipe(name))) is None


def test_a_dry_run_tells_of_an_approximation_or_refuses_it(tmp_path):
    soft = ("--config.train.feedback=soft", "--config.train.approximate_feedback=True")
    text = describe(recipe("cifar10_4k.py", LARS, *soft), tmp_path)
    assert (
        text.count("warning: feedback 'soft' is an approximation under lars")
        == text.count("LARS 0.07 to 0.89")
        == 1
    )
    with pytest.raises(InputError, match="a step of lars is not"):
        describe(recipe("digits.py:reduced", LARS), tmp_path)
