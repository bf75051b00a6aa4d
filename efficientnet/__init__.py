"""EfficientNet as Keras models: the networks of Noisy Student and of Meta Pseudo Labels' large runs.

`architectures.py` holds the table of variants and the rules that scale them; `model.py` builds the networks.
"""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from efficientnet.architectures import ARCHITECTURES, SMALL_IMAGE_STRIDES, Architecture
from efficientnet.model import EfficientNet

__all__ = ["ARCHITECTURES", "SMALL_IMAGE_STRIDES", "Architecture", "EfficientNet"]
