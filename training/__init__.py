"""What every run shares: optimizers, schedules, EMA, strategies, checkpoints, the fit loop, the metrics log.

May import `stages`, `data`, `efficientnet` and `resnet`; the methods, `evaluation` and `serving` build on it.
"""
