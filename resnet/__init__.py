"""Residual networks of Meta Pseudo Labels as Keras models: Wide ResNet and ResNet-50.

:mod:`resnet.wide_resnet` is for images of about 32 pixels, :mod:`resnet.resnet50` for ImageNet.
Both work like :mod:`efficientnet.model`: pixels in 0-255 in, float32 logits out, seeded initial
weights, noise that belongs to the example.
"""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from cli import lazy

if TYPE_CHECKING:
    from resnet.resnet50 import ResNet50
    from resnet.wide_resnet import WideResNet
else:
    __getattr__, __dir__ = lazy.attributes(
        __name__, {"ResNet50": "resnet.resnet50", "WideResNet": "resnet.wide_resnet"}
    )

__all__ = ["ResNet50", "WideResNet"]
