"""UDA on CIFAR-10 with 4,000 labeled images.

    ./run_prepare_data.sh --config=configs/uda/cifar10_4k.py --labeled=DIR --workdir=W/data
    ./run_train.sh --config=configs/uda/cifar10_4k.py --data=W/data --workdir=W/student

The values are those of configs/meta_pseudo_labels/cifar10_4k.py; its teacher is trained alone.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import cifar10_4k
from configs.uda import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.teacher_alone(cifar10_4k.get_config())
