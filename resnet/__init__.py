"""Residual networks as Keras models: Wide ResNet and ResNet-50, Meta Pseudo Labels' networks for small images and for ImageNet.

What lives here: :mod:`resnet.wide_resnet` and :mod:`resnet.resnet50`, in the manner of :mod:`efficientnet.model` (pixels in
0-255 in, float32 logits out, seeded initial weights, noise that belongs to the example).
"""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from resnet.resnet50 import ResNet50
from resnet.wide_resnet import WideResNet, is_wide_resnet

__all__ = ["ResNet50", "WideResNet", "is_wide_resnet"]
