"""Meta Pseudo Labels on CIFAR-10 with 4,000 labeled images and a Wide ResNet 28-2.

    ./run_prepare_data.sh --config=configs/meta_pseudo_labels/cifar10_4k.py --labeled=DIR \
        --workdir=W/data
    ./run_meta_pseudo_labels.sh --config=configs/meta_pseudo_labels/cifar10_4k.py --data=W/data \
        --workdir=W/student
    ./run_finetune.sh --config=configs/meta_pseudo_labels/cifar10_4k.py --data=W/data \
        --init=W/student --workdir=W/finetuned

For DIR see docs/data.md. The paper reaches 96.11 ± 0.07 % (Pham et al. 2021, Section 3.2).

`:paper` (default) takes the network, the split (4,000 labeled, 41,000 others, 5,000 set aside) and
the fine-tuning from the paper's main text. The main text is silent on the rest: both variants take
it from the command in the release's README. `:release` also has the release's network and
unlabeled images (all 50,000).

Both draw hard labels and have one h a step. `:paper` takes the cosine of the two gradients of eq.
12, minus its moving average (Appendix C.3). `:release` takes the released difference of losses,
with the sign that teaches. As it was released the feedback teaches nothing:
`--config.train.feedback=release --config.train.pseudo_labels=soft`. This project's own feedback is
`--config.train.feedback=soft`.

The paper's own table (Appendix C.4) could not be consulted; other sources give a million steps.
Hardware is not stated. Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base


def wide_resnet(variant: str) -> ConfigDict:
    """Returns the network of teacher and student; `variant`: see resnet.WideResNet."""
    return ConfigDict(
        {"name": "wrn_28_2", "variant": variant, "dropout": 0.2, "batch_norm_momentum": 0.99}
    )


def get_config(name: str = "paper") -> ConfigDict:
    """Returns the recipe; `name`: paper or release."""
    if name not in ("paper", "release"):
        raise ValueError(f"cifar10_4k.py has no variant {name}; the variants are paper, release")
    config = base.get_config()
    config.data.update(
        {
            "source": "cifar10",
            "labeled_per_class": 400,
            "labeled_as_unlabeled": "rest",
            "validation_size": 5000,
        }
    )
    config.expected.update({"labeled": 4000, "unlabeled": 41_000, "classes": 10})
    config.preprocessing.update(
        {
            "image_size": 32,
            "style": "small",
            "mean": (0.4914 * 255, 0.482158 * 255, 0.4465309 * 255),
            "std": (0.247032 * 255, 0.243485 * 255, 0.26159 * 255),
            "pad": 4,
            "randaugment_table": "meta_pseudo_labels",
            "randaugment_magnitude": 16.0,
            "translate_const": 4.0,
            "cutout_const": 4.0,
            "extra_cutout": 8,
        }
    )
    train = config.train  # base.py's values are those of this command
    train.steps = 300_000
    train.batch_size = 128
    train.feedback = "cosine"
    base.steps_follow_the_batch(config)
    for network in (train.teacher, train.student):
        network.model = wide_resnet("standard")
    if name == "release":
        config.data.update({"labeled_as_unlabeled": "all", "validation_size": 0})
        config.expected.unlabeled = 50_000
        train.feedback = "finite_difference"
        for network in (train.teacher, train.student):
            network.model.variant = "release"
    return config
