"""A step in parts against the whole batch's: same networks, averages, baseline and metrics."""

import numpy as np
import pytest
import tensorflow as tf

from fixmatch.method import FixMatch
from meta_pseudo_labels.feedback import ESTIMATORS
from meta_pseudo_labels.model import MetaPseudoLabels
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from nets.noise import Dropout
from training.uda import UDA

K = 3
SGD = tf.keras.optimizers.SGD


def network(seed, dropout=0.3, batch_norm=False):
    dense = lambda units, i: tf.keras.layers.Dense(  # noqa: E731
        units, kernel_initializer=tf.keras.initializers.RandomNormal(0, 0.7, seed=10 * seed + i)
    )
    inputs = tf.keras.Input([4])
    hidden = dense(5, 1)(inputs)
    if batch_norm:
        hidden = tf.keras.layers.BatchNormalization(momentum=0.5)(hidden)
    return tf.keras.Model(
        inputs, dense(K, 2)(Dropout(dropout, noise_id="dropout")(tf.nn.tanh(hidden)))
    )


def batch(stored=False, copies=1):
    """Returns four labeled vectors and eight others, or `copies` copies of an equal part."""
    rng = np.random.default_rng(0)
    x, weak, strong = (
        np.tile(rng.normal(size=(n // copies, 4)), (copies, 1)).astype("float32") for n in (4, 8, 8)
    )
    y = np.tile(rng.integers(0, K, 4 // copies), copies)
    q = rng.dirichlet(np.ones(K), 8).astype("float32")
    unlabeled = (strong, q) if stored else (weak, strong)
    return (tf.constant(x), tf.constant(y)), tuple(map(tf.constant, unlabeled))


def trained(make, steps=2, eager=False, stored=False, copies=1):
    """Returns the trainer after some steps, and the metrics of the last one."""
    trainer = make()
    count = 2 if hasattr(trainer, "teacher") else 1
    optimizers = [SGD(0.3, momentum=0.9, nesterov=True, global_clipnorm=1.0) for _ in range(count)]
    trainer.compile(*optimizers, run_eagerly=eager)
    data = tf.data.Dataset.from_tensors(batch(stored, copies)).repeat()
    history = trainer.fit(data, steps_per_epoch=steps, verbose=0).history
    return trainer, {name: values[0] for name, values in history.items()}


def pair(feedback, parts, **options):
    def make():
        options_ = {
            "feedback_weight": 10.0,
            "uda_ramp_steps": 1,
            "uda_threshold": 0.4,
            "seed": 3,
            **options,
        }
        batch_norm = options_.pop("batch_norm", False)
        networks = (network(i, 0.0 if batch_norm else 0.3, batch_norm) for i in (1, 2))
        return MetaPseudoLabels(*networks, feedback=feedback, accumulation=parts, **options_)

    return make


def state(trainer, trainable):
    networks = [getattr(trainer, name) for name in ("model", "teacher") if hasattr(trainer, name)]
    if trainable:
        return [v for network in networks for v in network.trainable_variables]
    more = [trainer.baseline] if hasattr(trainer, "baseline") else []
    return [*(v for network in networks for v in network.variables), *trainer.ema.shadows, *more]


def assert_alike(whole, parts, trainable=False):
    (one, logged), (two, logged_in_parts) = whole, parts
    for a, b in zip(state(one, trainable), state(two, trainable)):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-6, err_msg=a.name)
    assert sorted(logged) == sorted(logged_in_parts)
    for name, value in logged.items():
        np.testing.assert_allclose(logged_in_parts[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    return logged


@pytest.mark.parametrize("feedback", ESTIMATORS)
def test_a_step_in_parts_is_that_of_the_whole_batch(feedback):
    """Draws, noise, clipping, average, baseline and metrics are included.

    `soft` and `per_example` take their other way to h.
    """
    labels = "soft" if feedback == "release" else "sampled"
    whole, parts = (trained(pair(feedback, n, pseudo_labels=labels), eager=True) for n in (1, 2))
    logged = assert_alike(whole, parts)
    assert (logged["feedback"] != 0) == (feedback != "none")


def test_the_same_compiled():
    assert_alike(trained(pair("soft", 1), eager=True), trained(pair("soft", 2)))


@pytest.mark.parametrize("feedback", ["soft", "cosine", "finite_difference"])
def test_batch_norm_of_equal_parts_changes_nothing_but_the_moving_statistics(feedback):
    """Each part is normalized by itself, which equals the whole batch where all parts are equal."""
    labels = "soft" if feedback == "soft" else "argmax"  # draws would make the copies differ
    options = {"batch_norm": True, "pseudo_labels": labels}
    whole, parts = (trained(pair(feedback, n, **options), eager=True, copies=2) for n in (1, 2))
    assert_alike(whole, parts, trainable=True)


def test_moving_statistics_move_with_each_part_once():
    """Tests the documented difference, in both networks.

    The teacher's first pass and the student's labeled passes leave the statistics alone.
    """
    trainer, _ = trained(pair("soft", 2, batch_norm=True), steps=1, eager=True)
    (x, _), (weak, strong) = batch()
    for model, groups in (
        (network(1, 0.0, True), (x, weak, strong)),
        (network(2, 0.0, True), (strong,)),
    ):
        expected = np.zeros(5)
        for part in (0, 1):
            images = np.concatenate([v.numpy().reshape(2, -1, 4)[part] for v in groups])
            expected = 0.5 * expected + 0.5 * model.layers[1](images).numpy().mean(0)
        found = trainer.teacher if len(groups) == 3 else trainer.student
        np.testing.assert_allclose(found.layers[2].moving_mean, expected, rtol=1e-4, atol=1e-6)


def make_other(kind, parts):
    def make():
        if kind == "reduced":
            calibrator = Calibrator(K, hidden=4)
            weights = [
                np.random.default_rng(i).normal(size=v.shape)
                for i, v in enumerate(calibrator.get_weights())
            ]
            calibrator.set_weights(weights)
            options = {"feedback_weight": 10.0, "accumulation": parts, "seed": 3}
            return ReducedMetaPseudoLabels(calibrator, network(2), **options)
        if kind == "uda":
            return UDA(network(1), uda_ramp_steps=1, uda_threshold=0.4, accumulation=parts, seed=3)
        return FixMatch(network(1), threshold=0.4, accumulation=parts, seed=3)

    return make


@pytest.mark.parametrize("kind", ["reduced", "uda", "fixmatch"])
def test_the_other_methods_in_parts(kind):
    stored = kind == "reduced"
    assert_alike(*(trained(make_other(kind, n), eager=True, stored=stored) for n in (1, 2)))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"does not divide into accumulation=3 parts"):
        trained(pair("cosine", 3), eager=True)
