"""How many unlabelled images? (Xie et al. 2020, first version, A.3, Table 8: 1/128 to all, drawn at random)

./run_studies.sh --config=configs/studies/amount.py --workdir=runs/studies/amount
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """The study."""
    return base.study(
        "Amount of unlabelled images",
        "Shares of the unlabelled images, drawn at random before filtering; the number of steps stays.",
        claims=(
            ("all", "a_quarter", "four times the unlabelled images help"),
            ("a_quarter", "a_sixteenth", "so they do from a sixteenth to a quarter"),
        ),
        **base.one_student(
            all=(),
            a_quarter=("--config.balance.fraction=0.25",),
            a_sixteenth=("--config.balance.fraction=0.0625",),
        ),
    )
