"""UDA on a person's own folders of images.

    ./run_train.sh --config=configs/uda/image_folder.py \
        --labeled=DIR --unlabeled=DIR --workdir=W [--test=DIR]

The values are those of configs/meta_pseudo_labels/image_folder.py. Its teacher is trained alone,
from published weights of EfficientNet-Lite0, in no fewer than 500 steps. `:resnet50` and
`:wrn_28_2` start from random weights.
"""

from ml_collections import ConfigDict

from configs import fine_tuning
from configs.meta_pseudo_labels import image_folder
from configs.uda import base


def get_config(name: str = "") -> ConfigDict:
    """Returns the recipe; `name`: the network; "": the one for this machine."""
    config = base.teacher_alone(image_folder.get_config(name))
    config.finetune_last = False  # UDA's paper has none
    if name in ("", fine_tuning.NETWORK):
        config.train.min_steps = 500
    return config
