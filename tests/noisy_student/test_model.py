"""NoisyStudent's step against numpy, and as a library over a classifier that is not ours."""

import numpy as np
import pytest
import tensorflow as tf

from nets.noise import Dropout
from noisy_student.model import NoisyStudent, combine_losses, pseudo_targets
from training.parts import accumulated


def small_classifier(batch_norm=True):
    layers = [tf.keras.layers.Flatten(input_shape=(4, 4, 3)), tf.keras.layers.Dense(16, "relu")]
    if batch_norm:
        layers.append(tf.keras.layers.BatchNormalization())
    return tf.keras.Sequential([*layers, tf.keras.layers.Dense(3)])


def batches(seed=0, batch=4, ratio=3):
    rng = np.random.default_rng(seed)
    x, x_u = rng.normal(size=(batch, 4, 4, 3)), rng.normal(size=(batch * ratio, 4, 4, 3))
    q = rng.dirichlet(np.ones(3), size=batch * ratio)
    return (x.astype("float32"), rng.integers(0, 3, batch)), (
        x_u.astype("float32"),
        q.astype("float32"),
    )


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def dataset(*elements):
    return tf.data.Dataset.from_tensors(elements[0] if len(elements) == 1 else elements).repeat()


@pytest.mark.parametrize(
    ("normalization", "weights"),
    [("joint", (1 / 4, 3 / 4)), ("algorithm_1", (1, 1)), ("release", (1, 3))],
)
def test_one_sgd_step_has_the_gradient_of_the_formula(normalization, weights):
    (x, y), (x_u, q) = batches()
    model = small_classifier(batch_norm=False)
    student = NoisyStudent(
        model, loss_normalization=normalization, weight_decay=0.01, label_smoothing=0.1
    )
    student.compile(optimizer=tf.keras.optimizers.SGD(1.0))
    before = [v.numpy() for v in model.trainable_variables]

    # The formula, by finite differences of a float64 numpy forward pass over the same numbers.
    def objective(parameters):
        w1, b1, w2, b2 = parameters

        def forward(images):
            return log_softmax(np.maximum(images.reshape(len(images), -1) @ w1 + b1, 0) @ w2 + b2)

        labeled = -(forward(x) * (np.eye(3)[y] * 0.9 + 0.1 / 3)).sum(1).mean()
        unlabeled = -(forward(x_u) * q).sum(1).mean()
        return (
            weights[0] * labeled
            + weights[1] * unlabeled
            + 0.01 * sum(0.5 * (p**2).sum() for p in parameters)
        )

    student.fit(dataset((x, y), (x_u, q)), steps_per_epoch=1, verbose=0)
    parameters = [p.astype(np.float64) for p in before]
    for index, position in [(0, (5, 3)), (0, (40, 9)), (1, (2,)), (2, (7, 1)), (3, (0,))]:
        shifted = []
        for epsilon in (1e-5, -1e-5):
            changed = [p.copy() for p in parameters]
            changed[index][position] += epsilon
            shifted.append(objective(changed))
        gradient = (shifted[0] - shifted[1]) / 2e-5
        moved = before[index][position] - model.trainable_variables[index].numpy()[position]
        assert moved == pytest.approx(gradient, rel=1e-2, abs=1e-5)


