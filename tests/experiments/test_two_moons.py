"""TwoMoon: seeds that do not see each other, the step's gradients, and the command."""

import json

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli import app, commands, recipes
from cli.errors import InputError
from configs.experiments import two_moons as recipe
from experiments import toy_training, two_moons


@pytest.fixture(scope="module")
def moons():
    return two_moons.Moons(0, 3, 0.05)


def test_the_data(moons):
    assert moons.x.shape == (3, 2000, 2)
    assert np.abs(np.mean(moons.x, 1)).max() < 0.1
    for x, y, x_l, y_l in zip(
        moons.x.numpy(), moons.y.numpy(), *(v.numpy() for v in moons.labeled)
    ):
        assert y.sum(0).tolist() == [1000, 1000]
        assert y_l.sum(0).tolist() == [3, 3]
        for point, label in zip(x_l, y_l):
            assert (y[(x == point).all(1)] == label).all()
        upper = x[y[:, 0] == 1] + [0.5, 0.25]
        assert np.abs(np.hypot(*upper.T) - 1).mean() < 0.06  # on the circle, but for the noise


def networks(seeds, scale=0.5):
    return [two_moons.initialize(i, seeds, scale) for i in (0, 1)]


@pytest.mark.parametrize(
    "settings",
    [
        {"feedback": 2.0, "consistency": 1.0},
        {"feedback": 1.0, "pseudo_labels": "soft", "supervised": 0.0},
        {"feedback": 1.0, "estimator": "cosine"},
    ],
)
def test_a_seed_is_not_changed_by_the_others(moons, settings):
    """Checks that each seed follows the derivative of its own loss.

    So other data for another seed leave it alone.
    """
    method = recipe.method(**settings)
    changed = two_moons.Moons(0, 3, 0.05)
    keep = tf.constant([True, False, True])[:, None, None]
    changed.x = tf.where(keep, moons.x, -moons.x)
    changed.labeled = (tf.where(keep, moons.labeled[0], -moons.labeled[0]), moons.labeled[1])
    results = [toy_training.step(*networks(3), tf.constant(5), m, method) for m in (moons, changed)]
    for before, one, other in zip(
        [v for n in networks(3) for v in n], *[[v for n in r for v in n] for r in results]
    ):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[2], other[2])
        assert np.abs(one[0] - before[0]).max() > 0
    assert any((a[1].numpy() != b[1].numpy()).any() for a, b in zip(*[r[0] for r in results]))


def test_the_soft_feedback_is_the_gradient_through_the_students_step(moons):
    method = recipe.method(feedback=1.0, supervised=0.0, pseudo_labels="soft", learning_rate=1.0)
    teacher, student = networks(3)
    rows = tf.random.stateless_uniform([3, method.batch_size], [5, 0], 0, 2000, tf.int32)
    x_u, (x_l, y_l) = tf.gather(moons.x, rows, batch_dims=1), moons.labeled
    with tf.GradientTape() as outer:
        outer.watch(teacher)
        q = tf.nn.softmax(moons.logits(teacher, x_u))
        with tf.GradientTape() as inner:
            inner.watch(student)
            loss = toy_training.cross_entropy(q, moons.logits(student, x_u))
        moved = toy_training.descend(student, inner.gradient(loss, student), 1.0)
        loss = toy_training.cross_entropy(y_l, moons.logits(moved, x_l))
    expected = toy_training.descend(teacher, outer.gradient(loss, teacher), 1.0)
    actual, _ = toy_training.step(teacher, student, tf.constant(5), moons, method)
    for a, b, start in zip(actual, expected, teacher):
        np.testing.assert_allclose(a - start, b - start, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("estimator", ["dot_product", "cosine"])
def test_the_scalar_feedback_of_each_seed(moons, estimator):
    """h of a seed comes from its own two gradients.

    The teacher follows h ∇CE, that of eq. 12 summed over the batch.
    """
    method = recipe.method(feedback=1.0, supervised=0.0, estimator=estimator, learning_rate=0.5)
    teacher, student = networks(3)
    rows = tf.random.stateless_uniform([3, method.batch_size], [5, 0], 0, 2000, tf.int32)
    x_u, (x_l, y_l) = tf.gather(moons.x, rows, batch_dims=1), moons.labeled
    z_u = moons.logits(teacher, x_u)
    uniform = tf.random.stateless_uniform(tf.shape(z_u), [5, 1])
    pseudo = tf.one_hot(tf.argmax(z_u - tf.math.log(-tf.math.log(uniform)), -1), 2)
    actual, _ = toy_training.step(teacher, student, tf.constant(5), moons, method)
    for s in range(3):
        own, pupil = [v[s : s + 1] for v in teacher], [v[s : s + 1] for v in student]

        def gradient(network, x, y, s=s):
            with tf.GradientTape() as tape:
                tape.watch(network)
                z = moons.logits(network, x[s : s + 1])[0]
                loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y[s], z))
            return tape.gradient(loss, network)

        flat = lambda parts: np.concatenate([np.ravel(p) for p in parts])  # noqa: E731
        unlabeled = gradient(pupil, x_u, pseudo)
        labeled = gradient([v - 0.5 * g for v, g in zip(pupil, unlabeled)], x_l, y_l)
        a, b = flat(labeled), flat(unlabeled)
        h = {
            "dot_product": 0.5 * method.batch_size * (a @ b),
            "cosine": a @ b / np.linalg.norm(a) / np.linalg.norm(b),
        }[estimator]
        assert abs(h) > 1e-3
        expected = 0.5 * h * flat(gradient(own, x_u, pseudo))
        np.testing.assert_allclose(
            flat(own) - flat(v[s] for v in actual), expected, rtol=1e-2, atol=1e-6
        )


