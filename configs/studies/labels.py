"""Soft or hard pseudo-labels, and how soft?

./run_experiment.sh study --config=configs/studies/labels.py --workdir=runs/studies/labels

The question is that of Xie et al. 2020, Section 2, and of the first version, A.2, Figure 4.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Pseudo-labels",
        "The teacher's distribution as it is, sharpened, or only its class.",
        claims=(
            ("soft", "hard", "soft pseudo-labels are better than hard ones"),
            ("sharpened", "soft", "sharpened ones are better than soft ones"),
        ),
        **base.one_student(
            soft=("--config.student.temperature=1.0",),
            sharpened=("--config.student.temperature=0.5",),
            hard=("--config.student.pseudo_labels=hard",),
        ),
    )
