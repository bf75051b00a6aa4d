"""Soft or hard labels for images that the teacher is unsure of?

./run_experiment.sh study --config=configs/studies/bands.py --workdir=runs/studies/bands

The question is that of Xie et al. 2020, first version, A.2, Figure 4. This study is a stand-in for
the paper's ten bands of 1.3 million images; their commands on ImageNet are in docs/paper_map.md. On
the digits the images of low confidence are mostly the crops of photographs, which are out of the
domain.
"""

from ml_collections import ConfigDict

from configs.studies import base

SOFT, HARD = "--config.student.temperature=1.0", "--config.student.pseudo_labels=hard"
HIGH, LOW = (
    ("--config.balance.threshold=0.7",),
    ("--config.balance.threshold=0.2", "--config.balance.max_confidence=0.7"),
)


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Confidence bands",
        "Unlabeled images of a confidence above 0.7, or from 0.2 to 0.7, with soft (temperature 1)"
        " or hard pseudo-labels.",
        claims=(
            ("high_soft", "teacher", "images of high confidence help with soft labels"),
            ("high_hard", "teacher", "images of high confidence help with hard labels"),
            ("low_soft", "teacher", "images of low confidence help with soft labels"),
            ("teacher", "low_hard", "images of low confidence hurt with hard labels"),
        ),
        **base.one_student(
            high_soft=(*HIGH, SOFT),
            high_hard=(*HIGH, HARD),
            low_soft=(*LOW, SOFT),
            low_hard=(*LOW, HARD),
        ),
    )
