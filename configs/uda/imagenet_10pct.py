"""UDA on a tenth of ImageNet's labels with a ResNet-50.

    ./run_train.sh --config=configs/uda/imagenet_10pct.py --labeled=IMAGENET --workdir=W

The paper reaches 68.07 % top-1 and 88.19 % top-5 (Pham et al. 2021, Table 2). The values are those
of configs/meta_pseudo_labels/imagenet_10pct.py; its teacher is trained alone.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import imagenet_10pct
from configs.uda import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.teacher_alone(imagenet_10pct.get_config())
