"""The stages of a run: training, pseudo-labelling, balancing, the iterated loop, the quick start.

A stage reads finished work directories and leaves one. The methods, the data and the models are the rooms' below.
"""

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)
