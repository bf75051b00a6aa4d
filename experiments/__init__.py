"""Experiments on the methods: studies over seeds, two moons, signal and noise of the feedback."""

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)
