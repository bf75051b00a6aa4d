"""Settings of a training by Meta Pseudo Labels."""

from __future__ import annotations

from cli.settings import Section, Setting, When
from training import settings

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


def _of(*estimators: str) -> tuple[When, ...]:
    """Returns the condition that the feedback is one of these estimators."""
    return (When("feedback", estimators),)


METHOD, REDUCED = "meta_pseudo_labels", "reduced_meta_pseudo_labels"
OF_THE_PAIR = (When("method", (METHOD,)),)
"""Condition of settings that only the large teacher has; the reduced form lacks them."""

NETWORK = Section(
    "A network of the pair: architecture, optimizer and schedule.",
    {
        "model": settings.MODEL,
        "optimizer": settings.OPTIMIZER.but(name="sgd", nesterov=True),
        "schedule": settings.SCHEDULE_IN_STEPS,
    },
)

CALIBRATOR = Section(
    "The calibrator of reduced_meta_pseudo_labels; it has the teacher's optimizer.",
    {
        "hidden": Setting(128, "Number of units of a hidden layer.", at_least=1),
        "layers": Setting(2, "Number of hidden layers.", at_least=0),
    },
    when=(When("method", (REDUCED,)),),
)

FED_BACK = tuple(name for name in ESTIMATORS if name != "none")

FEEDBACK = {
    "feedback": Setting(
        "soft",
        "How the student's step teaches the teacher (docs/meta_pseudo_labels.md).",
        choices=ESTIMATORS,
    ),
    "approximate_feedback": Setting(
        False,
        "Accept feedback that is an approximation under this optimizer, with a warning.",
        when=_of("dot_product", "per_example", "soft"),
    ),
    "pseudo_labels": Setting(
        "sampled",
        "Label that the student learns from: drawn from the teacher's distribution, its most "
        "probable class, or the whole distribution.",
        choices=PSEUDO_LABELS,
    ),
    "feedback_weight": Setting(
        1.0,
        "Weight of the teacher's loss by feedback.",
        when=_of(*FED_BACK),
    ),
    "batch_factor": Setting(
        None,
        "Factor of a scalar feedback; 1: eq. 12 as written.",
        type=float,
        none="the unlabeled batch size, which makes it the true gradient",
        when=_of("finite_difference", "dot_product", "cosine"),
    ),
    "baseline_decay": Setting(
        0.99,
        "Decay of the moving average of the feedback; the average is subtracted; 1: no baseline.",
        at_least=0,
        at_most=1,
        when=_of(*(name for name in FED_BACK if name != "soft")),
    ),
}

RELEASE = "the release's README, CIFAR-10-4K"


def _of_the_pair(model: Section) -> Section:
    when = (When("^method", (METHOD,)),)
    return Section(model.meaning, model, model.more, model.others, when)


TRAIN = Section(
    "The training of a teacher and a student by Meta Pseudo Labels. In its reduced form "
    "(Appendix E) it is that of the student and of a calibrator of the predictions in "
    "--pseudo_labeled. The reduced form with feedback=none is training on pseudo-labels of a fixed "
    "teacher.",
    {
        "method": settings.METHOD.but(default="meta_pseudo_labels"),
        "teacher": Section(NETWORK.meaning, {**NETWORK, "model": _of_the_pair(settings.MODEL)}),
        "student": NETWORK.but(schedule={"wait_steps": 3000}),
        **settings.OF_UNLABELED,
        **FEEDBACK,
        "supervised_weight": settings.UDA_TRAIN["supervised_weight"].but(when=OF_THE_PAIR),
        "uda": Section(settings.UDA.meaning, settings.UDA, when=OF_THE_PAIR),
        "calibrator": CALIBRATOR,
        "label_smoothing": settings.LOSS["label_smoothing"].but(
            default=0.15, source=RELEASE, when=OF_THE_PAIR
        ),
        "logit_adjustment": settings.LOSS["logit_adjustment"].but(
            when=((*OF_THE_PAIR, *_of(*FED_BACK)),)
        ),
        "weight_decay": settings.LOSS["weight_decay"].but(default=5e-4, source=RELEASE),
        "ema_decay": settings.LOSS["ema_decay"].but(default=0.995, source=RELEASE),
        "accumulation": settings.ACCUMULATION,
        **settings.RUN,
    },
    more=settings.OF_A_RECIPE,
)
