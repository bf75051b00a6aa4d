"""Layers, noise and names of blocks, which the architectures are made of.

`layers.py` has the layers, `noise.py` the noise of training, and `names.py` the names of blocks.
The random numbers of `Dropout` and `StochasticDepth` belong to an example, and not to the device
that computes it.
"""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
