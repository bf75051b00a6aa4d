"""The proof: each estimator's expected teacher gradient against the true gradient.

The true gradient is that of the labeled loss after the student's step. The truth is numpy's alone:
the student's step by hand-written backpropagation for every combination of pseudo-labels, J as the
sum over the combinations, its gradient by central differences in the teacher's weights. The
estimators are run on every combination and weighted by its probability. Everything is float64, so a
failure is not rounding.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from meta_pseudo_labels import feedback

K, B_U, B_L, RATE = (
    3,
    3,
    4,
    0.5,
)  # large: what is exact must be exact far from the first order, too
SHAPES = [(2, 4), (4,), (4, K), (K,)]  # two inputs, four tanh units, K logits


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


class Problem:
    """Random networks and batches, and the truth about them."""

    def __init__(self, seed=0, rate=RATE):
        rng = np.random.default_rng(seed)
        self.rate = rate
        self.teacher, self.student = ([rng.normal(size=s) for s in SHAPES] for _ in range(2))
        self.x_u, self.x_l = rng.normal(size=(B_U, 2)), rng.normal(size=(B_L, 2))
        self.y_l = np.eye(K)[rng.integers(0, K, B_L)]
        self.combinations = [np.eye(K)[list(c)] for c in itertools.product(range(K), repeat=B_U)]

    @staticmethod
    def logits(parameters, x):
        w1, b1, w2, b2 = parameters
        return np.tanh(x @ w1 + b1) @ w2 + b2

    def labeled_loss(self, student):
        return -(self.y_l * log_softmax(self.logits(student, self.x_l))).sum(1).mean()

    def stepped(self, labels):
        """Returns θ_S' by hand-written backpropagation."""
        w1, b1, w2, b2 = self.student
        hidden = np.tanh(self.x_u @ w1 + b1)
        d_logits = (np.exp(log_softmax(hidden @ w2 + b2)) - labels) / B_U
        d_hidden = d_logits @ w2.T * (1 - hidden**2)
        gradient = [self.x_u.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_logits, d_logits.sum(0)]
        return [p - self.rate * g for p, g in zip(self.student, gradient)]

    def probability(self, teacher, labels):
        return np.exp((log_softmax(self.logits(teacher, self.x_u)) * labels).sum())

    def hard_gradient(self):
        """Returns ∇ Σ_ŷ p(ŷ; θ_T) L_l(θ_S'(ŷ))."""
        losses = [self.labeled_loss(self.stepped(c)) for c in self.combinations]
        return central_differences(
            lambda teacher: sum(
                self.probability(teacher, c) * loss for c, loss in zip(self.combinations, losses)
            ),
            self.teacher,
        )

    def soft_gradient(self):
        """Returns ∇ L_l(θ_S − η ∇L_u) where the labels are T itself."""
        return central_differences(
            lambda teacher: self.labeled_loss(
                self.stepped(np.exp(log_softmax(self.logits(teacher, self.x_u))))
            ),
            self.teacher,
        )

    def estimate(self, estimator, labels, batch_factor=B_U):
        """Returns the teacher's gradient by the functions under test, for these pseudo-labels."""
        teacher, student, moved = (
            [tf.Variable(p) for p in ps]
            for ps in (self.teacher, self.student, self.stepped(labels))
        )
        labels = tf.constant(labels)

        def net(p, x):
            return tf.tanh(x @ p[0] + p[1]) @ p[2] + p[3]

        with tf.GradientTape() as label_tape:
            label_tape.watch(labels)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(feedback.soft_cross_entropy(labels, net(student, self.x_u)))
            g_u = tape.gradient(loss, student)
        old = tf.reduce_mean(feedback.soft_cross_entropy(self.y_l, net(student, self.x_l)))
        with tf.GradientTape() as tape:
            new = tf.reduce_mean(feedback.soft_cross_entropy(self.y_l, net(moved, self.x_l)))
        g_l = tape.gradient(new, moved)
        with tf.GradientTape() as tape:
            logits = net(teacher, self.x_u)
            if estimator in ("per_example", "soft"):
                h = feedback.label_feedback(label_tape, labels, g_u, g_l, self.rate, B_U)
                drawn = tf.reduce_sum(h * labels, -1)
                loss = (
                    feedback.soft_loss(h, logits)
                    if estimator == "soft"
                    else feedback.hard_loss(drawn, labels, logits)
                )
            elif estimator == "release":
                loss = feedback.released_loss(feedback.released(old, new), logits)
            else:
                h = {
                    "finite_difference": lambda: feedback.finite_difference(old, new),
                    "dot_product": lambda: feedback.dot_product(g_l, g_u, self.rate),
                    "cosine": lambda: feedback.cosine(g_l, g_u),
                }[estimator]()
                loss = feedback.hard_loss(h, labels, logits, batch_factor)
        return flat(tape.gradient(loss, teacher))

    def expected(self, estimator, **options):
        """Returns the estimate's expectation over all combinations of labels."""
        return sum(
            self.probability(self.teacher, c) * self.estimate(estimator, c, **options)
            for c in self.combinations
        )


