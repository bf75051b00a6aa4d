"""How good a model is, and how far its confidence can be trusted.

`metrics` (pure numpy), `figures` (matplotlib), `evaluate` (the stage). May import `stages`, `data`, `efficientnet`,
`resnet` and `training`; nothing else of the project imports it but the commands that run whole experiments.
"""

import stages  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)
