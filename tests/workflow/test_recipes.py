"""Every recipe, at any size: it resolves, tells its plan, and takes a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli import recipes
from cli.errors import InputError
from cli.json_files import read_json, write_json
from data import prepare
from efficientnet import architectures
from tests.data.recipes import save
from training import estimates
from workflow import balance, loop, plans, pseudo_label, train

RECIPES = [
    "image_folder.py",
    "image_folder.py:b0",
    "image_folder.py:small",
    "image_folder.py:lite0",
    "digits.py",
    "svhn.py",
    "cifar10.py",
    *(
        f"imagenet.py:{name}"
        for name in ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2", "v1", "l2_b0")
    ),
    *(f"imagenet.py:{name}" for name in ("b0_release", "b1_release", "resnet50")),
]


def recipe(name: str, *overrides: str):
    return recipes.from_flags(f"--config=configs/noisy_student/{name}", *overrides)


def trainings(config):
    stages = loop.plan(config, Path("w"), {}, "auto")
    return [
        stage
        for stage in stages
        if stage.script in ("run_teacher.sh", "run_student.sh", "run_finetune.sh")
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_tells_the_plan(name, tmp_path):
    expected = [
        "--config.expected.labeled=1000",
        "--config.expected.unlabeled=5000",
        "--config.expected.classes=7",
    ]
    config = recipe(name, *(expected if name.startswith("image_folder.py") else ()))
    text = plans.describe(config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto"))
    assert text.count("learning rate:") == len(trainings(config))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_is_missing(tmp_path):
    config = recipe("imagenet.py:b0")
    (tmp_path / "pool.tar").touch()
    assert estimates.missing(config, {}, tmp_path / "data") == [
        "--labeled is not given",
        "--unlabeled is not given",
    ]
    folders = {"labeled": str(tmp_path / "imagenet"), "unlabeled": f"tar:{tmp_path}/*.tar"}
    assert estimates.missing(config, folders, tmp_path / "data") == [
        f"--labeled: there is no {tmp_path / 'imagenet'}"
    ]
    assert estimates.missing(recipe("digits.py"), {}, tmp_path / "data") == []


def test_the_paper_s_numbers_of_l2(tmp_path):
    """Section 3.1: 350 epochs of 1,281,167 images in batches of 2,048, and 480 million parameters.

    The learning rate is 0.128, the ratios are 14, 14 and 28.
    """
    config = recipe("imagenet.py:l2")
    sections = [stage.arguments.get("section", "teacher") for stage in trainings(config)]
    assert sections == ["selector", "teacher", "student_1", "student_2", "student", "finetune"]
    text = plans.describe(config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto"))
    assert (
        text.count("parameters (480,309,308 trained), 475 px") == 3
        and text.count("parameters (478,430,546 trained), 800 px") == 1
    )
    assert text.count("218,950 steps of 2,048 + 28,672 images (350.0 labeled epochs)") == 2
    assert text.count("218,950 steps of 2,048 + 57,344 images") == 1
    assert (
        text.count(
            "8.9 GiB for weights, average, slots and gradients on each replica; 116,171.4 GiB for"
            " activations"
        )
        == 2
    )
    config = recipe("imagenet.py:l2", "--config.student_1.rematerialize=True")
    assert " 11,472.0 GiB for activations" in plans.describe(
        config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto")
    )
    teacher = text[text.index("teacher: b7") :]
    step, rate = re.search(r"0 at 0, (\S+) at ([\d,]+)", teacher).group(2, 1)
    step = int(step.replace(",", ""))
    assert step > 5 * 1_281_167 / 2048  # after the warm-up
    assert float(rate) == pytest.approx(
        0.128 * 0.97 ** (step // (2.4 * 1_281_167 / 2048)), rel=2e-3
    )


@pytest.mark.parametrize("name", ["l2", "v1"])
def test_fixres_fixes_the_first_two_stages_and_sees_unaugmented_images(name):
    tuned, served = recipe(f"imagenet.py:{name}").finetune, architectures.ARCHITECTURES["l2"]
    stages = [block.name[:6] for block in architectures.blocks(served.width, served.depth)]
    assert (
        set(stages[: tuned.frozen_blocks]) == {"block1", "block2"}
        and stages[tuned.frozen_blocks] == "block3"
    )
    assert (
        not tuned.labeled_augmentation
        and tuned.preprocessing.image_size == 800
        and tuned.precision == "mixed_bfloat16"
    )
    assert recipe(f"imagenet.py:{name}", "--config.smoke=True").finetune.frozen_blocks == 1


def test_the_chain_of_the_first_version_grows():
    config = recipe("imagenet.py:v1")
    sections = [stage.arguments.get("section", "teacher") for stage in trainings(config)[:-1]]
    names = [
        config[section].model.name for section in sections if not section.startswith("finetune")
    ]
    assert names == ["b0", "b7", "b7", "l0", "l1", "l2", "l2"]  # the first one selects the images


def test_a_student_of_the_first_version_s_chain_labels_as_it_was_fine_tuned():
    """Tests Section 3.1 and Table 7: L0 and L1 at 600 pixels, L2 at 800.

    The stem and the first two stages are frozen.
    """
    config = recipe("imagenet.py:v1")
    stages = loop.plan(config, Path("w"), {}, "auto")
    directories = {stage.name: stage.directory for stage in stages}
    for i, (name, pixels) in enumerate((("l0", 600), ("l1", 600), ("l2", 800)), 2):
        (tuned,) = [stage for stage in stages if stage.name == f"student_{i}"]
        assert (
            tuned.script == "run_finetune.sh"
            and tuned.arguments["init"] == directories[f"pretrain_{i}"]
        )
        section = config[tuned.arguments["section"]]
        assert (
            section.preprocessing.image_size == pixels
            and section.epochs == 1.5
            and not section.labeled_augmentation
        )
        width, depth = (
            architectures.ARCHITECTURES[name].width,
            architectures.ARCHITECTURES[name].depth,
        )
        frozen = {
            block.name[:6] for block in architectures.blocks(width, depth)[: section.frozen_blocks]
        }
        assert frozen == {"block1", "block2"}
        assert architectures.blocks(width, depth)[section.frozen_blocks].name.startswith("block3")
        (labels,) = [stage for stage in stages if stage.name == f"pseudo_label_{i + 1}"]
        assert labels.arguments["teacher"] == tuned.directory
    assert not {"pretrain_1", "pretrain_5"} & directories.keys()


def test_a_smoke_run_cuts_every_fine_tuning():
    config = recipe("imagenet.py:v1", "--config.smoke=True")
    assert [config[f"finetune_{i}"].frozen_blocks for i in (2, 3, 4)] == [1, 1, 1]
    loop.check_loop(config)


@pytest.mark.parametrize("name", ["b0", "b1"])
def test_the_smallest_networks_have_randaugment_but_for_the_release(name):
    paper, release = recipe(f"imagenet.py:{name}"), recipe(f"imagenet.py:{name}_release")
    for section in ("teacher", "student"):
        assert paper[section].preprocessing.randaugment_layers == 2
        assert release[section].preprocessing.randaugment_layers == 0
    with release.unlocked():
        for section in ("teacher", "student"):
            release[section].preprocessing.randaugment_layers = 2
    assert release.to_dict() == paper.to_dict()


def test_the_size_of_a_person_s_images_is_told_once_the_data_are_there(tmp_path):
    config = recipe(
        "image_folder.py:b0",
        "--config.expected.labeled=90",
        "--config.expected.unlabeled=500",
        "--config.expected.classes=3",
    )
    text = plans.describe(config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto"))
    assert "as many pixels as the data will suggest" in text and "px" not in text
    splits = {"labeled": {"images": 90}, "unlabeled": {"images": 500}}
    summary = {
        "splits": splits,
        "label_names": ["a", "b", "c"],
        "median_height": 100.0,
        "median_width": 150.0,
    }
    write_json(tmp_path / "data" / "summary.json", summary)
    assert "96 px" in plans.describe(config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto"))


def test_a_dry_run_on_folders_counts_their_images_and_writes_nothing(tmp_path):
    for folder, first, count in (("labeled/cat", 10, 10), ("labeled/dog", 30, 10), ("all", 50, 6)):
        for i in range(count):
            save(tmp_path / "photos" / folder / f"{i}.png", first + i, (40, 70))
    folders = {
        "labeled": str(tmp_path / "photos" / "labeled"),
        "unlabeled": str(tmp_path / "photos" / "all"),
    }
    config, workdir = recipe("image_folder.py:b0"), tmp_path / "run"
    text = plans.describe(config, workdir, folders, loop.plan(config, workdir, folders, "auto"))
    assert text.startswith(
        "16 labeled and 6 unlabeled images, 2 classes\nheld out: 4 test images\n"
    )
    assert (
        "median size of the labeled images: 70 x 40 pixels" in text and "missing: nothing" in text
    )
    assert text.count("32 px") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    # The recipe's expected numbers count only where the folders are not there.
    expected = [
        f"--config.expected.{key}={count}"
        for key, count in (("labeled", 1000), ("unlabeled", 5000), ("classes", 7))
    ]
    config = recipe("image_folder.py:b0", *expected)
    assert plans.describe(
        config, workdir, folders, loop.plan(config, workdir, folders, "auto")
    ).startswith("16 labeled")
    away = {**folders, "unlabeled": str(tmp_path / "away")}
    text = plans.describe(config, workdir, away, loop.plan(config, workdir, away, "auto"))
    assert (
        text.startswith("1,000 labeled and 5,000")
        and f"missing: --unlabeled: there is no {tmp_path / 'away'}" in text
    )
    with pytest.raises(InputError, match=f"--unlabeled: there is no folder {tmp_path / 'away'}"):
        plans.describe(recipe("image_folder.py:b0"), workdir, away, [])


def test_a_small_student_is_the_last_one_of_a_large_teacher():
    """Tests the first version, A.4: an L2 of three iterations teaches the student.

    The student's training has no RandAugment and no FixRes.
    """
    config = recipe("imagenet.py:l2_b3")
    sections = [stage.arguments.get("section", "teacher") for stage in trainings(config)]
    assert [config[section].model.name for section in sections] == [
        "b0",
        "b7",
        "l2",
        "l2",
        "l2",
        "b3",
    ]
    assert (
        config[sections[-1]].preprocessing.randaugment_layers == 0
        and config[sections[-2]].preprocessing.randaugment_layers == 2
    )


@pytest.mark.parametrize("name", ["imagenet.py:b9", "imagenet.py:l0", "image_folder.py:l2"])
def test_a_recipe_that_is_not_there(name):
    with pytest.raises(InputError, match=r"the variants are .*b0, b1"):
        recipe(name)


@pytest.mark.parametrize(
    ("overrides", "expected"), [((), "582.5"), (("--config.pseudo_label.top_k=5",), "36.6")]
)
def test_bytes_of_stored_predictions(tmp_path, overrides, expected):
    """300 million of 2,085 B, or of 131 B (docs/scaling.md)."""
    config = recipe("imagenet.py:b0", *overrides)
    assert f"and as many of predictions ({expected} GiB an iteration)" in plans.describe(
        config, tmp_path, {}, loop.plan(config, tmp_path, {}, "auto")
    )


def test_b0_selects_130_million_images_once_and_every_later_teacher_labels_those(tmp_path):
    """Section 3.1. Predictions of 300 million images, and of at most 130 million: 2,085 B each."""
    config = recipe("imagenet.py:l2")
    loop.check_loop(config)
    plan = loop.plan(config, tmp_path, {}, "auto")
    text = plans.describe(config, tmp_path, {}, plan)
    assert "selector: b0, 5,330,564 parameters" in text
    assert (
        "selection: once, by selector among 300,000,000 unlabeled images; 3 of 4 labelings label"
        " only the at most 130,000,000 selected images" in text
    )
    assert "predictions (582.5 GiB for the selection, then 252.4 GiB)" in text
    write_json(tmp_path / "pseudo_labeled_0" / "summary.json", {"num_unique": 81_000_000})
    assert "3 of 4 labelings label only the 81,000,000 selected images" in plans.describe(
        config, tmp_path, {}, plan
    )
    assert "selector" not in recipe("imagenet.py:b0")  # its teacher is the B0


def test_a_smoke_run_needs_no_published_weights():
    config = recipe("image_folder.py:lite0", "--config.smoke=True")
    assert recipe("image_folder.py:lite0").init == "efficientnet-lite0" and config.init is None
    loop.check_loop(config)  # refuses frozen blocks of random weights


def step(config, section, run, data, pseudo_labeled=None):
    given = {"pseudo_labeled": str(pseudo_labeled)} if pseudo_labeled else {}
    train.main(config, str(run), str(data), section, strategy="one_device", **given)
    return read_json(run / "summary.json")["images_seen"]


def test_a_smoke_run_takes_a_step(tmp_path):
    config = recipe("imagenet.py:l2", "--config.smoke=True", "--config.student_1.method=supervised")
    prepare.main(config, str(tmp_path / "data"))
    assert step(config, "student_1", tmp_path / "run", tmp_path / "data") == 4


def test_a_supervised_step_sees_labeled_images_alone(tmp_path):
    """Tests training on all labels (Pham et al. 2021, Table 2).

    With uda at weight 0, a step would see 15 images for one that counts.
    """
    config = recipes.from_flags(
        "--config=configs/supervised/cifar10.py",
        "--config.smoke=True",
        "--config.data.labeled_as_unlabeled=rest",
    )
    assert (
        recipes.from_flags(
            "--config=configs/supervised/cifar10.py"
        ).preprocessing.randaugment_layers
        == 2
    )
    prepare.main(config, str(tmp_path / "data"))
    assert step(config, "train", tmp_path / "run", tmp_path / "data") == 4


def test_a_smoke_run_labels_and_balances(tmp_path):
    config = recipe("svhn.py", "--config.smoke=True")
    data, teacher, predictions, balanced = (
        tmp_path / name for name in ("data", "teacher", "predictions", "pseudo_labeled")
    )
    prepare.main(config, str(data))
    assert step(config, "teacher", teacher, data) == 4
    pseudo_label.main(config, str(predictions), str(data), str(teacher))
    balance.main(config, str(balanced), str(data), str(predictions))
    assert step(config, "student", tmp_path / "student", data, balanced) == 4 + 2 * 4