def test_a_schedule_ends_at_zero(moons):
    method = recipe.method(steps=100, schedule="cosine")
    teacher, student = networks(3)
    moves = []
    for number in (0, 50, 100):
        changed, _ = toy_training.step(teacher, student, tf.constant(number), moons, method)
        moves.append(np.concatenate([np.ravel(a - b) for a, b in zip(changed, teacher)]))
    assert np.linalg.norm(moves[2]) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(
        moves[1], 0.5 * moves[0], rtol=1e-3, atol=1e-6
    )  # the labeled points are the same in every step


def test_a_fixed_teacher_stays_and_its_student_follows(moons):
    method = recipe.method(supervised=0.0, pseudo_labels="argmax")
    teacher, student = networks(3)
    same, moved = toy_training.step(teacher, student, tf.constant(0), moons, method)
    for a, b in zip(same, teacher):
        np.testing.assert_array_equal(a, b)
    assert any((a.numpy() != b.numpy()).any() for a, b in zip(moved, student))


def run(workdir, *overrides):
    arguments = [
        "two_moons",
        "--config=configs/experiments/two_moons.py",
        "--config.seeds=3",
        *overrides,
    ]
    two_moons.main(
        **app.parse(commands.TABLE["two_moons"], [*arguments[1:], f"--workdir={workdir}"])
    )


def test_the_command(tmp_path, capsys):
    names = ["supervised", "pseudo_labels", "all_labels", "uda", "meta_pseudo_labels_with_uda"]
    small = [
        f"--config.methods.{name}.steps={3000 if name == 'all_labels' else 20}" for name in names
    ]
    run(tmp_path / "w", *small)
    results = json.loads((tmp_path / "w" / "results.json").read_text())["methods"]
    assert list(results) == names
    assert min(results["all_labels"]["accuracy"]) > 0.8
    assert results["supervised"]["median_accuracy"] < 0.8
    with PIL.Image.open(tmp_path / "w" / "figure.png") as image:
        assert image.size[0] > 1000
    printed = capsys.readouterr().out
    run(tmp_path / "w", *small)
    assert "is done" in capsys.readouterr().out
    assert "all_labels" in printed


def test_two_methods_on_the_same_seeds():
    """Computes McNemar's exact p of 5 against 1 by hand: 2 (C(6, 0) + C(6, 1)) / 2^6."""
    rows = {
        "a": {"accuracy": [1.0] * 5 + [0.5, 1.0, 0.5]},
        "b": {"accuracy": [0.5] * 5 + [1.0, 0.99, 0.5]},
    }
    assert (
        two_moons.against(rows, "a", "b", 0.99)
        == "a against b: 5 seeds only with the first, 1 only with the second, p = 0.22"
    )
    assert two_moons.against(rows, "a", "a", 0.99).endswith("p = 1")


@pytest.mark.parametrize("name", ["working", "paper", "sweep"])
def test_the_recipes_are_whole(name):
    config = recipe.get_config(name)
    two_moons.check_config(config)
    assert set(config.run) == set(config.methods)
    assert {method.init_scale for method in config.methods.values()} == {0.1}
    if name == "paper":  # the paper's rate, and no loss that its text does not mention
        assert {
            (method.learning_rate, method.consistency) for method in config.methods.values()
        } == {(0.1, 0.0)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=0", "seeds is 0"),
        ("seed=-1", "seed is -1; it must be at least 0"),
        (
            "methods.meta_pseudo_labels_with_uda.estimator=dot",
            "estimator: there is no 'dot'; known: soft, dot_product, cosine",
        ),
        ("success=99.0", "success is 99.0"),
        ("run=()", "run names no method"),
        ("run=('mine',)", "no method 'mine'"),
        ("methods.supervised.teacher=nobody", "no method 'nobody'"),
        ("methods.all_labels.steps=0", "methods.all_labels.steps is 0; at least 1"),
        ("methods.supervised.batch_size=-1", "methods.supervised.batch_size is -1"),
        (
            "methods.meta_pseudo_labels_with_uda.temperature=0.0",
            "temperature is 0.0; it must be above 0",
        ),
        (
            "methods.meta_pseudo_labels_with_uda.pseudo_labels=drawn",
            "pseudo_labels: there is no 'drawn'; known: sampled, argmax, soft",
        ),
        (
            "methods.all_labels.result=both",
            "methods.all_labels.result: there is no 'both'; known: teacher, student",
        ),
    ],
)
def test_an_unusable_recipe_is_refused_before_any_training(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "w", f"--config.{override}")
    assert not (tmp_path / "w").exists()


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="working, paper, sweep"):
        recipe.get_config("best")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[1]",
        '{"methods": 1}',
        '{"methods": {}}',
        '{"methods": {"supervised": {"seeds": 0}}}',
    ],
)
@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_damaged_or_foreign_work_directory_is_refused(tmp_path, name, content):
    config = recipes.from_flags("--config=configs/experiments/two_moons.py")
    assert two_moons.finished(tmp_path, config) is None
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{tmp_path}"):
        two_moons.main(config, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"config.json", "summary.json"}


def test_a_feedback_without_a_gradient_is_refused(tmp_path):
    overrides = ("estimator=cosine", "pseudo_labels=soft")
    with pytest.raises(InputError, match="'cosine' has no gradient with soft pseudo-labels"):
        run(
            tmp_path / "w",
            *(f"--config.methods.meta_pseudo_labels_with_uda.{override}" for override in overrides),
        )
