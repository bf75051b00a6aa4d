"""Meta Pseudo Labels (Pham et al. 2021): a teacher that learns from how its pseudo-labels change the student.

`feedback.py` holds the signal, `model.py` the training step (`student.py` and `uda.py` its two sides), `reduced.py` that of Appendix E.
"""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from cli import lazy

if TYPE_CHECKING:
    from meta_pseudo_labels.model import MetaPseudoLabels
    from meta_pseudo_labels.reduced import Calibrator, ReducedMetaPseudoLabels
else:
    _MODULES = {
        "MetaPseudoLabels": "meta_pseudo_labels.model",
        "Calibrator": "meta_pseudo_labels.reduced",
        "ReducedMetaPseudoLabels": "meta_pseudo_labels.reduced",
    }
    __getattr__, __dir__ = lazy.attributes(__name__, _MODULES)

__all__ = ["Calibrator", "MetaPseudoLabels", "ReducedMetaPseudoLabels"]
