"""A biased teacher: the problem, its known best answer, the teacher's memory, and the command."""

import json

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from scipy import stats

from cli import app, commands
from cli.errors import InputError
from configs.experiments import biased_teacher as recipe
from configs.experiments import two_moons
from experiments import biased_teacher, toy_training

SHORT = [f"--config.methods.{name}.steps=20" for name in recipe.METHODS]


@pytest.fixture(scope="module")
def problem():
    return biased_teacher.BiasedTeacher(range(2), 10, 3.0)


def test_the_best_classifier_takes_the_class_of_the_highest_density(problem):
    """Compares with the densities themselves; the classes are equally frequent."""
    means = tf.transpose(problem.best[0], [0, 2, 1]).numpy()
    np.testing.assert_allclose(np.linalg.norm(means, axis=2), 3.0, rtol=1e-5)
    for seed in range(2):
        x = problem.test[0][seed].numpy()
        densities = [stats.multivariate_normal(mean).logpdf(x) for mean in means[seed]]
        answers = np.argmax(problem.logits(problem.best, problem.test[0])[seed], -1)
        np.testing.assert_array_equal(answers, np.argmax(densities, axis=0))


def test_the_biased_teacher_swaps_two_classes(problem):
    teacher, student = problem.start(bias=True)
    y = np.argmax(problem.test[1], -1)
    swapped = np.argmax(problem.logits(teacher, problem.test[0]), -1)
    best = np.argmax(problem.logits(problem.best, problem.test[0]), -1)
    np.testing.assert_array_equal(swapped, np.array([1, 0, 2, 3])[best])
    assert np.all(np.mean(swapped == y, axis=1) < 0.55)
    assert all(not np.any(v) for v in student)
    assert all(not np.any(v) for v in problem.start(bias=False)[0])


def test_a_memory_fits_the_labeled_points_and_leaves_the_answers_elsewhere(problem):
    method = two_moons.method(steps=300, batch_size=8, learning_rate=0.1)
    answers = {}
    for memory in (0.0, 16.0):
        problem.memory = memory
        teacher, _ = toy_training.train(problem, method, *problem.start(bias=True))
        x, y = problem.labeled
        fitted = np.argmax(problem.labeled_logits(teacher, x), -1) == np.argmax(y, -1)
        assert np.mean(fitted) > 0.95
        answers[memory] = problem.accuracy(teacher)
    assert np.all(answers[16.0] < 55) and np.all(answers[0.0] > 75)


def run(workdir, *overrides):
    config = "--config=configs/experiments/biased_teacher.py"
    flags = [config, "--config.seeds=2", *overrides, f"--workdir={workdir}"]
    biased_teacher.main(**app.parse(commands.TABLE["biased_teacher"], flags))


def test_the_command(tmp_path, capsys):
    claims = "--config.claims=(('mpl, memory 0', 'uda, memory 0', 'feedback beats UDA'),)"
    run(tmp_path / "w", *SHORT, "--config.memories=(0.0,)", claims)
    found = json.loads((tmp_path / "w" / "results.json").read_text())
    names = {"best classifier", *(f"{name}, memory 0" for name in recipe.METHODS)}
    assert set(found["readings"]) == names
    assert [claim["finding"] for claim in found["claims"]] == ["feedback beats UDA"]
    with PIL.Image.open(tmp_path / "w" / "figure.png") as image:
        assert image.size[0] > 1000
    assert "feedback beats UDA" in capsys.readouterr().out
    run(tmp_path / "w", *SHORT, "--config.memories=(0.0,)", claims)
    assert "is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=1", "seeds is 1; it must be at least 2"),
        ("memories=()", "memories is"),
        ("memories=(-1.0,)", "memories is"),
        ("memories=(4.0,)", "claims: there is no condition 'mpl, memory 0'"),
        ("methods.mpl.steps=0", "methods.mpl.steps is 0"),
        ("methods.mpl.teacher=uda", "methods.mpl: teacher and all_labels have no meaning here"),
    ],
)
def test_an_unusable_recipe_is_refused_before_any_training(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "w", f"--config.{override}")
    assert not (tmp_path / "w").exists()
