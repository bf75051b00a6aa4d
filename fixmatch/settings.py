"""Settings of a training by FixMatch (Sohn et al. 2020)."""

from __future__ import annotations

from cli.settings import Section, Setting
from data.settings import OWN_PREPROCESSING
from training import settings

PAPER = "Sohn et al. 2020"

TRAIN = Section(
    "A training by FixMatch.",
    {
        "method": settings.METHOD.but(default="fixmatch"),
        "model": settings.MODEL,
        "optimizer": settings.OPTIMIZER.but(name="sgd", nesterov=True),
        "schedule": settings.SCHEDULE_IN_STEPS,
        **settings.OF_UNLABELED,
        "threshold": Setting(0.95, "Least confidence of a pseudo-label.", at_least=0, at_most=1, source=PAPER),
        "unlabeled_weight": Setting(1.0, "Weight of the loss on unlabeled images.", at_least=0, source=PAPER),
        **settings.LOSS,
        "label_smoothing": settings.LOSS["label_smoothing"].but(default=0.0, source=PAPER),
        **settings.RUN,
    },
    more={"preprocessing": OWN_PREPROCESSING},
)
