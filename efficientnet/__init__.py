"""EfficientNet as Keras models: the networks of Noisy Student and of Meta Pseudo Labels' large runs.

What lives here: the table of variants and the rules that scale them (:mod:`efficientnet.architectures`), the model
builder (:mod:`efficientnet.model`), the layers that it is made of (:mod:`efficientnet.layers`) and the two layers of model
noise, whose random numbers belong to an example and not to the device that happens to compute it (:mod:`efficientnet.noise`).
Published weights: what each variable is called elsewhere (:mod:`efficientnet.names`), the readers of the files
(:mod:`efficientnet.weight_files`), and a command each way (:mod:`efficientnet.import_weights`, :mod:`efficientnet.export_weights`).

What it may import: ``stages`` for the user's errors. No other package of the project, but for the two commands, which
write and read model directories with ``data`` and ``training``.
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
