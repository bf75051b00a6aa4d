"""UDA on SVHN with 1,000 labeled images.

    ./run_prepare_data.sh --config=configs/uda/svhn_1k.py --labeled=DIR --unlabeled=DIR \
        --workdir=W/data
    ./run_train.sh --config=configs/uda/svhn_1k.py --data=W/data --workdir=W/student

The values are those of configs/meta_pseudo_labels/svhn_1k.py; its teacher is trained alone.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import svhn_1k
from configs.uda import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.teacher_alone(svhn_1k.get_config())
