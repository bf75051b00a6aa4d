"""FixMatch (Sohn et al. 2020): confident pseudo-labels of weakly augmented images teach strongly augmented ones."""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from cli import lazy

if TYPE_CHECKING:
    from fixmatch.method import FixMatch
else:
    __getattr__, __dir__ = lazy.attributes(__name__, {"FixMatch": "fixmatch.method"})

__all__ = ["FixMatch"]
