"""Imports and exports weights: TF1 checkpoints, keras.applications, timm, TF Lite, keras-cv.

`names.py` says what each variable is called elsewhere. `weight_files.py`, `keras_file.py` and
`torch_file.py` read the files. `import_weights.py` and `export_weights.py` are the commands.
"""

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
