"""MetaPseudoLabels' step: teacher gradient against the true one, statistics, losses, library."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from meta_pseudo_labels import feedback
from meta_pseudo_labels.model import MetaPseudoLabels, Step
from nets.noise import Dropout
from training.optimizers import LARS, RMSProp
from training.uda import uda_loss

K, B, B_U = 3, 5, 3
ONLY_FEEDBACK = {"supervised_weight": 0.0, "uda_weight": 0.0, "baseline_decay": 1.0}


def classifier(seed, dropout=0.0):
    """Returns four features -> K logits, with BatchNorm and our dropout."""
    dense = lambda units, i: tf.keras.layers.Dense(  # noqa: E731
        units, kernel_initializer=tf.keras.initializers.RandomNormal(0, 0.7, seed=10 * seed + i)
    )
    inputs = tf.keras.Input([4])
    hidden = tf.nn.tanh(tf.keras.layers.BatchNormalization()(dense(5, 1)(inputs)))
    return tf.keras.Model(inputs, dense(K, 2)(Dropout(dropout, noise_id="dropout")(hidden)))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    x, weak, strong = (rng.normal(size=(n, 4)).astype("float32") for n in (B, B_U, B_U))
    return (tf.constant(x), tf.constant(rng.integers(0, K, B))), (
        tf.constant(weak),
        tf.constant(strong),
    )


def trainer(student_optimizer=None, **options):
    result = MetaPseudoLabels(classifier(1), classifier(2), **{"weight_decay": 0.0, **options})
    result.compile(student_optimizer or tf.keras.optimizers.SGD(0.5), tf.keras.optimizers.SGD(1.0))
    result.build_optimizers()
    return result


class Forced:
    """A trainer with given pseudo-labels.

    Each call is one step from the same start and returns the teacher's gradient.
    """

    def __init__(self, monkeypatch, **options):
        self.labels = tf.Variable(tf.zeros([B_U, K]))
        monkeypatch.setattr(
            feedback, "draw_pseudo_labels", lambda kind, logits, uniform: tf.identity(self.labels)
        )
        self.trainer = trainer(**options)
        optimizer = self.trainer.optimizer
        # An earlier life: momentum that has nothing to do with these labels.
        for i, v in enumerate(
            getattr(getattr(optimizer, "inner_optimizer", optimizer), "momentums", [])
        ):
            v.assign(tf.random.stateless_normal(v.shape, [i, 5]) * 0.01)
        self.state = [
            *self.trainer.variables,
            *optimizer.variables,
            *self.trainer.teacher_optimizer.variables,
        ]
        self.start = [v.numpy() for v in self.state]
        self.eager_step = lambda: self.trainer.train_step(batch())
        self.step = tf.function(self.eager_step)

    def reset(self):
        for v, value in zip(self.state, self.start):
            v.assign(value)

    def __call__(self, labels):
        self.reset()
        self.labels.assign(labels)
        before = [v.numpy() for v in self.trainer.teacher.trainable_variables]
        self.step()
        return flat(before) - flat(v.numpy() for v in self.trainer.teacher.trainable_variables)

    def expected_and_true(self):
        """Returns E of the teacher's gradient, and ∇ Σ_ŷ p(ŷ) L_l(θ_S'(ŷ)).

        The student is as the step left it.
        """
        (x, y), (weak, strong) = batch()
        t, s = self.trainer.teacher, self.trainer.student
        combinations = [
            np.eye(K, dtype="float32")[list(c)] for c in itertools.product(range(K), repeat=B_U)
        ]
        gradients, losses = [], []
        for labels in combinations:
            gradients.append(self(labels))
            losses.append(
                tf.reduce_mean(
                    tf.keras.losses.sparse_categorical_crossentropy(
                        y, s(x, training=True), from_logits=True
                    )
                )
            )
        self.reset()
        with tf.GradientTape() as tape:
            log_q = tf.nn.log_softmax(t(tf.concat([x, weak, strong], 0), training=True)[B + B_U :])
            p = tf.exp(tf.stack([tf.reduce_sum(log_q * labels) for labels in combinations]))
            j = tf.reduce_sum(p * tf.stop_gradient(tf.stack(losses)))
        return sum(pi * g for pi, g in zip(p.numpy(), gradients)), flat(
            tape.gradient(j, t.trainable_variables)
        )


def flat(arrays):
    return np.concatenate([np.asarray(a).ravel() for a in arrays])


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"learning_rate": 0.5},
        {"learning_rate": 0.3, "momentum": 0.9, "nesterov": True, "global_clipnorm": 0.1},
    ],
)
def test_the_steps_teacher_gradient_is_the_true_one(monkeypatch, optimizer):
    """`finite_difference`, in value, whatever the student's optimizer does with the gradient."""
    student_optimizer = tf.keras.optimizers.SGD(**optimizer)
    forced = Forced(
        monkeypatch,
        student_optimizer=student_optimizer,
        feedback="finite_difference",
        **ONLY_FEEDBACK,
    )
    expected, truth = forced.expected_and_true()
    assert cosine(expected, truth) >= 0.9999
    assert np.linalg.norm(expected) / np.linalg.norm(truth) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("estimator", ["dot_product", "per_example", "soft"])
