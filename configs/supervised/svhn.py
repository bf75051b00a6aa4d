"""Supervised learning on all 73,257 labels of SVHN's training set with a Wide ResNet 28-2.

    ./run_train.sh --config=configs/supervised/svhn.py --labeled=DIR --workdir=W

For DIR see docs/data.md. The paper reaches 97.41 ± 0.16 % (Pham et al. 2021, Table 2). Its "full
dataset" is read as the training set without `extra`, which the paper does not mention. Network,
images, RandAugment and optimizer are those of configs/meta_pseudo_labels/svhn_1k.py. The paper's
table of the length (Appendix C.4) could not be consulted: 300,000 steps of 128 images are as many
as there. Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import svhn_1k
from configs.supervised import base

IMAGES = 73_257


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.on_all_labels(svhn_1k.get_config(), epochs=300_000 * 128 / IMAGES, images=IMAGES)
