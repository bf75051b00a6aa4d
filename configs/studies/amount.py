"""Compares amounts of unlabeled images (Xie et al. 2020, first version, A.3, Table 8)

./run_experiment.sh study --config=configs/studies/amount.py --workdir=runs/studies/amount

The paper takes from 1/128 to all of them, drawn at random. Its B4 has 84.0 % with all, 83.8 with a
quarter, 83.9 with a 16th, 83.3 with a 64th, and 83.2 without any. Accuracy is nearly the same down
to a 16th, and worse below. This study is a stand-in: the paper draws from the balanced set, copies
included, which is `balance.sample_images` of configs/noisy_student/imagenet.py:b4. A 64th is about
21 of the 1,347 unlabeled images here, before the threshold; some classes have none.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Amount of unlabeled images",
        "Shares of the unlabeled images, drawn at random before filtering; the number of steps"
        " stays.",
        claims=(
            ("all", "a_64th", "all unlabeled images are better than a 64th of them"),
            ("a_16th", "a_64th", "a 16th is better than a 64th"),
            ("all", "a_16th", "all are better than a 16th (the paper: nearly the same)"),
            ("a_64th", "teacher", "a student of a 64th is still better than its teacher"),
        ),
        **base.one_student(
            all=(),
            a_quarter=("--config.balance.fraction=0.25",),
            a_16th=("--config.balance.fraction=0.0625",),
            a_64th=("--config.balance.fraction=0.015625",),
        ),
    )
