"""Supervised learning on scikit-learn's handwritten digits, 50 of them labeled.

./run_prepare_data.sh --config=configs/supervised/digits.py --workdir=W/data
./run_train.sh --config=configs/supervised/digits.py --data=W/data --workdir=W/model

The training is that of the quick start's teacher.
"""

from ml_collections import ConfigDict

from configs.noisy_student import digits


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = digits.get_config()
    config.train = config.teacher.copy_and_resolve_references()
    return config
