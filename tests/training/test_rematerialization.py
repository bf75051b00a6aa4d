"""A rematerialized step against the plain one: the same loss, gradients, noise and statistics."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from efficientnet import EfficientNet
from meta_pseudo_labels.model import MetaPseudoLabels
from nets.noise import Dropout, model_noise
from noisy_student.model import NoisyStudent
from resnet import WideResNet
from training.fixres import freeze_blocks
from training.rematerialization import derivative_pass, training_pass, weights_of

IMAGES = tf.random.stateless_uniform([6, 16, 16, 3], [1, 2], 0, 255)
LABELS = tf.constant([0, 1, 2, 0, 1, 2])


def efficientnet():
    return EfficientNet(
        "b0",
        num_classes=3,
        width=0.2,
        depth=0.3,
        stem_stride=1,
        survival_probability=0.5,
        batch_norm_momentum=0.5,
        seed=1,
    )


def wide_resnet():
    return WideResNet("wrn_10_1", num_classes=3, dropout=0.2, batch_norm_momentum=0.5, seed=1)


def step(model, rematerialize):
    """Returns loss and gradients. The model then holds the statistics after one step."""
    forward = training_pass(model, rematerialize)
    with tf.GradientTape() as tape:
        with model_noise(3, 4, tf.range(6), 6):
            logits = forward(IMAGES)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits))
    # The gradient is taken outside of the noise's context, on purpose.
    return loss, tape.gradient(loss, model.trainable_variables)


def test_loss_gradients_noise_and_statistics_are_those_of_the_plain_step():
    """Tests that they agree bit for bit eagerly, where the same operations run one by one."""
    plain, model = efficientnet(), efficientnet()
    start = [v.numpy() for v in plain.non_trainable_variables]
    drops = [layer for layer in model.layers if layer.name.endswith("_drop")]
    kept = {layer.name: [] for layer in drops}
    for layer in drops:  # tells which examples each pass keeps
        original = layer._noised

        def noised(inputs, original=original, seen=kept[layer.name]):
            seen.append(tf.reduce_any(original(tf.ones_like(inputs)) != 0, [1, 2, 3]).numpy())
            return original(inputs)

        layer._noised = noised

    loss, gradients = step(plain, False)
    again_loss, again_gradients = step(model, True)
    assert float(loss) == float(again_loss)
    for a, b, variable in zip(gradients, again_gradients, plain.trainable_variables):
        np.testing.assert_array_equal(a, b, err_msg=variable.name)
    for before, a, b in zip(start, plain.non_trainable_variables, model.non_trainable_variables):
        np.testing.assert_array_equal(a, b)
        assert (
            a.numpy() != before
        ).any()  # they moved, and once: at a momentum of 0.5 twice would show
    assert kept
    for passes in kept.values():
        first, second = passes  # the block ran twice
        np.testing.assert_array_equal(first, second)
        assert not first.all()


@pytest.mark.parametrize("make", [wide_resnet, efficientnet])
def test_the_derivative_along_a_change_of_the_weights(make):
    """By blocks and in one, against TensorFlow's forward mode.

    BatchNorm's coupling and the noise are in it.
    """
    model = make()
    variables = model.trainable_variables
    along = [tf.random.stateless_normal(v.shape, [i, 1]) for i, v in enumerate(variables)]
    before = [v.numpy() for v in model.variables]

    def run(function):
        with model_noise(3, 4, tf.range(6), 6):
            return function(IMAGES)

    direction = {v.ref(): d for v, d in zip(variables, along)}
    found = [
        run(lambda x, by_block=by_block: derivative_pass(model, by_block)(x, direction))
        for by_block in (True, False)
    ]
    for a, v in zip(before, model.variables):
        np.testing.assert_array_equal(v, a)  # the moving statistics, too
    forward = training_pass(model, False)
    with tf.autodiff.ForwardAccumulator(variables, along) as accumulator:
        logits = run(forward)
    truth = accumulator.jvp(logits).numpy()
    largest = np.abs(truth).max()
    assert largest > 0.1
    for z, slope in found:
        np.testing.assert_allclose(z, logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(slope, truth, rtol=1e-4, atol=1e-4 * largest)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-5 * largest)


def test_the_derivative_passes_fixed_blocks():
    """Tests that nothing of the stem and the first blocks is trained.

    In the second case nothing of the whole network is trained.
    """
    model = wide_resnet()
    freeze_blocks(model, 1)
    along = {v.ref(): tf.ones_like(v) for v in model.trainable_variables}
    assert 0 < len(along) < len(wide_resnet().trainable_variables)
    with model_noise(3, 4, tf.range(6), 6):
        slopes = [
            derivative_pass(model, by_block)(IMAGES, along)[1].numpy() for by_block in (True, False)
        ]
        still = derivative_pass(model, True)(IMAGES, {})[1].numpy()
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-5 * np.abs(slopes[0]).max())
    assert np.abs(slopes[0]).max() > 0.1
    assert still.shape == (6, 3) and not still.any()


def test_weights_of_another_moment_and_back():
    model = wide_resnet()
    kept, others = (
        [v.numpy() for v in model.trainable_variables],
        [v + 1.0 for v in model.trainable_variables],
    )

    @tf.function
    def inside():
        with weights_of(model.trainable_variables, others):
            return [v.read_value() for v in model.trainable_variables]

    for seen, other, v, before in zip(inside(), others, model.trainable_variables, kept):
        np.testing.assert_array_equal(seen, other)
        np.testing.assert_array_equal(v, before)


@pytest.mark.parametrize("feedback", ["soft", "per_example"])
def test_the_feedback_of_a_rematerialized_student_is_the_plain_one(feedback):
    """h_ik, and with it the teacher's step, agrees eagerly within float32's rounding.

    The networks have BatchNorm and noise.
    """
    h, weights = [], []
    for rematerialize in (False, True):
        options = {
            "feedback_weight": 100.0,
            "uda_weight": 0.0,
            "supervised_weight": 0.0,
            "weight_decay": 0.0,
        }
        trainer = MetaPseudoLabels(
            perceptron(1), perceptron(2), feedback=feedback, rematerialize=rematerialize, **options
        )
        estimator = trainer.estimator

        def record(measured, estimator=estimator):
            h.append(measured.per_label())
            return estimator.estimate(measured._replace(per_label=lambda: h[-1]))

        trainer.estimator = dataclasses.replace(estimator, estimate=record)
        trainer.compile(
            *(
                tf.keras.optimizers.SGD(0.1, 0.9, nesterov=True, global_clipnorm=1.0)
                for _ in range(2)
            )
        )
        start = [v.numpy() for v in trainer.teacher.trainable_variables]
        trainer.train_step(((VECTORS[:2], LABELS[:2]), (VECTORS[2:], VECTORS[2:] * 0.9)))
        weights.append([v.numpy() - a for v, a in zip(trainer.teacher.trainable_variables, start)])
    largest = np.abs(h[0].numpy()).max()
    assert largest > 1e-3
    np.testing.assert_allclose(h[1], h[0], rtol=1e-5, atol=1e-6 * largest)
    for a, b in zip(*weights):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def test_the_network_itself_stays_as_it_is():
    model = wide_resnet()
    config, names, logits = (
        model.get_config(),
        [w.name for w in model.weights],
        model(IMAGES).numpy(),
    )
    forward = training_pass(model, True)
    with pytest.raises(InputError, match="outside of model_noise"):
        forward(IMAGES)
    assert model.get_config() == config and [w.name for w in model.weights] == names
    np.testing.assert_array_equal(model(IMAGES), logits)


def perceptron(seed):
    """Returns two blocks for vectors, with weights, BatchNorm, noise, and a skip."""
    make = tf.keras.layers
    x = inputs = tf.keras.Input([4])
    for block in ("block1a", "block1b"):
        initializer = tf.keras.initializers.HeNormal(seed=seed + ord(block[-1]))
        y = make.Dense(4, "tanh", kernel_initializer=initializer, name=f"{block}_dense")(x)
        y = Dropout(0.3, noise_id=f"{block}_drop", name=f"{block}_drop")(
            make.BatchNormalization(momentum=0.5, name=f"{block}_bn")(y)
        )
        x = make.Add(name=f"{block}_add")([x, y])
    head = make.Dense(
        3, kernel_initializer=tf.keras.initializers.HeNormal(seed=seed), dtype="float32"
    )
    return tf.keras.Model(inputs, head(x))


VECTORS = tf.random.stateless_normal([6, 4], [3, 4])


def eagerly(rematerialize):
    """Two plain steps end before a step's graph is made. With 16 bits a graph rounds otherwise."""
    return not rematerialize and tf.keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_noisy_student_trains_alike(policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        weights = []
        for rematerialize in (False, True):
            student = NoisyStudent(
                perceptron(1), ema_decay=0.5, rematerialize=rematerialize, accumulation=2
            )
            student.compile(tf.keras.optimizers.SGD(0.1), run_eagerly=eagerly(rematerialize))
            data = tf.data.Dataset.from_tensors(
                ((VECTORS[:2], LABELS[:2]), (VECTORS[2:], tf.one_hot(LABELS, 3)[2:]))
            ).repeat()
            student.fit(data, steps_per_epoch=2, verbose=0)
            weights.append(
                [*student.model.get_weights(), *(shadow.numpy() for shadow in student.ema.shadows)]
            )
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    tolerance = 1e-5 if policy == "float32" else 0.01
    for a, b in zip(*weights):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("feedback", ["soft", "dot_product"])
def test_meta_pseudo_labels_trains_alike(feedback, policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        weights = []
        for rematerialize in (False, True):
            networks = perceptron(1), perceptron(2)
            trainer = MetaPseudoLabels(
                *networks, feedback=feedback, rematerialize=rematerialize, feedback_weight=10.0
            )
            optimizers = tf.keras.optimizers.SGD(0.1), tf.keras.optimizers.SGD(0.1)
            trainer.compile(*optimizers, run_eagerly=eagerly(rematerialize))
            data = tf.data.Dataset.from_tensors(
                ((VECTORS[:2], LABELS[:2]), (VECTORS[2:], VECTORS[2:] * 0.9))
            ).repeat()
            trainer.fit(data, steps_per_epoch=2, verbose=0)
            weights.append([w for network in networks for w in network.get_weights()])
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-5} if policy == "float32" else {"rtol": 0.02, "atol": 2e-3}
    )
    for a, b in zip(*weights):
        np.testing.assert_allclose(b, a, **tolerance)


def test_models_that_cannot_be_rematerialized():
    layers = tf.keras.layers
    inputs = tf.keras.Input([4])
    with pytest.raises(ValueError, match="no blocks"):
        training_pass(tf.keras.Model(inputs, layers.Dense(2)(inputs)), True)
    noisy = layers.Dropout(0.5, name="block1a_drop")(inputs)
    with pytest.raises(ValueError, match=r"block1a_drop of .* draws from a generator"):
        training_pass(tf.keras.Model(inputs, layers.Dense(2)(noisy)), True)
    a, b = layers.Dense(3, name="block1a_a")(inputs), layers.Dense(3, name="block1a_b")(inputs)
    with pytest.raises(ValueError, match="more than one tensor"):
        training_pass(tf.keras.Model(inputs, layers.Add()([a, b])), True)