def test_first_order_estimators_in_the_step(monkeypatch, estimator):
    optimizer = tf.keras.optimizers.SGD(0.02, 0.9)
    expected, truth = Forced(
        monkeypatch, student_optimizer=optimizer, feedback=estimator, **ONLY_FEEDBACK
    ).expected_and_true()
    assert cosine(expected, truth) >= 0.999
    assert np.linalg.norm(expected) / np.linalg.norm(truth) == pytest.approx(1, abs=0.02)


SGD, LossScale = tf.keras.optimizers.SGD, tf.keras.mixed_precision.LossScaleOptimizer
FALLING = tf.keras.optimizers.schedules.PiecewiseConstantDecay(
    [0], [0.005, 0.0025]
)  # 0.005 is the learning rate of the first step alone
LINEAR = {
    "sgd": lambda: SGD(0.005),
    "nesterov": lambda: SGD(0.005, 0.9, nesterov=True),
    "decoupled weight decay": lambda: SGD(FALLING, 0.9, nesterov=True, weight_decay=5.0),
    "loss scale": lambda: LossScale(SGD(FALLING, 0.9, nesterov=True)),
}


FIRST_ORDER = [name for name, estimator in feedback.ESTIMATORS.items() if estimator.factor]


@pytest.mark.parametrize("estimator", FIRST_ORDER)
@pytest.mark.parametrize("optimizer", LINEAR)
def test_first_order_estimators_know_the_optimizers_factor(monkeypatch, optimizer, estimator):
    """With two classes there are only 8 combinations of labels.

    With the learning rate alone, Nesterov's size would be 1/1.9.
    """
    monkeypatch.setitem(globals(), "K", 2)
    forced = Forced(
        monkeypatch, student_optimizer=LINEAR[optimizer](), feedback=estimator, **ONLY_FEEDBACK
    )
    forced.step = forced.eager_step  # 8 steps are over before a graph of one is made
    expected, truth = forced.expected_and_true()
    assert cosine(expected, truth) >= 0.999
    assert np.linalg.norm(expected) / np.linalg.norm(truth) == pytest.approx(1, abs=0.02)


def test_first_order_estimators_are_refused_without_a_factor():
    pair = MetaPseudoLabels(classifier(1), classifier(2))
    for estimator in feedback.ESTIMATORS:
        pair.estimator = feedback.ESTIMATORS[estimator]
        for optimizer in (
            tf.keras.optimizers.Adam(),
            LossScale(tf.keras.optimizers.Adam()),
            SGD(0.1, clipnorm=1.0),
        ):
            name = "SGD" if isinstance(optimizer, SGD) else "Adam"
            if estimator in FIRST_ORDER:
                with pytest.raises(
                    ValueError,
                    match=(
                        f"{estimator}.*a step of {name} is not. Use feedback 'finite_difference' or"
                        " 'cosine'"
                    ),
                ):
                    pair.compile(optimizer, "sgd")
            else:
                pair.compile(optimizer, "sgd")


