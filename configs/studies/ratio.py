"""Compares ratios of unlabeled to labeled images in a batch (Xie et al. 2020, Section 3.1)

./run_experiment.sh study --config=configs/studies/ratio.py --workdir=runs/studies/ratio

The paper has 14 to 28 for L2, and 1 to 3 for the other networks.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Unlabeled batch",
        "Unlabeled images to a labeled one in a batch; the number of steps stays.",
        claims=(
            ("ratio_4", "ratio_1", "a larger unlabeled batch helps"),
            ("ratio_8", "ratio_4", "a yet larger one helps"),
        ),
        **base.one_student(
            ratio_4=("--config.student.unlabeled_ratio=4",),
            ratio_1=("--config.student.unlabeled_ratio=1",),
            ratio_2=("--config.student.unlabeled_ratio=2",),
            ratio_8=("--config.student.unlabeled_ratio=8",),
        ),
    )
