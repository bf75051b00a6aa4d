"""Layer-wise learning rates and the classifier's start, against one optimizer for each variable."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.settings import make
from data.preprocessing import Preprocessing
from fixmatch.method import FixMatch
from meta_pseudo_labels.model import MetaPseudoLabels
from noisy_student.model import NoisyStudent
from training import estimates, fixres, layer_rates, model_dir, optimizers
from training.layer_rates import LayerRates
from training.settings import ADDONS, OPTIMIZER, OPTIMIZERS, needing_weights
from training.supervised import Supervised

SPEC = model_dir.ModelSpec(
    {"name": "lite0", "width": 0.2, "depth": 0.2, "survival_probability": 1.0, "dropout": 0.0},
    Preprocessing(image_size=32, style="imagenet"),
    ("a", "b", "c"),
)
DECAY = 0.5


def expected_factor(name, blocks):
    """Counts by hand: classifier 1, the layers after the last block λ, the last block λ², …"""
    part = name.partition("_")[0]
    if part.startswith("predictions"):
        return 1.0
    if part == "top":
        return DECAY
    return DECAY ** (2 + (len(blocks) if part == "stem" else len(blocks) - 1 - blocks.index(part)))


def test_the_factors_follow_the_depth():
    model = SPEC.build(seed=1)
    names = [v.name for v in model.trainable_variables]
    blocks = list(dict.fromkeys(name.partition("_")[0] for name in names if name[:5] == "block"))
    assert len(blocks) == 7
    found = layer_rates.find(model, DECAY, 0)
    assert found.factors == pytest.approx([expected_factor(name, blocks) for name in names])
    assert min(found.factors) == DECAY**9 and found.factors[-1] == 1
    assert [name for name, head in zip(names, found.of_head) if head] == names[-2:]
    assert layer_rates.find(model, 1.0, 0) is None
    fixres.freeze_blocks(model, 2)
    left = layer_rates.find(model, DECAY, 0)
    assert len(left.factors) == len(model.trainable_variables) and min(left.factors) == DECAY**6


def test_a_network_without_blocks_has_a_head_alone():
    model = tf.keras.Sequential(
        [tf.keras.layers.Dense(3, input_shape=(4,)), tf.keras.layers.Dense(2)]
    )
    assert layer_rates.find(model, 1.0, 5).of_head == (False, False, True, True)
    with pytest.raises(InputError, match="has no blocks"):
        layer_rates.find(model, 0.9, 0)


HAVE_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_as_with_a_learning_rate_for_each_variable(name):
    """The peer has an optimizer for each variable, with that variable's own learning rate."""
    if name in ADDONS and not HAVE_ADDONS:
        pytest.skip("tensorflow-addons is not installed")
    settings = make(OPTIMIZER, name=name, nesterov=name == "sgd", momentum=0.8)
    settings.trust_coefficient = 0.1
    if name != "lars":  # its trust ratio is of the weights after their decay
        settings.decoupled_weight_decay = 0.1
    factors = (0.25, 1.0, 0.5)
    start = [np.random.default_rng(i).normal(size=(3, 2)).astype("float32") for i in range(3)]
    # All gradients are equal, so one clipping norm would hide a difference; none is set.
    gradients = [
        [
            np.random.default_rng(10 * step + i).normal(size=(3, 2)).astype("float32")
            for i in (0, 1, 2)
        ]
        for step in range(4)
    ]
    ours, theirs = ([tf.Variable(value) for value in start] for _ in range(2))
    one = optimizers.build(settings, 0.05)
    one.build(ours)
    rates = LayerRates(factors, (False,) * 3)
    peers = [optimizers.build(settings, 0.05 * factor) for factor in factors]
    for of_step in gradients:
        before = [v.read_value() for v in ours]
        one.apply_gradients(zip(map(tf.constant, of_step), ours))
        rates.shorten(ours, before, one.iterations)
        for peer, g, v in zip(peers, of_step, theirs):
            peer.apply_gradients([(tf.constant(g), v)])
    for own, other, first in zip(ours, theirs, start):
        assert np.abs(own.numpy() - first).max() > 1e-3 * 0.05
        np.testing.assert_allclose(own.numpy(), other.numpy(), rtol=2e-5, atol=2e-6)


def small(seed=1):
    """Returns a network of four features with a stem, two blocks and two layers above them."""
    x = inputs = tf.keras.Input([4])
    for name in ("stem_dense", "block1a_dense", "block2a_dense", "top_dense"):
        x = tf.keras.layers.Dense(5, "tanh", name=name)(x)
        x = tf.keras.layers.BatchNormalization(name=name.replace("dense", "bn"))(x)
    made = tf.keras.Model(inputs, tf.keras.layers.Dense(3, name="predictions")(x))
    values = np.random.default_rng(seed)
    made.set_weights([values.normal(size=w.shape) ** 2 for w in made.get_weights()])
    return made


PARTS = {"stem", "block1a", "block2a", "top", "predictions"}
X = tf.random.stateless_normal([4, 4], [1, 2])
Y = tf.constant([0, 1, 2, 0])


