"""The stage: killed and continued, on two replicas, its model in the next stages, bad input."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from cli import recipes
from cli.errors import InputError
from data import pipeline, prepare, records
from data.preprocessing import Preprocessing
from meta_pseudo_labels.method import META_PSEUDO_LABELS
from tests import networks, training_runs
from tests.training_runs import kill_after, metrics
from training import model_dir
from training.run import Inputs, batches
from workflow import train

STEPS = 24
SMALL = [
    "--config=configs/meta_pseudo_labels/digits.py",
    "--config.data.out_of_domain=20",
    *(f"--config.train.{network}.schedule.warmup_steps=2" for network in ("teacher", "student")),
    *(f"--config.train.{network}.model.name={networks.NAME}" for network in ("teacher", "student")),
    "--config.train.student.schedule.wait_steps=2",
    f"--config.train.steps={STEPS}",
    "--config.train.batch_size=8",
    "--config.train.unlabeled_ratio=2",
    "--config.train.log_every=1",
    "--config.train.feedback=per_example",  # the default has no baseline
    # so large a learning rate multiplies rounding by the weight, step by step
    "--config.train.feedback_weight=0.5",
    "--config.train.checkpoint_every=5",
]


def config(*overrides):
    return recipes.from_flags(*SMALL, *overrides)


def start(workdir, data, *extra):
    return training_runs.start(
        "meta_pseudo_labels", *SMALL, f"--workdir={workdir}", f"--data={data}", *extra
    )


def run(workdir, data, *overrides):
    train.main(
        config(*overrides),
        str(workdir),
        str(data),
        strategy="auto",
        cpu_devices=1,
        tpu="",
        profile_steps=None,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("mpl") / "data"
    prepare.main(config(), str(directory))
    return directory


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "student"
    run(workdir, data)  # in this process, which has TensorFlow; the killed one is a command
    return workdir


def test_sigkill_and_the_same_command_again_end_bit_identical(data, uninterrupted, tmp_path):
    """Covers two networks, two optimizers, the average and the baseline.

    The losses of every later step tell if one is missing.
    """
    workdir = tmp_path / "student"
    kill_after(12, start(workdir, data), workdir)
    again = start(workdir, data)
    output, _ = again.communicate()
    assert again.returncode == 0
    assert "continuing at step" in output
    expected, actual = (model_dir.load(path)[0].get_weights() for path in (uninterrupted, workdir))
    for a, b in zip(expected, actual):
        np.testing.assert_array_equal(a, b)
    names = ("loss", "teacher_loss", "uda_loss", "feedback", "agreement")
    assert [[row[name] for name in names] for row in metrics(workdir)] == [
        [row[name] for name in names] for row in metrics(uninterrupted)
    ]
    assert sum(row["feedback"] != 0 for row in metrics(workdir)) > STEPS // 2
    second = metrics(workdir)[1]
    assert second["learning_rate"] == 0 < second["teacher_learning_rate"]  # the student waits


def test_two_replicas_follow_one(data, uninterrupted, tmp_path):
    """Covers the same global batch, synchronized BatchNorm, all noise and all draws.

    They belong to the example, not to the replica.
    """
    process = start(tmp_path / "student", data, "--strategy=mirrored", "--cpu_devices=2")
    process.communicate()
    assert process.returncode == 0
    one, two = metrics(uninterrupted)[:6], metrics(tmp_path / "student")[:6]
    for name in ("loss", "teacher_loss", "labeled_loss", "uda_loss"):
        np.testing.assert_allclose(
            [row[name] for row in two], [row[name] for row in one], rtol=1e-3
        )
    np.testing.assert_allclose(
        [row["feedback"] for row in two], [row["feedback"] for row in one], rtol=0.02, atol=1e-6
    )


def test_fine_tuning_takes_the_student(data, uninterrupted, tmp_path):
    still = config(
        "--config.finetune.steps=1",
        "--config.finetune.schedule.base=0.0",
        "--config.finetune.batch_size=8",
    )
    options = {
        "section": "finetune",
        "iteration": 0,
        "pseudo_labeled": None,
        "teacher": None,
        "init": str(uninterrupted),
    }
    where = {"strategy": "auto", "cpu_devices": 1, "tpu": "", "profile_steps": None}
    train.main(still, workdir=str(tmp_path / "w"), data=str(data), **options, **where)
    before, after = (model_dir.load(path)[0] for path in (uninterrupted, tmp_path / "w"))
    for a, b in zip(before.trainable_variables, after.trainable_variables):
        np.testing.assert_array_equal(a, b)


def test_labeled_images_are_weakly_and_unlabeled_ones_also_strongly_augmented(data):
    labeled, unlabeled = (records.read_manifest(data / name) for name in ("labeled", "unlabeled"))
    noisy = Preprocessing(
        16,
        pad=2,
        randaugment_layers=2,
        randaugment_magnitude=9.0,
        randaugment_ops=("Rotate",),
        randaugment_mode="monotone",
    )
    section, inputs = (
        ConfigDict({"batch_size": 4, "unlabeled_ratio": 2}),
        Inputs(data, labeled, unlabeled),
    )
    ((x, y), (weak, strong)) = next(
        iter(batches(META_PSEUDO_LABELS, section, noisy, inputs, 3, 0, (1, 0), 1))
    )
    (expected, _) = next(iter(pipeline.train_batches(labeled, noisy.weak(), batch_size=4, seed=3)))
    np.testing.assert_array_equal(x, expected)
    assert (x.shape[0], y.shape[0], weak.shape[0]) == (4, 4, 8)
    assert np.abs(strong - weak).max() > 50


def test_a_finished_run_says_so(data, uninterrupted, capsys):
    run(uninterrupted, data)
    assert f"is done: {STEPS} steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unlabeled_ratio=0", "unlabeled_ratio is 0"),
        ("pseudo_labels=drawn", "pseudo_labels is 'drawn'; it can be sampled, argmax or soft"),
        ("feedback=taylor", "feedback is 'taylor'; it can be "),
        (
            "student.optimizer.name=adam",
            "'per_example' needs .*a step of adam is not. Use feedback 'finite_difference' or"
            " 'cosine'",
        ),
        ("uda.temperature=0.0", r"uda\.temperature is 0\.0"),
        ("calibrator.hidden=-1", r"calibrator\.hidden is -1; it must be at least 1"),
        ("baseline_decay=2.0", r"baseline_decay is 2\.0"),
        ("accumulation=3", r"train\.batch_size=8 does not divide by train\.accumulation=3"),
        (
            "teacher.schedule.warmup_steps=-1",
            r"teacher\.schedule\.warmup_steps is -1; it must be at least 0",
        ),
        (
            "student.schedule.wait_steps=30",
            r"student.schedule: wait and warm-up take 32 steps of 24",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(data, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "w", data, f"--config.train.{override}")
    assert not (tmp_path / "w").exists()


def test_missing_data(tmp_path):
    with pytest.raises(InputError, match=r"run_prepare_data.sh"):
        run(tmp_path / "w", tmp_path / "nothing")
