"""EfficientNet as Keras models: the networks of Noisy Student and of Meta Pseudo Labels' large runs.

What lives here: the table of variants and the rules that scale them (:mod:`efficientnet.architectures`), the model
builder (:mod:`efficientnet.model`), the layers that it is made of (:mod:`efficientnet.layers`) and the two layers of model
noise, whose random numbers belong to an example and not to the device that happens to compute it (:mod:`efficientnet.noise`).

What it may import: TensorFlow, and ``stages`` for the user's errors. No other package of the project.
"""

import stages  # noqa: F401  (first: it sets TensorFlow's log level)
from efficientnet.architectures import ARCHITECTURES, SMALL_IMAGE_STRIDES, Architecture
from efficientnet.model import IMAGENET_MEAN, IMAGENET_STD, EfficientNet
from efficientnet.noise import Dropout, StochasticDepth, model_noise

__all__ = [
    "ARCHITECTURES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SMALL_IMAGE_STRIDES",
    "Architecture",
    "Dropout",
    "EfficientNet",
    "StochasticDepth",
    "model_noise",
]