def test_weights_with_a_constraint_make_no_linear_step():
    constrained = dense(kernel_constraint=tf.keras.constraints.MaxNorm(1.0))
    with pytest.raises(ValueError, match="weight constraints"):
        MetaPseudoLabels(classifier(1), constrained).compile("sgd", "sgd")
    MetaPseudoLabels(constrained, classifier(2)).compile("sgd", "sgd")


APPROXIMATED = {
    "Adam": lambda: tf.keras.optimizers.Adam(1e-3),
    "RMSProp": lambda: RMSProp(1e-3),
    "LARS": lambda: LARS(0.1),
}


@pytest.mark.parametrize("name", feedback.MEASURED)
def test_an_approximation_is_as_far_off_as_its_warning_says(monkeypatch, caplog, name):
    """Measures the cosine to the true gradient by enumeration of all labels.

    It does so in the first step and after 10 and 100 others.
    """
    forced = Forced(
        monkeypatch,
        student_optimizer=APPROXIMATED[name](),
        feedback="soft",
        approximate_feedback=True,
        **ONLY_FEEDBACK,
    )
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert f"'soft' is an approximation under {name}" in said[0]
    rng, teacher, cosines = np.random.default_rng(1), forced.trainer.teacher_optimizer, []
    for steps in (0, 10, 90):
        forced.reset()
        teacher.learning_rate = 0.0
        for _ in range(steps):
            forced.labels.assign(np.eye(K, dtype="float32")[rng.integers(0, K, B_U)])
            forced.step()
        teacher.learning_rate = 1.0
        forced.start = [v.numpy() for v in forced.state]
        cosines.append(cosine(*forced.expected_and_true()))
    assert (min(cosines), max(cosines)) == pytest.approx(feedback.MEASURED[name], abs=0.03)


@pytest.mark.parametrize(
    ("estimator", "least"), [("dot_product", 0.999), ("per_example", 0.95), ("soft", 0.98)]
)
def test_first_order_estimators_know_of_clipping(monkeypatch, estimator, least):
    """A tenth of the gradient is left here. How much depends on all labels.

    A scalar h knows it; the others take it for a constant.
    """
    optimizer = tf.keras.optimizers.SGD(0.2, 0.9, global_clipnorm=0.1)
    expected, truth = Forced(
        monkeypatch, student_optimizer=optimizer, feedback=estimator, **ONLY_FEEDBACK
    ).expected_and_true()
    assert cosine(expected, truth) >= least
    assert np.linalg.norm(expected) / np.linalg.norm(truth) == pytest.approx(1, abs=0.1)


def test_clipping_taken_for_a_constant_can_mislead(monkeypatch):
    """Tests the documented error, on the batch of another seed.

    There, clipping leaves less of the gradient for some labels than for others.
    """
    monkeypatch.setitem(globals(), "batch", functools.partial(batch, 1))
    optimizer = tf.keras.optimizers.SGD(0.02, 0.9, nesterov=True, global_clipnorm=0.1)
    expected, truth = Forced(
        monkeypatch, student_optimizer=optimizer, feedback="soft", **ONLY_FEEDBACK
    ).expected_and_true()
    assert cosine(expected, truth) == pytest.approx(0.48, abs=0.03)
    assert np.linalg.norm(expected) / np.linalg.norm(truth) == pytest.approx(4.6, abs=0.1)


