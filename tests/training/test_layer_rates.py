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
from training import dry_run, fixres, layer_rates, model_dir, optimizers
from training.layer_rates import LayerRates
from training.settings import ADDONS, OPTIMIZER, OPTIMIZERS
from training.supervised import Supervised

SPEC = model_dir.ModelSpec(
    {"name": "lite0", "width": 0.2, "depth": 0.2, "survival_probability": 1.0, "dropout": 0.0},
    Preprocessing(image_size=32, style="imagenet"),
    ("a", "b", "c"),
)
IMAGES = tf.random.stateless_uniform([4, 32, 32, 3], [1, 2], 0, 255)
LABELS = tf.constant([0, 1, 2, 0])
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
    if name != "lars":  # its trust ratio is of the weights after their decay
        settings.decoupled_weight_decay = 0.1
    factors = (0.25, 1.0, 0.5)
    start = [np.random.default_rng(i).normal(size=(3, 2)).astype("float32") for i in range(3)]
    # All gradients are alike, so that one clipping norm would not tell them apart; none is set.
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


def trainer(kind=Supervised, decay=DECAY, head_steps=2, **options):
    made = kind(SPEC.build(seed=1), weight_decay=0.0, ema_decay=0.9, seed=3, **options)
    made.compile(optimizer=tf.keras.optimizers.SGD(0.1, 0.9, nesterov=True))
    made.set_layer_rates(decay, head_steps)
    made.build_optimizers()
    return made


def values(model):
    return {v.name: v.numpy() for v in model.trainable_variables}


def moved(before, after):
    return {
        name.partition("/")[0] for name in before if not np.array_equal(before[name], after[name])
    }


PSEUDO = tf.fill([4, 3], 1 / 3)


@pytest.mark.parametrize(
    ("kind", "data", "options"),
    [
        (Supervised, (IMAGES, LABELS), {}),
        (Supervised, (IMAGES, LABELS), {"accumulation": 2}),
        (NoisyStudent, ((IMAGES, LABELS), (IMAGES, PSEUDO)), {}),
        (FixMatch, ((IMAGES, LABELS), (IMAGES, IMAGES)), {}),
    ],
    ids=["supervised", "accumulation", "noisy_student", "fixmatch"],
)
def test_only_the_classifier_learns_at_first(kind, data, options):
    one = trainer(kind, **options)
    step = tf.function(one.train_step)
    history = [values(one.model)]
    for _ in range(3):
        step(data)
        history.append(values(one.model))
    assert moved(history[0], history[1]) == moved(history[1], history[2]) == {"predictions"}
    assert len(moved(history[2], history[3])) > 20
    with one.ema.swapped():
        assert not moved(values(one.model), values(one.model))
    logged = one.logged["update_norm"].result().numpy()
    assert 0 < logged < np.inf


def test_a_continued_training_ends_as_an_uninterrupted_one(tmp_path):
    """The end of the start and the factors follow from the step that the checkpoint holds."""
    whole, cut = trainer(), trainer()
    for _ in range(4):
        whole.train_step((IMAGES, LABELS))
    cut.train_step((IMAGES, LABELS))
    path = tf.train.Checkpoint(trainer=cut).write(str(tmp_path / "ckpt"))
    again = trainer()
    tf.train.Checkpoint(trainer=again).read(path).assert_consumed()
    for _ in range(3):
        again.train_step((IMAGES, LABELS))
    assert not moved(values(whole.model), values(again.model))


def test_both_networks_of_meta_pseudo_labels():
    pair = MetaPseudoLabels(SPEC.build(seed=1), SPEC.build(seed=2), weight_decay=0.0)
    pair.compile(tf.keras.optimizers.SGD(0.1), tf.keras.optimizers.SGD(0.1))
    pair.set_layer_rates(1.0, 1)
    before = values(pair.teacher), values(pair.student)
    step = tf.function(pair.train_step)
    step(((IMAGES, LABELS), (IMAGES, IMAGES)))
    after = values(pair.teacher), values(pair.student)
    assert [moved(*both) for both in zip(before, after)] == [{"predictions"}] * 2
    step(((IMAGES, LABELS), (IMAGES, IMAGES)))
    assert all(
        len(moved(old, values(net))) > 20 for old, net in zip(after, (pair.teacher, pair.student))
    )


def test_a_frozen_batch_norm_keeps_all_it_has_and_normalises_with_it():
    model = SPEC.build(seed=1)
    fixres.freeze_batch_norm(model)
    norms = [v.numpy() for layer in model.layers if "bn" in layer.name for v in layer.weights]
    assert len(norms) > 40
    np.testing.assert_array_equal(
        model(IMAGES, training=True).numpy(), model(IMAGES, training=False).numpy()
    )
    made = Supervised(model, ema_decay=0.5, weight_decay=0.1)
    made.compile(optimizer=tf.keras.optimizers.SGD(0.1))
    made.train_step((IMAGES, LABELS))
    after = [v.numpy() for layer in model.layers if "bn" in layer.name for v in layer.weights]
    assert all(np.array_equal(a, b) for a, b in zip(norms, after))


def test_the_dry_run_counts_what_is_trained():
    model = SPEC.build(seed=1)
    fixres.freeze_blocks(model, 2)
    fixres.freeze_batch_norm(model)
    counted = dry_run.count_parameters(SPEC.architecture, 3, 32, 2, frozen_batch_norm=True)
    assert counted == dry_run.parameters_of(model)
    assert counted.trained < dry_run.count_parameters(SPEC.architecture, 3, 32, 2).trained


def test_a_training_takes_them_from_its_section(tmp_path):
    section = ConfigDict({"layer_decay": 0.9, "frozen_batch_norm": True, "head_steps": 7})
    from training.settings import needing_weights

    assert needing_weights(section) == ["frozen_batch_norm", "layer_decay", "head_steps"]
    assert needing_weights({"frozen_blocks": 0, "layer_decay": 1.0}) == []
