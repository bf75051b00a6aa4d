"""Keras's promises that the methods' models keep, and requests that they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from meta_pseudo_labels.model import MetaPseudoLabels
from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
from noisy_student.model import NoisyStudent
from training.uda import UDA

K = 3


def classifier(seed: int) -> tf.keras.Model:
    initializer = tf.keras.initializers.RandomNormal(seed=seed)
    inputs = tf.keras.Input([4])
    return tf.keras.Model(inputs, tf.keras.layers.Dense(K, kernel_initializer=initializer)(inputs))


TRAINERS = {
    "NoisyStudent": lambda: (NoisyStudent(classifier(1)), ("sgd",)),
    "UDA": lambda: (UDA(classifier(1)), ("sgd",)),
    "MetaPseudoLabels": lambda: (MetaPseudoLabels(classifier(1), classifier(2)), ("sgd", "sgd")),
    "ReducedMetaPseudoLabels": lambda: (
        ReducedMetaPseudoLabels(Calibrator(K, hidden=2), classifier(2)),
        ("sgd", "sgd"),
    ),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_what_compile_cannot_honor_is_refused(name):
    trainer, optimizers = TRAINERS[name]()
    unused = {
        "loss": "mse",
        "metrics": ["accuracy"],
        "loss_weights": [1.0],
        "weighted_metrics": ["accuracy"],
    }
    for option, value in unused.items():
        message = rf"{name}\.compile does not use {option}=.*compile and evaluate trainer\.model"
        with pytest.raises(ValueError, match=message):
            trainer.compile(*optimizers, **{option: value})
    with pytest.raises(TypeError):
        trainer.compile(*optimizers, los="mse")
    trainer.compile(*optimizers, loss=None, metrics=[], run_eagerly=True)
    assert trainer.run_eagerly


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize("name", TRAINERS)
def test_saving_a_trainer_is_refused(name, tmp_path):
    trainer, optimizers = TRAINERS[name]()
    trainer.compile(*optimizers)
    saves = (
        lambda: trainer.save(tmp_path / "trainer.keras"),
        lambda: trainer.export(str(tmp_path / "trainer")),
        lambda: tf.keras.models.save_model(trainer, tmp_path / "trainer.keras"),
    )
    for save in saves:
        with pytest.raises(ValueError, match=rf"{name} is .*; save trainer\.model "):
            save()
    for file in ("trainer.h5", "trainer.weights.h5"):
        with pytest.raises(ValueError, match="HDF5 would leave the averaged weights out"):
            trainer.save_weights(tmp_path / file)
    assert not [path for path in tmp_path.iterdir() if path.stat().st_size]
    trainer.model.save(tmp_path / "model.keras")


def vectors():
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(6, 4)), tf.float32)
    return tf.data.Dataset.from_tensors((images, tf.constant(rng.integers(0, K, 6))))


def test_weights_that_are_saved_hold_the_average_and_the_slots(tmp_path):
    trainers = [NoisyStudent(classifier(seed)) for seed in (1, 2)]
    for trainer in trainers:
        trainer.compile(tf.keras.optimizers.SGD(0.1, 0.9))
        trainer.build_optimizers()
    trainers[0].fit(vectors(), verbose=0)
    trainers[0].save_weights(tmp_path / "weights")
    trainers[1].load_weights(tmp_path / "weights")
    states = [[*t.model.variables, *t.ema.shadows, *t.optimizer.variables] for t in trainers]
    for saved, loaded in zip(*states):
        np.testing.assert_array_equal(saved, loaded)


def test_the_progress_bar_shows_losses_and_accuracy_and_the_history_has_all(capsys):
    trainer = NoisyStudent(classifier(1))
    trainer.compile("sgd")
    for verbose in (1, 2):
        history = trainer.fit(vectors(), validation_data=vectors(), verbose=verbose).history
        shown = capsys.readouterr().out
        for name in ("loss", "labeled_loss", "top1", "val_loss", "val_top1"):
            assert f" {name}: " in shown
            assert name in history
        for name in ("gradient_norm", "parameter_norm", "update_norm", "l2", "confidence"):
            assert name not in shown
            assert name in history
    trainer.fit(vectors(), verbose=0)
    assert not capsys.readouterr().out


def test_a_progress_bar_of_the_user_s_own_stays(capsys):
    trainer = NoisyStudent(classifier(1))
    trainer.compile("sgd")
    own = tf.keras.callbacks.ProgbarLogger(count_mode="steps")
    trainer.fit(vectors(), verbose=2, callbacks=own)
    shown = capsys.readouterr().out
    assert shown.count(" gradient_norm: ") == shown.count(" labeled_loss: ") == 1