def test_cosine_and_the_batch_factor_in_the_step(monkeypatch):
    """cos(∇L_l(θ_S'), ∇L_u(θ_S)) stands before the mean CE.

    B_u stands before the mean CE of a scalar h, unless another factor is given.
    """
    labels = np.eye(K, dtype="float32")[[0, 2, 1]]
    (x, y), (weak, strong) = batch()

    def one_step(**options):
        forced = Forced(monkeypatch, **options, **ONLY_FEEDBACK)
        forced.step = forced.eager_step
        return forced(labels), forced.trainer

    found, forced = one_step(feedback="cosine")
    teacher, student = classifier(1), classifier(2)  # as at the start
    own = forced.student  # θ_S' after the step
    gradients = []
    for network, images, targets in (
        (own, x, tf.one_hot(y, K)),
        (student, strong, labels),
        (teacher, None, labels),
    ):
        with tf.GradientTape() as tape:
            z = network(
                tf.concat([x, weak, strong], 0) if images is None else images, training=True
            )
            loss = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(
                    targets, z[B + B_U :] if images is None else z
                )
            )
        gradients.append(flat(tape.gradient(loss, network.trainable_variables)))
    h = cosine(*gradients[:2])
    assert abs(h) > 0.01
    np.testing.assert_allclose(found, h * gradients[2], rtol=1e-3, atol=1e-6)
    by_factor = functools.partial(one_step, feedback="finite_difference")
    full, one, two = (by_factor(batch_factor=factor)[0] for factor in (None, 1.0, 2.0))
    np.testing.assert_allclose(full, B_U * one, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(two, 2 * one, rtol=1e-3, atol=1e-6)


def test_soft_pseudo_labels_in_the_step():
    """Tests that the gradient is exact for a large student step.

    The reference is a derivative through the whole of it by TensorFlow's nested tapes.
    """
    soft = trainer(
        tf.keras.optimizers.SGD(0.5), feedback="soft", pseudo_labels="soft", **ONLY_FEEDBACK
    )
    (x, y), (weak, strong) = batch()
    teacher, student = classifier(1), classifier(2)
    w1, b1, _, _, w2, b2 = (
        tf.identity(v) for v in student.trainable_variables
    )  # gamma is 1, beta is 0

    def net(parameters, images):
        w1, b1, w2, b2 = parameters
        hidden = images @ w1 + b1
        mean, variance = tf.nn.moments(hidden, [0])
        return tf.tanh((hidden - mean) / tf.sqrt(variance + 1e-3) * gamma + beta) @ w2 + b2

    gamma, beta = tf.ones([5]), tf.zeros([5])
    with tf.GradientTape() as outer:
        q = tf.nn.softmax(teacher(tf.concat([x, weak, strong], 0), training=True)[B + B_U :])
        with tf.GradientTape() as inner:
            start = [w1, b1, w2, b2, gamma, beta]
            inner.watch(start)
            loss = -tf.reduce_mean(tf.reduce_sum(q * tf.nn.log_softmax(net(start[:4], strong)), -1))
        moved = [p - 0.5 * g for p, g in zip(start, inner.gradient(loss, start))]
        gamma, beta = moved[4:]
        j = tf.reduce_mean(
            tf.keras.losses.sparse_categorical_crossentropy(y, net(moved[:4], x), from_logits=True)
        )
    truth = flat(outer.gradient(j, teacher.trainable_variables))
    before = flat(v.numpy() for v in soft.teacher.trainable_variables)
    soft.train_step(batch())
    moved = before - flat(v.numpy() for v in soft.teacher.trainable_variables)
    np.testing.assert_allclose(moved, truth, rtol=0.01, atol=1e-6)


def test_release_and_none_leave_the_teacher_alone():
    for options in ({"feedback": "release", "pseudo_labels": "soft"}, {"feedback": "none"}):
        still = trainer(**options, **ONLY_FEEDBACK)
        before = flat(v.numpy() for v in still.teacher.trainable_variables)
        student = flat(v.numpy() for v in still.student.trainable_variables)
        still.train_step(batch())
        np.testing.assert_allclose(
            flat(v.numpy() for v in still.teacher.trainable_variables), before, atol=1e-8
        )
        assert (
            np.abs(flat(v.numpy() for v in still.student.trainable_variables) - student).max()
            > 1e-3
        )


def test_an_estimator_is_one_value(monkeypatch):
    """Nothing but the table knows it: a new value is found by its name, and measured as it says."""
    twice = feedback.Estimator(
        "twice",
        lambda m: 2.0 * (m.old - m.new),
        lambda h, labels, logits, factor: factor * h + 0.0 * tf.reduce_sum(logits),
        losses=True,
    )
    monkeypatch.setitem(feedback.ESTIMATORS, "twice", twice)
    values = {}
    for name in ("finite_difference", "twice"):
        values[name] = trainer(feedback=name, baseline_decay=1.0).train_step(batch())
    h = float(values["finite_difference"]["feedback"])
    assert float(values["twice"]["feedback"]) == pytest.approx(2 * h)
    assert float(values["twice"]["feedback_loss"]) == pytest.approx(2 * h)  # the factor is 1
    with pytest.raises(ValueError, match="'twice' has no gradient with soft pseudo-labels"):
        trainer(feedback="twice", pseudo_labels="soft")


@pytest.mark.parametrize("estimator", ["finite_difference", "per_example", "none"])
def test_moving_statistics_are_updated_once_in_each_network(estimator):
    one = trainer(feedback=estimator)
    (x, _), (weak, strong) = batch()
    expected = []
    for model, images in ((one.teacher, tf.concat([x, weak, strong], 0)), (one.student, strong)):
        hidden = model.layers[1](images).numpy()
        expected.append((0.01 * hidden.mean(0), 0.99 + 0.01 * hidden.var(0)))
    one.train_step(batch())
    for model, (mean, variance) in zip((one.teacher, one.student), expected):
        np.testing.assert_allclose(model.layers[2].moving_mean, mean, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(model.layers[2].moving_variance, variance, rtol=1e-4)


def test_a_student_that_stands_still_gives_no_feedback():
    """Tests that old and new are measured the same way: same noise, same statistics.

    So their difference is 0 and not the noise of two measurements.
    """
    options = {"feedback": "finite_difference", "baseline_decay": 1.0}
    one = MetaPseudoLabels(classifier(1, dropout=0.5), classifier(2, dropout=0.5), **options)
    one.compile(tf.keras.optimizers.SGD(0.0), tf.keras.optimizers.SGD(0.1))
    for _ in range(3):
        assert float(one.train_step(batch())["feedback"]) == 0.0
    one.optimizer.learning_rate = 0.5
    assert float(one.train_step(batch())["feedback"]) != 0.0


def test_the_teachers_loss_is_the_sum_of_its_terms():
    one = trainer(
        feedback="finite_difference",
        feedback_weight=3.0,
        baseline_decay=0.9,
        uda_weight=2.0,
        uda_temperature=0.5,
        uda_threshold=0.5,
        uda_ramp_steps=4,
        label_smoothing=0.2,
        weight_decay=0.01,
    )
    one.teacher_optimizer.iterations.assign(1)
    one.baseline.assign(0.25)
    (x, y), (weak, strong) = batch()
    z = log_softmax(one.teacher(tf.concat([x, weak, strong], 0), training=True).numpy())
    decay = sum(
        (v.numpy() ** 2).sum() / 2
        for v in one.teacher.trainable_variables
        if "gamma" not in v.name and "beta" not in v.name
    )
    drawn = []
    draw = feedback.draw_pseudo_labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            feedback, "draw_pseudo_labels", lambda *a: drawn.append(draw(*a)) or drawn[-1]
        )
        values = {name: float(value) for name, value in one.train_step(batch()).items()}
    z_l, z_weak, z_strong = z[:B], z[B : B + B_U], z[B + B_U :]
    labeled = -((np.eye(K)[y] * 0.8 + 0.2 / K) * z_l).sum(1).mean()
    q = np.exp(z_weak * 2)
    q /= q.sum(1, keepdims=True)
    uda = ((q.max(1) >= 0.5) * -(q * z_strong).sum(1)).mean()
    mpl = (values["feedback"] - 0.25) * B_U * -(drawn[0].numpy() * z_strong).sum(1).mean()
    assert values["labeled_loss"] == pytest.approx(labeled, rel=1e-4)
    assert values["uda_loss"] == pytest.approx(uda, rel=1e-4)
    assert values["teacher_loss"] == pytest.approx(
        3 * mpl + labeled + 0.25 * 2 * uda + 0.01 * decay, rel=1e-3
    )
    assert float(one.baseline) == pytest.approx(0.9 * 0.25 + 0.1 * values["feedback"], rel=1e-5)


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def test_uda_counts_confident_examples_and_stops_the_weak_gradient():
    weak, strong = tf.Variable([[4.0, 0.0], [0.1, 0.0]]), tf.Variable([[1.0, 0.0], [2.0, 0.0]])
    with tf.GradientTape() as tape:
        loss, confident = uda_loss(weak, strong, 1.0, 0.9)
    q, log_p = tf.nn.softmax(weak[:1]).numpy(), log_softmax(strong[:1].numpy())
    assert float(loss) == pytest.approx(-(q * log_p).sum() / 2, rel=1e-5)
    assert float(confident) == 0.5
    weak_gradient, strong_gradient = tape.gradient(loss, [weak, strong])
    assert weak_gradient is None
    assert np.abs(strong_gradient.numpy()).sum(1).astype(bool).tolist() == [True, False]


def test_weight_decay_of_the_student_is_no_part_of_the_feedback():
    """Tests that the gradient of ½λ‖θ‖² is added to the move only.

    gamma and beta stay undecayed; h of the first order is the same.
    """
    values = []
    for decay in (0.0, 0.1):
        one = trainer(feedback="dot_product", weight_decay=decay, **ONLY_FEEDBACK)
        before = [v.numpy() for v in one.student.trainable_variables]
        one.train_step(batch())
        values.append([v.numpy() for v in one.student.trainable_variables])
    for start, plain, decayed_, v in zip(before, *values, one.student.trainable_variables):
        share = 0.0 if ("gamma" in v.name or "beta" in v.name) else 0.1
        np.testing.assert_allclose(decayed_, plain - 0.5 * share * start, atol=1e-6)


def test_draws_are_a_function_of_seed_and_step():
    def draw(seed, step):
        return (
            trainer(seed=seed)
            ._draw(
                tf.zeros([50, K]),
                Step(tf.constant(step, tf.int64), tf.constant(5), tf.constant(50), 1),
            )
            .numpy()
        )

    np.testing.assert_array_equal(draw(0, 1), draw(0, 1))
    for other in (draw(1, 0), draw(0, 2), draw(1, 1)):
        assert 0.1 < (draw(0, 1).argmax(1) == other.argmax(1)).mean() < 0.7  # by chance a third


def blobs():
    """Returns two blobs a class.

    The labeled examples lie in one of them only, but a strong view moves each towards the other.
    """
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(3, 8)).astype("float32")
    y, y_u = np.repeat(np.arange(3), 4), rng.integers(0, 3, 300)
    x, x_u = (
        centers[labels] + 0.7 * rng.normal(size=(len(labels), 8)).astype("float32")
        for labels in (y, y_u)
    )
    return (x, y), (x_u, x_u + 0.5 * rng.normal(size=x_u.shape).astype("float32")), y_u


