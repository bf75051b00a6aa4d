"""Meta Pseudo Labels (Pham et al. 2021): the teacher learns how its labels change the student.

`feedback.py` holds the estimators of the signal, `model.py` the training step, `loss_scale.py` its
float16 part, and `reduced.py` the teacher of Appendix E. `training/uda.py` has the teacher's other
losses.
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
