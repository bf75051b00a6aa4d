"""Meta Pseudo Labels on SVHN with 1,000 labeled images and a Wide ResNet 28-2.

    ./run_prepare_data.sh --config=configs/meta_pseudo_labels/svhn_1k.py --labeled=DIR \
        --unlabeled=DIR --workdir=W/data
    ./run_meta_pseudo_labels.sh --config=configs/meta_pseudo_labels/svhn_1k.py --data=W/data \
        --workdir=W/student
    ./run_finetune.sh --config=configs/meta_pseudo_labels/svhn_1k.py --data=W/data \
        --init=W/student --workdir=W/finetuned

For DIR see docs/data.md. The paper reaches 98.01 ± 0.07 % (Pham et al. 2021, Section 3.2).

The main text gives network, split and fine-tuning. It is silent on the rest, and the release has no
command for SVHN. The other values are those of `cifar10_4k.py` without the flip; none of them is
verified for SVHN. Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import cifar10_4k


def get_config(name: str = "paper") -> ConfigDict:
    """Returns the recipe; `name`: paper."""
    if name != "paper":
        raise ValueError(
            f"svhn_1k.py has no variant {name}; the only variant is paper, because the release has "
            "no command for SVHN"
        )
    config = cifar10_4k.get_config()
    config.data.update(
        {"source": "svhn", "labeled_per_class": 100, "validation_size": 0, "near_duplicates": False}
    )
    config.expected.update({"labeled": 1000, "unlabeled": 603_388})
    config.preprocessing.update(
        {
            "mean": (0.4376821 * 255, 0.4437697 * 255, 0.47280442 * 255),
            "std": (0.19803012 * 255, 0.20101562 * 255, 0.19703614 * 255),
            "flip": False,
        }
    )
    return config
