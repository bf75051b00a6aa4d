"""UDA on a person's own folders of images.

    ./run_prepare_data.sh --config=configs/uda/image_folder.py --labeled=DIR --unlabeled=DIR --workdir=W/data
    ./run_train.sh --config=configs/uda/image_folder.py --data=W/data --workdir=W/student

The values are those of configs/meta_pseudo_labels/image_folder.py, whose teacher is trained alone.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import image_folder
from configs.uda import base


def get_config(name: str = "resnet50") -> ConfigDict:
    """Returns the recipe; `name`: the network."""
    return base.teacher_alone(image_folder.get_config(name))
