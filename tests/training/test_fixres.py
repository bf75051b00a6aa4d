"""Frozen blocks stay as they are, noise and statistics included.

A model at another resolution keeps its weights.
"""

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.work_dirs import finish
from data.preprocessing import Preprocessing
from nets.noise import model_noise
from noisy_student.model import NoisyStudent
from training import fixres, model_dir

SPEC = model_dir.ModelSpec(
    {
        "name": "b0",
        "width": 0.25,
        "depth": 0.5,
        "survival_probability": 0.5,
        "batch_norm_momentum": 0.5,
    },
    Preprocessing(image_size=32, style="imagenet"),
    ("a", "b", "c"),
)
IMAGES = tf.random.stateless_uniform([4, 32, 32, 3], [1, 2], 0, 255)
FROZEN = 6  # block1a to block5a and a block with stochastic depth among them


def values(model):
    return {weight.name: weight.numpy() for weight in model.weights}


@pytest.mark.parametrize(
    "spec",
    [SPEC, model_dir.ModelSpec({"name": "wrn_10_1"}, SPEC.preprocessing, SPEC.label_names)],
    ids=["b0", "wrn"],
)
def test_frozen_blocks_do_not_learn_and_the_others_do(spec):
    count = FROZEN if spec is SPEC else 2
    model = spec.build(seed=1)
    fixres.freeze_blocks(model, count)
    before = values(model)
    student = NoisyStudent(model, ema_decay=0.5, seed=3, weight_decay=0.1)
    student.compile(tf.keras.optimizers.legacy.SGD(0.1))
    student.fit(
        tf.data.Dataset.from_tensors((IMAGES, tf.constant([0, 1, 2, 0]))).repeat(2), verbose=0
    )
    with student.ema.swapped():
        averaged = values(model)
    blocks = list(
        dict.fromkeys(name.partition("_")[0] for name in before if name.startswith("block"))
    )
    fixed = ("stem", *blocks[:count])
    assert 1 < len(fixed) < len(blocks) + 1
    for after in (values(model), averaged):
        for name, old in before.items():
            # Moving statistics are included.
            assert np.array_equal(old, after[name]) == (name.partition("_")[0] in fixed), name


def test_no_noise_in_frozen_blocks():
    model = SPEC.build(seed=1)
    drops = [layer.name for layer in model.layers if layer.name.endswith("_drop")]
    assert len(drops) >= 2
    features = tf.keras.Model(
        model.input, model.get_layer(f"{drops[0].partition('_')[0]}_add").output
    )

    def noised():
        with model_noise(5, 6):
            return features(IMAGES, training=True).numpy()

    clean = features(IMAGES, training=False).numpy()
    assert not np.allclose(noised(), clean)
    fixres.freeze_blocks(model, FROZEN)
    np.testing.assert_array_equal(noised(), features(IMAGES, training=False).numpy())


def test_too_many_blocks():
    model = SPEC.build()
    fixres.freeze_blocks(model, 0)
    assert len(model.trainable_weights) == len(SPEC.build().trainable_weights)
    with pytest.raises(InputError, match="has 10 blocks"):
        fixres.freeze_blocks(model, 11)


def test_another_resolution_by_command(tmp_path, capsys):
    model = SPEC.build(seed=4)
    model_dir.save(tmp_path / "run" / "model", model, SPEC)
    finish(tmp_path / "run", {})
    for _ in range(2):
        fixres.main(model=str(tmp_path / "run"), output=str(tmp_path / "larger"), image_size=48)
    assert "is done" in capsys.readouterr().out
    larger, spec = model_dir.load(tmp_path / "larger")
    assert spec.preprocessing == Preprocessing(image_size=48, style="imagenet")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), larger.get_weights()))
    assert larger(tf.zeros([1, 48, 48, 3])).shape == (1, 3)
