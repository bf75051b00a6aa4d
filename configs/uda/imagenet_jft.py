"""UDA on all of ImageNet and 12.8 million other images with a ResNet-50.

    ./run_train.sh --config=configs/uda/imagenet_jft.py --labeled=IMAGENET --unlabeled=POOL \
        --workdir=W

The paper reaches 79.0 % top-1 and 94.5 % top-5 (Pham et al. 2021, Table 3). The values are those of
configs/meta_pseudo_labels/imagenet_jft.py:resnet50; its teacher is trained alone.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import imagenet_jft
from configs.uda import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.teacher_alone(imagenet_jft.get_config("resnet50"))
