"""FixMatch (Sohn et al. 2020): learning from confident pseudo-labels.

Confident pseudo-labels of weakly augmented images teach the network on strongly augmented ones.
"""

from typing import TYPE_CHECKING

import cli  # noqa: F401  (first: it sets TensorFlow's log level)
from cli import lazy
from cli.settings import Section, Setting, When
from training import settings

if TYPE_CHECKING:
    from fixmatch.method import FixMatch
else:
    __getattr__, __dir__ = lazy.attributes(__name__, {"FixMatch": "fixmatch.method"})

__all__ = ["SETTINGS", "FixMatch"]

PAPER = "Sohn et al. 2020"

SETTINGS = Section(
    "A training by FixMatch.",
    {
        "method": settings.METHOD.but(default="fixmatch"),
        "model": settings.MODEL,
        "optimizer": settings.OPTIMIZER.but(name="sgd", nesterov=True),
        "schedule": settings.SCHEDULE_IN_STEPS,
        **settings.OF_UNLABELED,
        "threshold": Setting(
            0.95,
            "Least confidence of a pseudo-label that counts.",
            at_least=0,
            at_most=1,
            source=PAPER,
            when=(When("unlabeled_weight"),),
        ),
        "unlabeled_weight": Setting(
            1.0, "Weight of the loss on unlabeled images.", at_least=0, source=PAPER
        ),
        **settings.LOSS,
        "label_smoothing": settings.LOSS["label_smoothing"].but(default=0.0, source=PAPER),
        "accumulation": settings.ACCUMULATION,
        **settings.RUN,
    },
    more=settings.OF_A_RECIPE,
)
