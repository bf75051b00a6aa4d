"""The stages of a run: training, pseudo-labeling, balancing, the iterated loop, the quick start.

A stage reads finished work directories and leaves one. The methods, the data and the models are in
the rooms below. `from workflow import run` gives the whole loop as one call. `run_method` runs
every stage of one method.
"""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)
from cli import lazy

if TYPE_CHECKING:
    from workflow.loop import run
    from workflow.one_method import run_method
else:
    __getattr__, __dir__ = lazy.attributes(
        __name__, {"run": "workflow.loop", "run_method": "workflow.one_method"}
    )

__all__ = ["run", "run_method"]
