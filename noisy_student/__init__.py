"""Noisy Student (Xie et al. 2020): the training step, and the choice of pseudo-labeled images."""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from cli import lazy

if TYPE_CHECKING:
    from noisy_student.model import NoisyStudent
else:
    __getattr__, __dir__ = lazy.attributes(__name__, {"NoisyStudent": "noisy_student.model"})

__all__ = ["NoisyStudent"]
