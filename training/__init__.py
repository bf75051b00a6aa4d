"""What every run shares: optimizers, schedules, EMA, strategies, checkpoints, the fit loop, the metrics log."""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
