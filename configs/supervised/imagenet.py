"""Supervised learning on all of ImageNet: what both papers' students are compared with.

    ./run_train.sh --config=configs/supervised/imagenet.py:b7 --labeled=IMAGENET --workdir=W

For IMAGENET see docs/data.md. The variants:

`:b0` ... `:b7` EfficientNet with RandAugment, the teacher of configs/noisy_student/imagenet.py (Xie
                et al. 2020, Figure 2)
`:l2`           EfficientNet-L2 without Noisy Student, 85.5 % (Tables 2 to 5, Figure 4), then
                fine-tuned at 800 pixels
`:resnet50`     ResNet-50, 76.89 % top-1 and 93.27 % top-5 (Pham et al. 2021, Table 2), with
                RandAugment

`:l2` has the settings of Noisy Student's L2; the paper says no others. ResNet-50's network, images
and optimizer are those of configs/meta_pseudo_labels/imagenet_10pct.py. The paper's table of its
length (Appendix C.4) could not be consulted: 90 epochs are this project's. Nothing here has been
run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import imagenet_10pct
from configs.noisy_student import imagenet
from configs.supervised import base

NAMES = (*(f"b{i}" for i in range(8)), "l2", "resnet50")


def get_config(name: str = "b0") -> ConfigDict:
    """Returns the recipe; `name`: b0 ... b7, l2 or resnet50."""
    if name not in NAMES:
        raise ValueError(f"imagenet.py has no variant {name}; the variants are {', '.join(NAMES)}")
    if name == "resnet50":
        return base.on_all_labels(imagenet_10pct.get_config(), epochs=90.0, images=1_281_167)
    config = imagenet.get_config(name)
    config.train = imagenet.section(name, 0)
    # Prepared data need unlabeled images; supervised learning does not read them.
    config.data.labeled_as_unlabeled = "all"
    config.expected.unlabeled = config.expected.labeled
    return config
