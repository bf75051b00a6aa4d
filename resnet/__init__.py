"""Residual networks as Keras models: Wide ResNet and ResNet-50, Meta Pseudo Labels' networks for small images and for ImageNet.

What lives here: :mod:`resnet.wide_resnet` and :mod:`resnet.resnet50`, in the manner of
:mod:`efficientnet.model` (pixels in 0-255 in, float32 logits out, seeded initial weights, noise
that belongs to the example).
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
