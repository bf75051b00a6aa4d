"""Settings of the train section `meta_pseudo_labels`: the training of the pair, or what it is compared with."""

from __future__ import annotations

from cli.settings import Section, Setting
from data.settings import OWN_PREPROCESSING
from training import settings

METHODS = ("meta_pseudo_labels", "reduced", "uda")
PSEUDO_LABELS = ("sampled", "argmax", "soft")
ESTIMATORS = (
    "finite_difference",
    "dot_product",
    "cosine",
    "per_example",
    "soft",
    "release",
    "none",
)
"""Names of the feedback (`meta_pseudo_labels/feedback.py`)."""

SCHEDULE = Section(
    "The learning rate: waits at 0, warms up, then falls by half a cosine to 0.",
    {
        "base": settings.BASE.but(default=0.1, source="the release's README"),
        "warmup_steps": Setting(5000, "Linear warm-up.", at_least=0, unit="steps"),
        "wait_steps": Setting(0, "Steps at rate 0 before the warm-up.", at_least=0, unit="steps"),
    },
)

NETWORK = Section(
    "A network of the pair: architecture, optimizer and schedule.",
    {
        "model": settings.MODEL,
        "optimizer": settings.OPTIMIZER.but(name="sgd", nesterov=True),
        "schedule": SCHEDULE,
    },
)

UDA = Section(
    "Unsupervised Data Augmentation: the teacher's loss on unlabeled images.",
    {
        "weight": Setting(8.0, "Weight of the loss; 0: off.", at_least=0),
        "temperature": Setting(0.7, "Sharpens the target; below 1 sharpens.", above=0),
        "threshold": Setting(0.6, "Least confidence of an image that counts.", at_least=0, at_most=1),
        "ramp_steps": Setting(5000, "Linear increase of the weight from 0.", at_least=0, unit="steps"),
    },
)

CALIBRATOR = Section(
    "The calibrator of the method `reduced`. Its optimizer and schedule are the teacher's.",
    {
        "hidden": Setting(128, "Units of a layer.", at_least=1),
        "layers": Setting(2, "Hidden layers.", at_least=0),
    },
)

FEEDBACK = {
    "feedback": Setting(
        "soft",
        "How the student's step teaches the teacher (docs/meta_pseudo_labels.md).",
        choices=ESTIMATORS,
    ),
    "approximate_feedback": Setting(
        False,
        "Accept soft, per_example and dot_product under lars, adam or rmsprop too, with a warning. True in :paper and :release.",
    ),
    "pseudo_labels": Setting(
        "sampled",
        "Pseudo-labels of the student: drawn from the teacher's distribution, its most probable class, or the distribution.",
        choices=PSEUDO_LABELS,
    ),
    "feedback_weight": Setting(1.0, "Weight of the teacher's loss by feedback."),
    "batch_factor": Setting(
        None,
        "Factor of a scalar feedback; 1: eq. 12 as written.",
        type=float,
        none="the unlabeled batch size, which makes it the true gradient",
    ),
    "baseline_decay": Setting(
        0.99,
        "Decay of the feedback's moving average, which is subtracted; 1: no baseline.",
        at_least=0,
        at_most=1,
    ),
    "supervised_weight": Setting(1.0, "Weight of the teacher's labeled loss.", at_least=0),
}

RELEASE = "the release's README, CIFAR-10-4K"

TRAIN = Section(
    "The training of a teacher and a student by Meta Pseudo Labels.",
    {
        "method": Setting(
            "meta_pseudo_labels",
            "How the networks are trained. uda: the teacher alone; with uda.weight=0, on labeled "
            "images alone. reduced (Appendix E): the student, and a calibrator of the predictions "
            "in --pseudo_labeled; with feedback=none, on pseudo-labels of a fixed teacher.",
            choices=METHODS,
        ),
        "teacher": NETWORK,
        "student": NETWORK.but(schedule={"wait_steps": 3000}),
        **settings.DURATION,
        "unlabeled_ratio": settings.DURATION["unlabeled_ratio"].but(default=7, at_least=1, source=RELEASE),
        **FEEDBACK,
        "uda": UDA,
        "calibrator": CALIBRATOR,
        "label_smoothing": settings.LOSS["label_smoothing"].but(default=0.15, source=RELEASE),
        "weight_decay": settings.LOSS["weight_decay"].but(default=5e-4, source=RELEASE),
        "ema_decay": settings.LOSS["ema_decay"].but(default=0.995, source=RELEASE),
        **settings.RUN,
        "preprocessing": OWN_PREPROCESSING,
    },
    optional=True,
)
