"""Supervised learning on all 50,000 labels of CIFAR-10 with a Wide ResNet 28-2.

    ./run_train.sh --config=configs/supervised/cifar10.py --labeled=DIR --workdir=W

For DIR see docs/data.md. The paper reaches 94.92 ± 0.17 % (Pham et al. 2021, Table 2). Network,
images, RandAugment and optimizer are those of configs/meta_pseudo_labels/cifar10_4k.py, as the
paper has one protocol for both. Its table of the length (Appendix C.4) could not be consulted:
300,000 steps of 128 images are as many as there. Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import cifar10_4k
from configs.supervised import base

IMAGES = 50_000


def get_config() -> ConfigDict:
    """Returns the recipe."""
    return base.on_all_labels(cifar10_4k.get_config(), epochs=300_000 * 128 / IMAGES, images=IMAGES)
