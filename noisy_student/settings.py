"""Settings of a train section: a teacher, a student, or a fine-tuning."""

from __future__ import annotations

from cli.settings import Section, Setting, When
from data.settings import OWN_PREPROCESSING
from training import settings

LOSS_NORMALIZATIONS = ("joint", "algorithm_1", "release")
PSEUDO_LABELS = ("soft", "hard")

OF_STUDENT = When("method", ("noisy_student",))
OF_UNLABELED = (OF_STUDENT, When("unlabeled_ratio"))
OF_LABELED = (When("labeled"),)

METHOD = {
    "labeled": Setting(
        True,
        "False: a student learns from pseudo-labeled images only. The loop then fine-tunes it on "
        "the labeled images, by the section finetune_student.",
        when=(OF_STUDENT,),
    ),
    "loss_normalization": Setting(
        "joint",
        "How the losses of labeled and unlabeled images are averaged (docs/differences.md).",
        choices=LOSS_NORMALIZATIONS,
        when=(*OF_UNLABELED, *OF_LABELED),
    ),
    "pseudo_labels": Setting(
        "soft",
        "Pseudo-label: the teacher's distribution, or its most probable class.",
        choices=PSEUDO_LABELS,
        when=OF_UNLABELED,
    ),
    "temperature": Setting(
        1.0,
        "Temperature of soft pseudo-labels; below 1 sharpens.",
        above=0,
        when=(*OF_UNLABELED, When("pseudo_labels", ("soft",))),
    ),
    "online": Setting(
        False,
        "True: --teacher labels the images within the step, without threshold and balancing.",
        when=(OF_STUDENT,),
    ),
    "label_data_sample_prob": Setting(
        1.0,
        "Probability that a labeled image contributes to the loss. Learning rate and epochs stay "
        "the same.",
        above=0,
        at_most=1,
        when=OF_LABELED,
    ),
}
"""Settings that make a training Noisy Student's."""

NOISE = {
    "mixup": Setting(
        0.0,
        "Beyond the paper: α of MixUp on labeled images; 0: off. With cutmix, half each.",
        at_least=0,
        when=OF_LABELED,
    ),
    "cutmix": Setting(
        0.0,
        "Beyond the paper: α of CutMix on labeled images; 0: off.",
        at_least=0,
        when=OF_LABELED,
    ),
    "labeled_augmentation": Setting(
        True,
        "Crop, flip and RandAugment on labeled images. False: the images as for evaluation.",
        when=OF_LABELED,
    ),
    "unlabeled_augmentation": Setting(
        True,
        "Crop, flip and RandAugment on unlabeled images. Off in an ablation (Table 6).",
        when=OF_UNLABELED,
    ),
    "unlabeled_model_noise": Setting(
        True,
        "Dropout and stochastic depth on unlabeled images. Off in an ablation (Table 6).",
        when=OF_UNLABELED,
    ),
}

TRAIN = Section(
    "A training: a teacher, a student, or a fine-tuning. Without the method noisy_student there "
    "are no unlabeled images, and their settings have no effect.",
    {
        "method": settings.METHOD,
        "model": settings.MODEL,
        **settings.DURATION,
        "unlabeled_ratio": settings.DURATION["unlabeled_ratio"].but(when=(OF_STUDENT,)),
        "optimizer": settings.OPTIMIZER,
        "schedule": settings.SCHEDULE,
        **METHOD,
        **NOISE,
        **settings.LOSS,
        # Without labeled images, it applies to hard pseudo-labels.
        "label_smoothing": (
            settings.LOSS["label_smoothing"].but(
                when=((*OF_LABELED, When("pseudo_labels", ("hard",))),),
            )
        ),
        **settings.FINE_TUNING,
        "accumulation": settings.ACCUMULATION,
        **settings.RUN,
    },
    more={"preprocessing": OWN_PREPROCESSING},
)
