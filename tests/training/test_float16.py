"""Loss scaling under mixed_float16: steps against float32's, and steps that overflow.

The steps are those of both methods.
"""

import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from efficientnet import EfficientNet
from meta_pseudo_labels.model import MetaPseudoLabels
from noisy_student.model import NoisyStudent
from training import optimizers
from training.fit import fit
from training.uda import UDA

K = 3
SGD = tf.keras.optimizers.SGD
LossScale = tf.keras.mixed_precision.LossScaleOptimizer


@contextlib.contextmanager
def policy(name):
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def classifier(seed):
    dense = lambda units, i: tf.keras.layers.Dense(  # noqa: E731
        units, kernel_initializer=tf.keras.initializers.RandomNormal(0, 0.5, seed=10 * seed + i)
    )
    inputs = tf.keras.Input([4])
    hidden = tf.keras.layers.BatchNormalization()(dense(8, 1)(inputs))
    return tf.keras.Model(inputs, dense(K, 2)(tf.keras.layers.Activation("tanh")(hidden)))


def batch():
    rng = np.random.default_rng(0)
    x, weak, strong = (tf.constant(rng.normal(size=(n, 4)), tf.float32) for n in (8, 16, 16))
    return (
        (x, tf.constant(rng.integers(0, K, 8))),
        (weak, strong),
        tf.constant(rng.dirichlet(np.ones(K), 16), tf.float32),
    )


def noisy_student(scale=2.0**15, **options):
    (x, y), (_, x_u), q = batch()
    trainer = NoisyStudent(classifier(1), **options)
    return compiled(trainer, SGD(0.1, momentum=0.9), scale=scale), ((x, y), (x_u, q))


def uda(scale=2.0**15):
    return (
        compiled(
            UDA(classifier(1), uda_ramp_steps=0, uda_threshold=0.3),
            SGD(0.1, momentum=0.9),
            scale=scale,
        ),
        batch()[:2],
    )


def meta_pseudo_labels(feedback, scale=2.0**15, **options):
    options = {"feedback": feedback, "uda_ramp_steps": 0, "uda_threshold": 0.3, **options}
    trainer = MetaPseudoLabels(classifier(1), classifier(2), **options)
    return compiled(trainer, SGD(0.1, momentum=0.9), SGD(0.1), scale=scale), batch()[:2]


def compiled(trainer, *made, scale):
    """Returns the trainer, compiled under mixed_float16.

    The first optimizer has that loss scale.
    """
    if tf.keras.mixed_precision.global_policy().name == "mixed_float16":
        made = (LossScale(made[0], initial_scale=scale), *made[1:])
    trainer.compile(*made)
    trainer.build_optimizers()
    return trainer


def moves(trainer, data, steps=3, graph=False):
    """Returns how far the weights move. Eager steps end before a step's graph is made."""
    before = [v.numpy() for v in trainer.trainable_variables]
    step = lambda: trainer.train_step(data)  # noqa: E731
    step = tf.function(step) if graph else step
    for _ in range(steps):
        step()
    return np.concatenate(
        [(v.numpy() - b).ravel() for v, b in zip(trainer.trainable_variables, before)]
    )


MADE = {
    "noisy_student": noisy_student,
    "accumulated": lambda **options: noisy_student(accumulation=2, **options),
    "uda": uda,
    **{
        name: lambda name=name, weight=weight, **options: meta_pseudo_labels(
            name, feedback_weight=weight, **options
        )
        for name, weight in {
            "finite_difference": 1,
            "dot_product": 1,
            "cosine": 20,
            "per_example": 20,
            "soft": 20,
            "none": 0,
        }.items()
    },
}


@pytest.mark.parametrize("name", MADE)
def test_steps_are_those_of_float32(name):
    expected = moves(*MADE[name]())
    with policy("mixed_float16"):
        trainer, data = MADE[name]()
    found = moves(trainer, data, graph=True)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    assert (found != expected).any()  # or nothing was rounded
    scales = [f"{prefix}loss_scale" for prefix in trainer.optimizers]
    assert [trainer.optimizer_settings[key] for key in scales] == [2.0**15] * len(scales)


