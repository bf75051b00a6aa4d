"""Networks on disk: SavedModel in both of Keras's manners, and TensorFlow Lite.

`.keras` is in test_model and tests/resnet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from efficientnet import EfficientNet
from nets.layers import BatchNormalization
from resnet import WideResNet

IMAGES = tf.random.stateless_uniform([2, 32, 32, 3], [1, 2], 0, 255)
NETWORKS = [
    pytest.param(
        lambda **k: EfficientNet("b0", width=0.25, depth=0.25, num_classes=5, seed=1, **k),
        id="efficientnet",
    ),
    pytest.param(
        lambda **k: WideResNet("wrn_10_1", dropout=0.5, num_classes=5, seed=1, **k),
        id="wide_resnet",
    ),
]


@pytest.mark.parametrize("make", NETWORKS)
def test_saved_model(make: Callable[..., tf.keras.Model], tmp_path: Path) -> None:
    model = make(sync_batch_norm=True)
    expected = model(IMAGES).numpy()
    model.save(tmp_path / "keras", save_format="tf")
    again = tf.keras.models.load_model(tmp_path / "keras")
    np.testing.assert_allclose(again(IMAGES), expected, rtol=1e-5, atol=1e-6)
    norms = [layer for layer in again.layers if isinstance(layer, BatchNormalization)]
    assert norms and all(layer.synchronized for layer in norms)
    model.export(str(tmp_path / "export"))
    served = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(served.serve(IMAGES), expected, rtol=1e-5, atol=1e-6)


def test_an_efficientnet_converts_to_tensorflow_lite() -> None:
    """Converts with TensorFlow Lite's own operations alone, to which the graph is limited.

    The network's 8 blocks have every kind of block that B0's 16 have: each stage's first, and one
    with a skip.
    """
    model = EfficientNet("b0", width=0.25, depth=0.3, num_classes=10, image_size=32, seed=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    assert converter.target_spec.supported_ops == {tf.lite.OpsSet.TFLITE_BUILTINS}
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [2, 32, 32, 3])
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGES.numpy())
    interpreter.invoke()
    expected = model(IMAGES).numpy()
    actual = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
