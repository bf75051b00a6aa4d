"""FixMatch on a person's own folders of images.

    ./run_train.sh --config=configs/fixmatch/image_folder.py \
        --labeled=DIR --unlabeled=DIR --workdir=W [--test=DIR]

Threshold and weight are the paper's. Network, weights to start from, optimizer, batch size and
steps are those of configs/uda/image_folder.py. The paper has 7 unlabeled images for each labeled
one; here there are 3, which a CPU can compute.
"""

from ml_collections import ConfigDict

from configs.fixmatch import base
from configs.uda import image_folder


def get_config(name: str = "") -> ConfigDict:
    """Returns the recipe; `name`: the network; "": the one for this machine."""
    return base.from_uda(image_folder.get_config(name))
