"""How good a model is, and how far its confidence can be trusted.

From the numbers up: `metrics`, `statistics`, `robustness` (pure functions); `corruptions`,
`perturbations`, `adversarial` (what is done to images); `examples`, `imagenet`, `build` (sets of
images), `classifiers` (models), `predict` (how they meet); `suites`, `results` (what is measured,
and what it comes to); `figures`, `charts`, `pictures`, `page`, `report` (what is shown); `evaluate`
and `compare` (the stages).
"""

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before the first import of TensorFlow)