def test_both_batches_share_their_batch_norm_statistics():
    (x, y), (x_u, q) = batches()
    model = small_classifier()
    student = NoisyStudent(model)
    student.compile(optimizer=tf.keras.optimizers.SGD(0.0))
    hidden = model.layers[1](tf.reshape(tf.concat([x, x_u], 0), [16, -1]))
    student.fit(dataset((x, y), (x_u, q)), steps_per_epoch=1, verbose=0)
    np.testing.assert_allclose(
        model.layers[2].moving_mean, 0.01 * hidden.numpy().mean(0), rtol=1e-4, atol=1e-6
    )


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Tests that noise, clipping by the global norm, average and metrics are included.

    Dropout's noise belongs to the example.
    """
    inputs = tf.keras.Input([4, 4, 3])
    hidden = Dropout(0.5, noise_id="dropout")(tf.keras.layers.Flatten()(inputs))
    (x, y), (x_u, q) = batches(batch=6, ratio=2)
    results = []
    for parts in (1, 3):
        model = tf.keras.Model(
            inputs,
            tf.keras.layers.Dense(3, kernel_initializer=tf.keras.initializers.HeNormal(seed=1))(
                hidden
            ),
        )
        student = NoisyStudent(model, accumulation=parts, ema_decay=0.9, weight_decay=0.1)
        student.compile(optimizer=tf.keras.optimizers.SGD(0.5, momentum=0.9, global_clipnorm=0.3))
        history = student.fit(dataset((x, y), (x_u, q)), steps_per_epoch=3, verbose=0).history
        assert int(student.optimizer.iterations) == 3
        averages = [shadow.numpy() for shadow in student.ema.shadows]
        results.append(
            [*model.get_weights(), *averages, *(history[name][0] for name in sorted(history))]
        )
    assert len(results[0]) == 2 + 2 + 9
    for a, b in zip(*results):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [5, None])
def test_parts_that_leave_examples_over_are_refused(size):
    seen = []
    step = tf.function(
        lambda x: accumulated(lambda part, _: seen.append(part) or [tf.reduce_sum(part)], x, 2),
        input_signature=[tf.TensorSpec([size])],
    )
    with pytest.raises(
        (ValueError, tf.errors.InvalidArgumentError),
        match=r"a batch does not divide into accumulation=2 parts",
    ):
        step(tf.ones([5]))
    if size is None:
        np.testing.assert_allclose(step(tf.range(4.0)), [6.0])


def test_norms_of_a_step():
    (x, y), unlabeled = batches()
    model = small_classifier(batch_norm=False)
    student = NoisyStudent(model)
    student.compile(optimizer=tf.keras.optimizers.SGD(0.1, global_clipnorm=0.2))
    before = [v.numpy() for v in model.trainable_variables]
    history = student.fit(dataset((x, y), unlabeled), steps_per_epoch=1, verbose=0).history
    moved = [a - v.numpy() for a, v in zip(before, model.trainable_variables)]

    def norm(arrays):
        return np.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays))

    assert history["parameter_norm"][0] == pytest.approx(norm(before), rel=1e-5)
    assert (
        history["update_norm"][0]
        == pytest.approx(norm(moved), rel=1e-4)
        == pytest.approx(0.02, rel=1e-4)
    )
    assert history["gradient_norm"][0] > 0.2  # before clipping


def test_accumulation_and_batch_norm():
    """Tests the documented difference: each part has its own statistics.

    The moving statistics move with each part.
    """
    (x, y), (x_u, q) = batches(batch=4, ratio=1)
    model = small_classifier()
    student = NoisyStudent(model, accumulation=2)
    student.compile(optimizer=tf.keras.optimizers.SGD(0.0))
    student.fit(dataset((x, y), (x_u, q)), steps_per_epoch=1, verbose=0)
    expected = np.zeros(16)
    for part in (slice(0, 2), slice(2, 4)):
        hidden = model.layers[1](tf.reshape(tf.concat([x[part], x_u[part]], 0), [4, -1])).numpy()
        expected = 0.99 * expected + 0.01 * hidden.mean(0)
    np.testing.assert_allclose(model.layers[2].moving_mean, expected, rtol=1e-4, atol=1e-6)


def test_labels_made_within_the_step_equal_stored_ones():
    (x, y), (x_u, _) = batches()
    clean = x_u * 0.5
    teacher = small_classifier(batch_norm=False)
    q = tf.nn.softmax(teacher(clean)).numpy()
    weights = small_classifier().get_weights()
    trained = []
    for second, online in (((x_u, clean), teacher), ((x_u, q), None)):
        model = small_classifier()
        model.set_weights(weights)
        student = NoisyStudent(model, teacher=online)
        student.compile(optimizer=tf.keras.optimizers.SGD(0.1))
        student.fit(dataset((x, y), second), steps_per_epoch=3, verbose=0)
        trained.append(model.get_weights())
    for a, b in zip(*trained):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_labeled_examples_that_count_with_a_probability():
    """Tests that the mean is over all examples. Examples that are left out have loss 0.

    Which examples these are belongs to the example, whatever the parts.
    """
    (x, y), unlabeled = batches(batch=6, ratio=2)
    counted = tf.random.stateless_uniform([6], [3, 0], alg="philox").numpy() < 0.5
    assert 0 < counted.sum() < 6
    weights = small_classifier(batch_norm=False).get_weights()
    for parts in (1, 2):
        model = small_classifier(batch_norm=False)
        model.set_weights(weights)
        expected = (counted * -log_softmax(model(x).numpy())[np.arange(6), y]).mean()
        student = NoisyStudent(
            model, label_data_sample_prob=0.5, label_smoothing=0.0, accumulation=parts, seed=3
        )
        student.compile(optimizer=tf.keras.optimizers.SGD(0.1))
        history = student.fit(dataset((x, y), unlabeled), steps_per_epoch=1, verbose=0).history
        assert history["labeled_loss"][0] == pytest.approx(expected, rel=1e-4)


def test_unlabeled_examples_without_model_noise():
    """Compares a network's losses with those without dropout: only the unlabeled half is clean."""
    inputs = tf.keras.Input([4, 4, 3])
    hidden = Dropout(0.5, noise_id="dropout")(tf.keras.layers.Flatten()(inputs))
    model = tf.keras.Model(
        inputs,
        tf.keras.layers.Dense(3, kernel_initializer=tf.keras.initializers.HeNormal(seed=1))(hidden),
    )
    (x, y), (x_u, q) = batches()
    expected = -(q * log_softmax(model(x_u).numpy())).sum(1).mean()
    labeled = -log_softmax(model(x).numpy())[np.arange(4), y].mean()
    for noise, equal in ((False, True), (True, False)):
        student = NoisyStudent(
            model, label_smoothing=0.0, weight_decay=0.0, unlabeled_model_noise=noise
        )
        student.compile(optimizer=tf.keras.optimizers.SGD(0.0))
        history = student.fit(dataset((x, y), (x_u, q)), steps_per_epoch=1, verbose=0).history
        assert (abs(history["unlabeled_loss"][0] - expected) < 1e-5) == equal
        assert abs(history["labeled_loss"][0] - labeled) > 1e-3


