"""Reduced Meta Pseudo Labels: its start, its calibrator's gradient and the stage.

The gradient is compared with finite differences.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from cli import recipes, work_dirs
from cli.errors import InputError
from data import prepare, protos, records
from meta_pseudo_labels import feedback
from meta_pseudo_labels.reduced import TINY, Calibrator, ReducedMetaPseudoLabels
from tests import networks
from training import model_dir
from training.checkpoints import Checkpoints
from workflow import train

K, B, B_U = 3, 5, 3


def predictions(rows=B_U, classes=K):
    q = (
        np.random.default_rng(3)
        .dirichlet(np.ones(classes) / 2, rows)
        .astype(np.float16)
        .astype(np.float32)
    )
    return q / q.sum(1, keepdims=True)


def test_at_the_start_the_labels_are_the_stored_predictions():
    q = predictions(200, 10)
    z = Calibrator(10)(tf.math.log(q + TINY))
    np.testing.assert_allclose(tf.nn.softmax(z), q, atol=2e-5)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Problem:
    """Returns a linear student on four features, and a calibrator that is no longer the identity.

    numpy can follow the student's one step.
    """

    def __init__(self, nesterov=False, **options):
        self.rate = (
            0.95 if nesterov else 0.5
        )  # of the first step: with Nesterov's momentum 0.9 it is 1.9 times the learning rate
        rng = np.random.default_rng(0)
        self.x, self.x_u = (rng.normal(size=(n, 4)).astype("float32") for n in (B, B_U))
        self.y, self.q, self.w = (
            rng.integers(0, K, B),
            predictions(),
            rng.normal(size=(4, K)).astype("float32"),
        )
        inputs = tf.keras.Input([4])
        student = tf.keras.Model(inputs, tf.keras.layers.Dense(K, use_bias=False)(inputs))
        student.set_weights([self.w])
        calibrator = Calibrator(K, hidden=4, layers=1)
        start = [rng.normal(size=v.shape) / 2 for v in calibrator.get_weights()]
        calibrator.set_weights(start)
        self.start = [v.copy() for v in calibrator.get_weights()]
        self.trainer = ReducedMetaPseudoLabels(
            calibrator, student, **{"weight_decay": 0.0, "baseline_decay": 1.0, **options}
        )
        student_optimizer = tf.keras.optimizers.SGD(
            0.5, 0.9 if nesterov else 0.0, nesterov=nesterov
        )
        self.trainer.compile(student_optimizer, tf.keras.optimizers.SGD(1.0))

    def gradient(self):
        """Returns what the calibrator moves by in a step from the start, at learning rate 1."""
        self.trainer.teacher.set_weights(self.start)
        self.trainer.student.set_weights([self.w])
        self.trainer.train_step(
            (
                (tf.constant(self.x), tf.constant(self.y)),
                (tf.constant(self.x_u), tf.constant(self.q)),
            )
        )
        return np.concatenate(
            [(a - b).ravel() for a, b in zip(self.start, self.trainer.teacher.get_weights())]
        )

    def loss_after(self, labels):
        """Returns L_l(θ_S') by hand."""
        w = self.w - self.rate * self.x_u.T @ (softmax(self.x_u @ self.w) - labels) / B_U
        return -np.mean(np.log(softmax(self.x @ w)[np.arange(B), self.y]))

    def objective(self, weights, soft):
        """Returns J of the calibrator with these weights."""
        w1, b1, w2, b2 = (v.astype(np.float64) for v in weights)
        x = np.log(self.q.astype(np.float64) + TINY)
        p = softmax(x + np.maximum(x / 4 @ w1 + b1, 0) @ w2 + b2)
        if soft:
            return self.loss_after(p)
        chosen = itertools.product(range(K), repeat=B_U)
        return sum(
            np.prod(p[np.arange(B_U), list(c)]) * self.loss_after(np.eye(K)[list(c)])
            for c in chosen
        )

    def truth(self, soft):
        """Returns ∇J by central differences."""
        found, epsilon = [], 1e-5
        for i, v in enumerate(self.start):
            for place in np.ndindex(v.shape):
                moved = [[w.astype(np.float64) for w in self.start] for _ in range(2)]
                moved[0][i][place] += epsilon
                moved[1][i][place] -= epsilon
                found.append(
                    (self.objective(moved[0], soft) - self.objective(moved[1], soft))
                    / (2 * epsilon)
                )
        return np.array(found)


def test_without_feedback_the_calibrator_stays_as_it_is():
    """Tests that weight decay is the student's alone."""
    np.testing.assert_array_equal(Problem(feedback="none", weight_decay=0.1).gradient(), 0.0)


def test_drawn_labels_give_the_true_gradient_in_expectation(monkeypatch):
    """Enumerates all 27 combinations of labels, each weighted by its probability."""
    problem, given = Problem(feedback="finite_difference"), []
    monkeypatch.setattr(
        feedback, "draw_pseudo_labels", lambda kind, logits, uniform: tf.constant(given[-1])
    )
    p = softmax(problem.trainer.teacher(tf.math.log(problem.q + TINY)).numpy())
    expected = 0.0
    for c in itertools.product(range(K), repeat=B_U):
        given.append(np.eye(K, dtype="float32")[list(c)])
        expected = expected + np.prod(p[np.arange(B_U), list(c)]) * problem.gradient()
    np.testing.assert_allclose(expected, problem.truth(soft=False), rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_soft_labels_give_the_true_gradient(nesterov):
    problem = Problem(nesterov, feedback="soft", pseudo_labels="soft")
    np.testing.assert_allclose(problem.gradient(), problem.truth(soft=True), rtol=2e-3, atol=2e-6)


SMALL = [
    "--config=configs/meta_pseudo_labels/digits.py:reduced",
    "--config.data.out_of_domain=20",
    f"--config.train.student.model.name={networks.NAME}",
    "--config.train.steps=6",
    "--config.train.batch_size=4",
    "--config.train.log_every=1",
    "--config.train.checkpoint_every=2",
    *(f"--config.train.{network}.schedule.warmup_steps=1" for network in ("teacher", "student")),
    "--config.train.student.schedule.wait_steps=1",
]
WHERE = {"strategy": "auto", "cpu_devices": 1, "tpu": "", "profile_steps": None}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Prepares data, and their unlabeled images with made-up predictions."""
    root = tmp_path_factory.mktemp("reduced")
    data, labeled_by_teacher = root / "data", root / "pseudo_labeled"
    prepare.main(recipes.from_flags(*SMALL), str(data))
    unlabeled, names = (
        records.read_manifest(data / "unlabeled"),
        records.read_manifest(data / "labeled").label_names,
    )
    rows = iter(predictions(unlabeled.num_records, 10))

    def examples():
        for path in unlabeled.paths:
            for serialized in records.read_shard(path):
                features = tf.train.Example.FromString(serialized).features.feature
                key, encoded = (
                    features[f"image/{name}"].bytes_list.value[0] for name in ("key", "encoded")
                )
                yield protos.make_example(encoded, key.decode(), probabilities=next(rows))

    records.write_split(
        labeled_by_teacher,
        "pseudo_labeled",
        examples(),
        1,
        unlabeled.num_records,
        kind="pseudo_labeled",
        label_names=names,
    )
    work_dirs.finish(labeled_by_teacher, {"total": unlabeled.num_records})
    return {"data": str(data), "pseudo_labeled": str(labeled_by_teacher)}


def run(directory, inputs, *overrides):
    train.main(recipes.from_flags(*SMALL, *overrides), str(directory), **inputs, **WHERE)


def test_an_interrupted_run_ends_bit_identical(inputs, tmp_path, monkeypatch):
    run(tmp_path / "whole", inputs)
    save = Checkpoints.save

    def killed(self, step, *best):
        save(self, step, *best)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", inputs)
    monkeypatch.setattr(Checkpoints, "save", save)
    run(tmp_path / "parts", inputs)
    logs = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")
    ]
    assert len(logs[0]) == len(logs[1]) == 6
    for a, b in zip(
        *(model_dir.load(tmp_path / name)[0].get_weights() for name in ("whole", "parts"))
    ):
        np.testing.assert_array_equal(a, b)


def test_the_method_and_its_input_need_each_other(inputs, tmp_path):
    with pytest.raises(
        InputError,
        match=r"--pseudo_labeled is missing: reduced_meta_pseudo_labels needs .* run_balance\.sh",
    ):
        run(tmp_path / "w", {"data": inputs["data"]})
    with pytest.raises(
        InputError,
        match="--pseudo_labeled has no effect on train, which trains by meta_pseudo_labels",
    ):
        run(tmp_path / "w", inputs, "--config.train.method=meta_pseudo_labels")
    with pytest.raises(
        InputError, match=r"train\.method is 'little'; it can be supervised, noisy_student, uda"
    ):
        run(tmp_path / "w", inputs, "--config.train.method=little")
    assert not (tmp_path / "w").exists()
