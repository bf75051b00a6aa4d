"""Measures how good a model is, and how far its confidence can be trusted.

The modules, from the numbers up:

- `metrics`, `statistics`, `robustness`: pure functions;
- `corruptions`, `perturbations`, `adversarial`: changes of images;
- `examples`, `imagenet`, `build`: sets of images;
- `classifiers`: models;
- `predict`: passes images to models;
- `suites`, `results`: what is measured, and the numbers made from it;
- `figures`, `charts`, `pictures`, `page`, `report`: what is shown;
- `evaluate`, `compare`: the stages.
"""

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)