def test_any_two_classifiers_by_keras_fit():
    (x, y), (x_u, x_strong), y_u = blobs()
    layers = tf.keras.layers
    teacher = tf.keras.Sequential(
        [layers.Dense(16, "relu", input_shape=(8,)), layers.Dropout(0.1), layers.Dense(3)]
    )
    student = tf.keras.Sequential(
        [layers.Dense(8, "relu", input_shape=(8,)), layers.BatchNormalization(), layers.Dense(3)]
    )
    mpl = MetaPseudoLabels(teacher, student, uda_ramp_steps=20, ema_decay=0.9)
    mpl.compile(
        student_optimizer=tf.keras.optimizers.SGD(0.1, momentum=0.9), teacher_optimizer="adam"
    )
    labeled = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(12)
    unlabeled = tf.data.Dataset.from_tensor_slices((x_u, x_strong)).repeat().batch(60)
    mpl.fit(tf.data.Dataset.zip((labeled, unlabeled)), steps_per_epoch=200, verbose=0)
    with mpl.ema.swapped():
        result = mpl.evaluate(
            tf.data.Dataset.from_tensor_slices((x_u, y_u)).batch(50), verbose=0, return_dict=True
        )
    assert result["examples"] == 300
    assert result["top1"] > 0.9


def dense(units=K, **options):
    return tf.keras.Sequential([tf.keras.layers.Dense(units, input_shape=(4,), **options)])