@pytest.mark.parametrize("feedback", ["dot_product", "per_example", "soft"])
def test_a_feedback_that_float16_could_not_hold(feedback):
    """A student that is nearly right has small gradients.

    h is a product of two of them, and smaller still.
    """

    def measured():
        trainer, data = meta_pseudo_labels(feedback, baseline_decay=1.0)
        for network in (trainer.teacher, trainer.student):
            network.layers[-1].kernel.assign(0 * network.layers[-1].kernel)
            network.layers[-1].bias.assign([14.0, 0.0, 0.0])
        (x, y), views = data
        trainer.train_step(((x, tf.zeros_like(y)), views))
        return float(trainer.logged["feedback"].result())

    expected = measured()
    with policy("mixed_float16"):
        found = measured()
    assert 0 < expected < 6e-8  # float16's smallest number
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("feedback", ["dot_product", "soft"])
def test_a_labeled_gradient_that_overflows_alone_lowers_its_own_scale(feedback):
    with policy("mixed_float16"):
        trainer, data = meta_pseudo_labels(feedback, baseline_decay=1.0)
    step = tf.function(lambda: trainer.train_step(data))
    trainer.labeled_scale.assign(2.0**40)
    counts = []
    for _ in range(30):
        trainer.logged["feedback"].reset_state()
        step()
        counts.append(float(trainer.logged["feedback"].count.read_value()))
    left_out = counts.index(1.0)
    assert left_out > 15 and counts == [0.0] * left_out + [1.0] * (30 - left_out)
    assert float(trainer.labeled_scale) == 2.0**12  # its largest
    # The student's own gradients are as they were.
    assert trainer.optimizer_settings["loss_scale"] == 2.0**15
    trainer.labeled_scale.assign(2.0**6)
    step()
    assert float(trainer.labeled_scale) == pytest.approx(2.0**6 * 2.0 ** (1 / 2000), rel=1e-6)


def test_a_scale_only_where_it_is_used():
    with policy("mixed_float16"):
        trainer, _ = meta_pseudo_labels("finite_difference")
    assert trainer.labeled_scale is None and "labeled_loss_scale" not in trainer.optimizer_settings


def test_a_network_of_float16_is_not_trained_without_a_scale():
    with policy("mixed_float16"):
        model = classifier(1)
    with pytest.raises(
        ValueError, match=r"made under mixed_float16; make NoisyStudent, .* under it too"
    ):
        NoisyStudent(model).compile("sgd")
    with pytest.raises(ValueError, match=r"make MetaPseudoLabels"):
        MetaPseudoLabels(model, classifier(2)).compile("sgd", "sgd")


def test_the_logged_rate_goes_on_where_a_step_is_left_out():
    rates = tf.keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
    (x, y), (_, x_u), q = batch()
    with policy("mixed_float16"):
        trainer = compiled(NoisyStudent(classifier(1)), SGD(rates), scale=2.0**40)
    logged = []
    for _ in range(3):
        trainer.train_step(((x, y), (x_u, q)))
        logged.append(trainer.optimizer_settings["learning_rate"])
    np.testing.assert_allclose(logged, [1.0, 0.9, 0.8], rtol=1e-6)


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
def test_pixels_reach_the_network_unrounded(name):
    with policy(name):
        inputs = tf.keras.Input([4], dtype="float32")
        model = tf.keras.Model(
            inputs, tf.keras.layers.Lambda(lambda x: x - 200.0, dtype="float32")(inputs)
        )
        trainer = NoisyStudent(model)
    pixels = tf.constant([[200.3, 200.6, 201.1, 199.9]])
    np.testing.assert_array_equal(trainer(pixels), model(pixels))


def test_small_gradients_do_not_vanish():
    layer = tf.keras.layers.Dense(1, use_bias=False, dtype="mixed_float16")
    layer.build([1, 1])
    optimizer = LossScale(SGD(1.0))
    with tf.GradientTape(persistent=True) as tape:
        loss = 1e-9 * tf.reduce_sum(tf.cast(layer(tf.ones([1, 1])), tf.float32))
    variables = layer.trainable_variables
    assert tape.gradient(loss, variables)[0].numpy().item() == 0.0
    assert optimizers.gradient(tape, loss, variables, optimizer)[0].numpy().item() == pytest.approx(
        1e-9, rel=0.01
    )
    assert optimizers.gradient(tape, loss, variables, SGD(1.0))[0].numpy().item() == 0.0