def trainer(kind=Supervised, decay=DECAY, head_steps=2, **options):
    made = kind(small(), weight_decay=0.0, ema_decay=0.9, seed=3, **options)
    made.compile(optimizer=tf.keras.optimizers.SGD(0.1, 0.9, nesterov=True))
    made.set_layer_rates(decay, head_steps)
    made.build_optimizers()
    return made


def values(model):
    return {v.name: v.numpy() for v in model.trainable_variables}


def moved(before, after):
    """Returns the parts that have another value."""
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    return {name.partition("/")[0].partition("_")[0] for name in changed}


PSEUDO = tf.fill([4, 3], 1 / 3)


@pytest.mark.parametrize(
    ("kind", "data", "options"),
    [
        (Supervised, (X, Y), {}),
        (Supervised, (X, Y), {"accumulation": 2}),
        (NoisyStudent, ((X, Y), (X, PSEUDO)), {}),
        (FixMatch, ((X, Y), (X, X)), {}),
    ],
    ids=["supervised", "accumulation", "noisy_student", "fixmatch"],
)
def test_only_the_classifier_learns_at_first(kind, data, options):
    one = trainer(kind, **options)
    history = [values(one.model)]
    for _ in range(3):
        one.train_step(data)
        history.append(values(one.model))
    assert moved(history[0], history[1]) == moved(history[1], history[2]) == {"predictions"}
    assert moved(history[2], history[3]) == PARTS
    one.logged["update_norm"].reset_state()
    history = [values(one.model)]
    one.train_step(data)
    history.append(values(one.model))
    before, after = (np.concatenate([v.ravel() for v in found.values()]) for found in history)
    logged = float(one.logged["update_norm"].result())
    assert logged == pytest.approx(np.linalg.norm(after - before), rel=1e-4), "the real step"


def test_a_step_is_the_usual_one_times_the_factors():
    one, plain = trainer(head_steps=0), trainer(decay=1.0, head_steps=0)
    start = values(plain.model)
    one.train_step((X, Y))
    plain.train_step((X, Y))
    depth = {"predictions": 0, "top": 1, "block2a": 2, "block1a": 3, "stem": 4}
    for name, value in values(one.model).items():
        factor = DECAY ** depth[name.partition("_")[0].partition("/")[0]]
        usual = values(plain.model)[name] - start[name]
        np.testing.assert_allclose(value - start[name], factor * usual, rtol=1e-3, atol=1e-6)


def test_a_continued_training_ends_as_an_uninterrupted_one(tmp_path):
    """The end of the start and the factors follow from the step that the checkpoint holds."""
    whole, cut = trainer(), trainer()
    for _ in range(4):
        whole.train_step((X, Y))
    cut.train_step((X, Y))
    path = tf.train.Checkpoint(trainer=cut).write(str(tmp_path / "ckpt"))
    again = trainer()
    tf.train.Checkpoint(trainer=again).read(path).assert_consumed()
    for _ in range(3):
        again.train_step((X, Y))
    assert not moved(values(whole.model), values(again.model))


def test_both_networks_of_meta_pseudo_labels():
    pair = MetaPseudoLabels(small(1), small(2), weight_decay=0.0)
    pair.compile(tf.keras.optimizers.SGD(0.1), tf.keras.optimizers.SGD(0.1))
    pair.set_layer_rates(1.0, 1)
    networks = (pair.teacher, pair.student)
    for expected in ({"predictions"}, PARTS):
        before = [values(network) for network in networks]
        pair.train_step(((X, Y), (X, 2 * X)))
        after = [values(network) for network in networks]
        assert [moved(*both) for both in zip(before, after)] == [expected] * 2


def test_a_frozen_batch_norm_keeps_all_it_has_and_normalizes_with_it():
    model = small()
    fixres.freeze_batch_norm(model)
    norms = [v.numpy() for layer in model.layers if "bn" in layer.name for v in layer.weights]
    assert len(norms) == 4 * 4
    np.testing.assert_array_equal(model(X, training=True).numpy(), model(X, training=False).numpy())
    made = Supervised(model, ema_decay=0.5, weight_decay=0.1)
    made.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    made.train_step((X, Y))
    after = [v.numpy() for layer in model.layers if "bn" in layer.name for v in layer.weights]
    assert all(np.array_equal(a, b) for a, b in zip(norms, after))


def test_the_dry_run_counts_what_is_trained():
    model = SPEC.build(seed=1)
    fixres.freeze_blocks(model, 2)
    fixres.freeze_batch_norm(model)
    counted = estimates.count_parameters(SPEC.architecture, 3, 32, 2, frozen_batch_norm=True)
    assert counted == estimates.parameters_of(model)
    assert counted.trained < estimates.count_parameters(SPEC.architecture, 3, 32, 2).trained


def test_the_settings_that_need_weights():
    section = ConfigDict({"layer_decay": 0.9, "frozen_batch_norm": True, "head_steps": 7})
    assert needing_weights(section) == ["frozen_batch_norm", "layer_decay", "head_steps"]
    assert needing_weights({"frozen_blocks": 0, "layer_decay": 1.0}) == []
