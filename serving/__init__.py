"""Exports trained models as SavedModels that TF Serving loads, and asks them for predictions.

`predict` needs an exported model, and `client` a server. Both need no network of the project.
"""

import cli  # noqa: F401  (sets TensorFlow's log level before TensorFlow is imported)

BATCHING, MONITORING = "batching_parameters.txt", "monitoring.config"
"""Files of a SERVING_DIR, see `serving.settings`.

They are named here, so that starting a server need not load TensorFlow.
"""
MOUNT = "/models"
"""Path at which TF Serving's container sees a SERVING_DIR."""
