"""The feedback of a student whose layers have learning rates of their own, by enumeration."""

import numpy as np
import pytest
import tensorflow as tf

from tests.meta_pseudo_labels import test_model
from tests.meta_pseudo_labels.test_accumulation import pair, trained
from training.layer_rates import LayerRates

RATES = LayerRates((0.1, 0.3, 1.0, 2.0, 0.5, 1.0), (False,) * 6)
"""Factors of the six variables of `test_model.classifier`."""


@pytest.mark.parametrize("estimator", ["finite_difference", *test_model.FIRST_ORDER])
def test_the_teacher_s_gradient_is_the_true_one(monkeypatch, estimator):
    """Two classes, so that 8 combinations of labels are all; without the factors it is not."""
    monkeypatch.setattr(test_model, "K", 2)
    forced = test_model.Forced(
        monkeypatch,
        student_optimizer=tf.keras.optimizers.SGD(0.02, 0.9, nesterov=True),
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
        assert test_model.cosine(forced.expected_and_true()[0], truth) < 0.99


@pytest.mark.parametrize("feedback", ["soft", "per_example"])
def test_parts_of_a_batch_have_the_factors_too(feedback):
    """With parts, the student passes once more for the derivative by its labels."""
    networks = []
    for parts in (1, 2):

        def make(parts=parts):
            trainer = pair(feedback, parts)()
            trainer.layer_rates = LayerRates((0.1, 0.3, 0.5, 1.0), (False,) * 4)
            return trainer

        trainer, _ = trained(make)
        networks.append([v.numpy() for v in trainer.variables])
    for whole, in_parts in zip(*networks):
        np.testing.assert_allclose(whole, in_parts, rtol=2e-5, atol=1e-6)