def central_differences(function, parameters, epsilon=1e-5):
    result = []
    for index, parameter in enumerate(parameters):
        for position in np.ndindex(parameter.shape):
            values = []
            for sign in (1, -1):
                changed = [p.copy() for p in parameters]
                changed[index][position] += sign * epsilon
                values.append(function(changed))
            result.append((values[0] - values[1]) / (2 * epsilon))
    return np.array(result)


def flat(tensors):
    return np.concatenate([np.asarray(t).ravel() for t in tensors])


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.fixture(scope="module", params=[0, 1, 2])
def problem(request):
    return Problem(request.param)


def test_finite_difference_is_the_true_gradient(problem):
    np.testing.assert_allclose(
        problem.expected("finite_difference"), problem.hard_gradient(), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("estimator", ["dot_product", "per_example", "soft"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_first_order_estimators_have_the_true_gradient_up_to_the_steps_curvature(seed, estimator):
    """With sampled labels the error is of the order of the learning rate.

    A tenth of the learning rate gives a tenth of the error.
    """
    problems = [Problem(seed, rate) for rate in (0.01, 0.001)]
    actual, truth = zip(*[(p.expected(estimator), p.hard_gradient()) for p in problems])
    assert cosine(actual[0], truth[0]) >= 0.999
    assert np.linalg.norm(actual[0]) / np.linalg.norm(truth[0]) == pytest.approx(1, abs=0.02)
    errors = [np.linalg.norm(a - t) / np.linalg.norm(t) for a, t in zip(actual, truth)]
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_soft_labels_give_the_exact_gradient(problem):
    q = np.exp(log_softmax(problem.logits(problem.teacher, problem.x_u)))
    np.testing.assert_allclose(
        problem.estimate("soft", q), problem.soft_gradient(), rtol=1e-5, atol=1e-9
    )


def test_without_the_batch_factor_the_gradient_is_one_over_the_batch(problem):
    np.testing.assert_allclose(
        problem.expected("finite_difference", batch_factor=1),
        problem.hard_gradient() / B_U,
        rtol=1e-5,
        atol=1e-9,
    )


def test_the_release_teaches_the_teacher_nothing(problem):
    for labels in problem.combinations:
        np.testing.assert_allclose(problem.estimate("release", labels), 0.0, atol=1e-15)


def test_the_released_sign_would_climb(problem):
    old, new = tf.constant(1.0), tf.constant(0.9)
    assert feedback.released(old, new) == -feedback.finite_difference(old, new) < 0


def test_cosine_keeps_the_direction_roughly_and_the_size_not_at_all():
    truths, actuals = zip(
        *[
            (p.hard_gradient(), p.expected("cosine"))
            for p in [Problem(seed, 0.01) for seed in range(8)]
        ]
    )
    cosines = np.array([cosine(a, t) for a, t in zip(actuals, truths)])
    assert cosines.min() > 0
    assert np.median(cosines) > 0.9
    assert (cosines < 0.9).any(), "then it would be unbiased after all"
    ratios = np.array([np.linalg.norm(a) / np.linalg.norm(t) for a, t in zip(actuals, truths)])
    assert ratios.max() > 1.5 * ratios.min(), "the factor to the true gradient is not one constant"


def test_argmax_labels_are_biased():
    """Tests that over many problems the direction is nearly arbitrary, for some it is uphill."""
    cosines = []
    for seed in range(40):
        problem = Problem(seed)
        q = problem.logits(problem.teacher, problem.x_u)
        labels = np.array(feedback.draw_pseudo_labels("argmax", tf.constant(q), tf.zeros_like(q)))
        np.testing.assert_array_equal(labels, np.eye(K)[q.argmax(1)])
        cosines.append(
            cosine(problem.estimate("finite_difference", labels), problem.hard_gradient())
        )
    assert np.mean(cosines) < 0.7
    assert min(cosines) < 0


def test_a_baseline_leaves_the_expectation_and_lowers_the_variance(problem):
    """Tests a baseline that does not depend on the labels; here a good one, the mean of h."""
    rewards, scores = [], []
    for labels in problem.combinations:
        h = problem.labeled_loss(problem.student) - problem.labeled_loss(problem.stepped(labels))
        rewards.append(float(h))
        with tf.GradientTape() as tape:
            teacher = [tf.Variable(p) for p in problem.teacher]
            logits = tf.tanh(problem.x_u @ teacher[0] + teacher[1]) @ teacher[2] + teacher[3]
            loss = feedback.hard_loss(tf.constant(1.0, tf.float64), labels, logits, B_U)
        scores.append(flat(tape.gradient(loss, teacher)))
    p = np.array([problem.probability(problem.teacher, c) for c in problem.combinations])
    rewards, scores = (
        np.array(rewards) + 0.3,
        np.array(scores),
    )  # 0.3: a student that gets better anyway
    centered, following = feedback.center(
        tf.constant(rewards), tf.constant(p @ rewards), tf.constant(p @ rewards), 0.99
    )
    assert float(following) == pytest.approx(p @ rewards)
    plain, better = rewards[:, None] * scores, centered.numpy()[:, None] * scores
    np.testing.assert_allclose(p @ better, p @ plain, atol=1e-12)
    np.testing.assert_allclose(p @ better, problem.hard_gradient(), atol=1e-7)
    variance = [(p @ g**2 - (p @ g) ** 2).sum() for g in (plain, better)]
    assert variance[1] < 0.5 * variance[0]


def test_the_baseline_in_use_is_the_earlier_one():
    centered, following = feedback.center(tf.constant(1.0), tf.constant(1.0), tf.constant(0.5), 0.9)
    assert (float(centered), float(following)) == (0.5, pytest.approx(0.55))


def test_sampled_labels_follow_the_teacher():
    logits = tf.constant([[1.0, 0.0, -2.0]])
    uniform = tf.random.stateless_uniform([20000, 3], [1, 2])
    labels = feedback.draw_pseudo_labels("sampled", tf.repeat(logits, 20000, 0), uniform).numpy()
    np.testing.assert_array_equal(labels.sum(1), 1)
    np.testing.assert_allclose(
        labels.mean(0), tf.nn.softmax(logits)[0], atol=0.012
    )  # 3.5 standard errors


@pytest.mark.parametrize(
    ("estimator", "labels"),
    [("dot_product", "soft"), ("per_example", "soft"), ("taylor", "sampled"), ("soft", "drawn")],
)
def test_pairs_without_a_gradient_and_unknown_names_are_refused(estimator, labels):
    with pytest.raises(ValueError, match=r"feedback|pseudo_labels"):
        feedback.find_estimator(estimator, labels)
