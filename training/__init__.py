"""The parts that every run shares, from optimizers and schedules to the fit loop.

The package has optimizers, schedules, EMA, strategies, checkpoints, the fit loop and the metrics
log.
"""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
