"""From a trained model to answers: the SavedModel that TF Serving loads, and a command that asks it.

`export` may import `stages`, `data` and `training`; `predict` needs an exported model and TensorFlow, nothing else of the
project but `stages`.
"""

import stages  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)