def shared():
    layer = tf.keras.layers.Dense(K)
    return [tf.keras.Sequential([tf.keras.Input([4]), layer]) for _ in range(2)]


def ending(*functions):
    inputs = tf.keras.Input([4])
    outputs = tf.keras.layers.Dense(K)(inputs)
    for function in functions:
        outputs = function(outputs)
    return tf.keras.Model(inputs, outputs)


class Gated(tf.keras.Model):
    """Its last layer by name is not its last one in the call."""

    def __init__(self):
        super().__init__()
        self.head, self.gate = (
            tf.keras.layers.Dense(K),
            tf.keras.layers.Dense(1, activation="sigmoid"),
        )
        self(tf.zeros([1, 4]))

    def call(self, x):
        return self.head(self.gate(x) * x)


def frozen():
    network = dense()
    network.trainable = False
    return network


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (lambda: [classifier(1)] * 2, "share weights"),
        (shared, "share weights"),
        (
            lambda: (tf.keras.Sequential([tf.keras.layers.Dense(3)]), classifier(2)),
            "the teacher is not built",
        ),
        (lambda: (dense(activation="softmax"), dense()), "the teacher ends in probabilities"),
        (
            lambda: (dense(), tf.keras.Sequential([dense(), tf.keras.layers.Softmax()])),
            "ends in probabilities",
        ),
        (lambda: (dense(1, activation="sigmoid"), dense()), "the teacher ends in probabilities"),
        (lambda: (ending(tf.nn.softmax), dense()), "the teacher ends in probabilities"),
        (
            lambda: (
                ending(tf.nn.softmax, tf.keras.layers.Activation("linear", dtype="float32")),
                dense(),
            ),
            "the teacher ends in probabilities",
        ),
        (lambda: (dense(), dense(1)), "has one output"),
        (lambda: (dense(3), dense(5)), "have 3 and 5 classes"),
        (lambda: (frozen(), dense()), "the teacher has nothing to train"),
        (lambda: (dense(), dense(kernel_regularizer="l2")), "has its own losses"),
        (lambda: (dense(activity_regularizer="l2"), dense()), "has its own losses"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(networks, message):
    with pytest.raises(ValueError, match=message):
        MetaPseudoLabels(*networks())


def test_a_subclassed_network_is_taken_at_its_word():
    MetaPseudoLabels(Gated(), Gated())


def test_options_that_cannot_be_trained_with_are_refused():
    with pytest.raises(ValueError, match="no gradient with soft"):
        MetaPseudoLabels(classifier(1), classifier(2), feedback="cosine", pseudo_labels="soft")
    with pytest.raises(ValueError, match=r"tf\.keras\.optimizers\.legacy"):
        MetaPseudoLabels(classifier(1), classifier(2)).compile(
            tf.keras.optimizers.legacy.SGD(0.1), "adam"
        )
    with pytest.raises(ValueError, match="same optimizer object"):
        MetaPseudoLabels(classifier(1), classifier(2)).compile(*[tf.keras.optimizers.SGD(0.1)] * 2)


def test_data_of_another_form_are_refused():
    (x, y), (weak, strong) = batch()
    for element in ((x, y), ((x, y, y), (weak, strong)), ((x, y), strong)):
        with pytest.raises(
            ValueError, match=r"must be \(\(x, y\), \(x_weak, x_strong\)\); got .*float32 \(5, 4\)"
        ):
            trainer().train_step(element)


def test_images_of_two_types_are_not_cut_to_bytes():
    """Covers labeled images in bytes, and views that augmentation has made float.

    The step is that of all as float.
    """
    (x, y), (weak, strong) = batch()
    bytes_ = tf.cast(tf.abs(x) * 50, tf.uint8)
    moved = []
    for images in (bytes_, tf.cast(bytes_, tf.float32)):
        one = trainer(feedback="finite_difference")
        one.train_step(((images, y), (weak, strong)))
        moved.append(flat(v.numpy() for v in one.trainable_variables))
    np.testing.assert_array_equal(*moved)