@functools.lru_cache(maxsize=1)
def teacher_without_feedback():
    """Returns the teacher's weights after a step that overflows: what its other losses do to it."""
    with policy("mixed_float16"):
        silent, data = MADE["none"](scale=2.0**40)
    moves(silent, data, steps=1)
    return [v.numpy() for v in silent.teacher.trainable_variables]


@pytest.mark.parametrize("name", MADE)
def test_a_step_that_overflows_is_left_out_and_counts(name):
    with policy("mixed_float16"):
        trainer, data = MADE[name](scale=2.0**40)
    student = [v.numpy() for v in trainer.model.trainable_variables]
    if isinstance(trainer, MetaPseudoLabels):
        trainer.baseline.assign(0.25 if name != "soft" else 0.0)
    moves(trainer, data, steps=1)
    for average in (contextlib.nullcontext(), trainer.ema.swapped()):
        with average:
            for v, before in zip(trainer.model.trainable_variables, student):
                np.testing.assert_array_equal(v.numpy(), before)
    assert int(trainer.optimizer.iterations) == 1
    assert trainer.optimizer_settings["loss_scale"] == 2.0**39
    assert float(trainer.logged["gradient_norm"].count.read_value()) == 0.0  # the log leaves it out
    assert all(np.isfinite(float(metric.result())) for metric in trainer.logged.values())
    if isinstance(trainer, MetaPseudoLabels):
        assert int(trainer.teacher_optimizer.iterations) == 1
        assert float(trainer.baseline) == pytest.approx(0.25 if name != "soft" else 0.0)
        for v, alone in zip(trainer.teacher.trainable_variables, teacher_without_feedback()):
            np.testing.assert_allclose(v.numpy(), alone, rtol=1e-6, atol=1e-7)


def test_gradients_that_overflow_at_every_scale_end_the_run(tmp_path):
    steep = tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: 1e4 * upstream))
    with policy("mixed_float16"):
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Dense(K, input_shape=(4,)),
                *[tf.keras.layers.Lambda(steep) for _ in range(2)],
            ]
        )
        trainer = NoisyStudent(model)
        trainer.compile(LossScale(SGD(0.1), initial_scale=8))
    data = lambda start: tf.data.Dataset.from_tensors(batch()[0]).repeat()  # noqa: E731
    with pytest.raises(
        InputError,
        match=(
            r"loss_scale has fallen to 1 at step 4 .*; there is no checkpoint yet\. Lower .* or"
            r" train in mixed_bfloat16"
        ),
    ):
        fit(
            trainer,
            data,
            tmp_path / "w",
            steps=8,
            images_per_step=8,
            log_every=4,
            checkpoint_every=4,
        )
    with policy("mixed_float16"):  # a scale of 1 that was asked for has fallen from nowhere
        trainer = NoisyStudent(classifier(1))
        trainer.compile(LossScale(SGD(0.1), dynamic=False, initial_scale=1.0))
    fit(
        trainer,
        data,
        tmp_path / "fixed",
        steps=2,
        images_per_step=8,
        log_every=2,
        checkpoint_every=2,
    )


def test_an_efficientnet_trains_in_float16():
    """Its layers, BatchNorm in float32, noise and rematerialization work in float16.

    One step is float32's within rounding.
    """
    rng = np.random.default_rng(0)
    x, y = (
        tf.constant(rng.uniform(0, 255, (8, 32, 32, 3)), tf.float32),
        tf.constant([0, 1, 2, 0] * 2),
    )
    moved = []
    for name in ("float32", "mixed_float16"):
        with policy(name):
            model = EfficientNet("b0", num_classes=K, width=0.25, depth=0.3, stem_stride=1, seed=1)
            trainer = compiled(
                NoisyStudent(model, rematerialize=True, weight_decay=0.0), SGD(0.01), scale=2.0**10
            )
        moved.append(moves(trainer, (x, y), steps=1, graph=name == "mixed_float16"))
    assert np.isfinite(moved[1]).all()
    assert moved[0] @ moved[1] / np.linalg.norm(moved[0]) / np.linalg.norm(moved[1]) > 0.99