def test_pseudo_targets():
    q = tf.constant([[0.7, 0.2, 0.1]])
    np.testing.assert_allclose(pseudo_targets(q, "soft", 1.0, 0.1), q)
    sharpened = np.array([0.7, 0.2, 0.1]) ** 2
    np.testing.assert_allclose(
        pseudo_targets(q, "soft", 0.5, 0.1)[0], sharpened / sharpened.sum(), rtol=1e-5
    )
    np.testing.assert_allclose(pseudo_targets(q, "hard", 1.0, 0.3)[0], [0.8, 0.1, 0.1], rtol=1e-5)
    with pytest.raises(ValueError, match="soft"):
        pseudo_targets(q, "medium", 1.0, 0.0)


def test_unknown_choices():
    with pytest.raises(ValueError, match="joint"):
        combine_losses(tf.zeros([]), tf.zeros([]), 1.0, "mean")
    for choice in ({"loss_normalization": "mean"}, {"pseudo_labels": "medium"}):
        with pytest.raises(ValueError, match=f"{next(iter(choice))} must be one of"):
            NoisyStudent(small_classifier(), **choice)


def test_a_classifier_that_is_not_ours_learns_from_unlabeled_images():
    # There are two blobs a class. The labeled images show one of them only; the pseudo-labels of a
    # perfect teacher show both.
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 2, 4, 4, 3)).astype("float32")
    x = np.repeat(centers[:, 0], 4, 0) + 0.1 * rng.normal(size=(12, 4, 4, 3)).astype("float32")
    y = np.repeat(np.arange(3), 4)
    labels = rng.integers(0, 3, 120)
    x_u = centers[labels, 1] + 0.1 * rng.normal(size=(120, 4, 4, 3)).astype("float32")

    model = small_classifier()
    student = NoisyStudent(model, ema_decay=0.9)
    student.compile(optimizer="adam")
    labeled = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(12)
    unlabeled = (
        tf.data.Dataset.from_tensor_slices((x_u, np.eye(3, dtype="float32")[labels]))
        .repeat()
        .batch(24)
    )
    student.fit(tf.data.Dataset.zip((labeled, unlabeled)), steps_per_epoch=100, verbose=0)
    with student.ema.swapped():
        result = student.evaluate(
            tf.data.Dataset.from_tensor_slices((x_u, labels)).batch(50), verbose=0, return_dict=True
        )
    assert result["examples"] == 120
    assert result["top1"] > 0.95


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="built"):
        NoisyStudent(tf.keras.Sequential([tf.keras.layers.Dense(3)]))
