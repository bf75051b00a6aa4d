"""FixMatch on scikit-learn's handwritten digits, 50 of them labeled.

    ./run_prepare_data.sh --config=configs/fixmatch/digits.py --workdir=W/data
    ./run_train.sh --config=configs/fixmatch/digits.py --data=W/data --workdir=W/student

The data are those of Noisy Student's recipe. Threshold and weight are the paper's. Network,
optimizer, batch size and steps are those of configs/uda/digits.py.
"""

from ml_collections import ConfigDict

from configs.fixmatch import base
from configs.uda import digits


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.from_uda(digits.get_config())
