"""EfficientNet as Keras models: networks of Noisy Student and large Meta Pseudo Labels runs.

`architectures.py` holds the table of variants and the rules that scale them; `model.py` builds the
networks.
"""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from cli import lazy
from efficientnet.architectures import ARCHITECTURES, SMALL_IMAGE_STRIDES, Architecture

if TYPE_CHECKING:
    from efficientnet.model import EfficientNet
else:
    __getattr__, __dir__ = lazy.attributes(__name__, {"EfficientNet": "efficientnet.model"})

__all__ = ["ARCHITECTURES", "SMALL_IMAGE_STRIDES", "Architecture", "EfficientNet"]
