"""What every run shares: optimizers, schedules, EMA, strategies, checkpoints, the fit loop, the metrics log."""
