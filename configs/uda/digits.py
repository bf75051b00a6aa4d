"""UDA on scikit-learn's handwritten digits, 50 of them labeled.

    ./run_prepare_data.sh --config=configs/uda/digits.py --workdir=W/data
    ./run_train.sh --config=configs/uda/digits.py --data=W/data --workdir=W/student

The values are those of configs/meta_pseudo_labels/digits.py; its teacher is trained alone.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import digits
from configs.uda import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.teacher_alone(digits.get_config())
