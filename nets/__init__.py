"""What the architectures are made of: layers (`layers.py`), the noise of training (`noise.py`), names of blocks (`names.py`).

The random numbers of `Dropout` and `StochasticDepth` belong to an example, and not to the device
that computes it.
"""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
