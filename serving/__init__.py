"""From a trained model to answers: the SavedModel that TF Serving loads, and a command that asks it.

`predict` and `client` need an exported model or a server, and no network of the project.
"""

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)

BATCHING, MONITORING = "batching_parameters.txt", "monitoring.config"
"""Files of a SERVING_DIR, see `serving.settings`; here, since who starts a server has no use for TensorFlow."""
MOUNT = "/models"
"""Where TF Serving's container sees a SERVING_DIR."""
