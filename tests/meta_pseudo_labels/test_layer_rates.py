"""The feedback of a student with a learning rate for each layer, by enumeration."""

import numpy as np
import pytest
import tensorflow as tf

from tests.meta_pseudo_labels import test_model
from tests.meta_pseudo_labels.test_accumulation import assert_alike, pair, trained
from training.layer_rates import LayerRates

RATES = LayerRates((0.1, 0.3, 1.0, 0.7, 0.5, 1.0), (False,) * 6)
"""Factors of the six variables of `test_model.classifier`."""


@pytest.mark.parametrize("estimator", ["finite_difference", *test_model.FIRST_ORDER])
def test_the_teacher_s_gradient_is_the_true_one(monkeypatch, estimator):
    """Two classes, so that 8 combinations of labels are all; without the factors it is not."""
    monkeypatch.setattr(test_model, "K", 2)
    rate = 0.02 if estimator == "finite_difference" else 0.002  # of the first order in it
    forced = test_model.Forced(
        monkeypatch,
        student_optimizer=tf.keras.optimizers.SGD(rate, 0.9, nesterov=True),
        feedback=estimator,
        **test_model.ONLY_FEEDBACK,
    )
    forced.step = forced.eager_step  # 8 steps are over before a graph of one is made
    forced.trainer.layer_rates = RATES
    expected, truth = forced.expected_and_true()
    assert test_model.cosine(expected, truth) >= 0.999
    assert np.linalg.norm(expected) / np.linalg.norm(truth) == pytest.approx(1, abs=0.02)
    if estimator != "finite_difference":
        monkeypatch.setattr(forced.trainer, "_moved", lambda gradients: gradients)
        without = forced.expected_and_true()[0]
        assert np.linalg.norm(without) / np.linalg.norm(truth) > 1.3


@pytest.mark.parametrize("feedback", ["soft", "per_example"])
def test_parts_of_a_batch_have_the_factors_too(feedback):
    """With parts, the student passes once more for the derivative by its labels."""
    whole, in_parts = [], []
    for parts, found in ((1, whole), (2, in_parts)):

        def make(parts=parts):
            trainer = pair(feedback, parts)()
            trainer.layer_rates = LayerRates((0.1, 0.3, 0.5, 1.0), (False,) * 4)
            return trainer

        found += trained(make, eager=True)
    assert_alike(whole, in_parts)
