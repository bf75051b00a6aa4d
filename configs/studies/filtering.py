"""Do filtering by confidence and balancing help? (Xie et al. 2020, Section 2, Other Techniques)

./run_experiment.sh study --config=configs/studies/filtering.py --workdir=runs/studies/filtering

The paper's threshold is 0.3.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Filter and balance",
        "Pseudo-labels kept from this confidence on; balanced to the median class unless it says"
        " otherwise.",
        claims=(
            ("threshold_0_3", "threshold_0", "filtering at the paper's 0.3 helps"),
            ("threshold_0_7", "threshold_0_3", "a stricter filter helps"),
            ("threshold_0_7", "unbalanced", "balancing helps"),
        ),
        **base.one_student(
            threshold_0_7=("--config.balance.threshold=0.7",),
            threshold_0_3=("--config.balance.threshold=0.3",),
            threshold_0=("--config.balance.threshold=0.0",),
            unbalanced=(
                "--config.balance.threshold=0.7",
                "--config.balance.balance=False",
            ),
        ),
    )
