"""Meta Pseudo Labels on a tenth of ImageNet's labels with a ResNet-50.

    ./run_prepare_data.sh --config=configs/meta_pseudo_labels/imagenet_10pct.py \
        --labeled=IMAGENET --workdir=W/data
    ./run_meta_pseudo_labels.sh --config=configs/meta_pseudo_labels/imagenet_10pct.py \
        --data=W/data --workdir=W/student
    ./run_finetune.sh --config=configs/meta_pseudo_labels/imagenet_10pct.py --data=W/data \
        --init=W/student --workdir=W/finetuned

For IMAGENET see docs/data.md. The paper reaches 73.89 % top-1 and 91.38 % top-5 (Pham et al. 2021,
Section 3.2).

The main text gives the network, the resolution, the split (128,000 labeled, all others unlabeled)
and the fine-tuning. The rest is the command in the release's README. It looks like a draft (it
names CIFAR-10's data and two batch sizes), so the values are unverified, and `:release` is the same
recipe. Its feedback is the paper's, too, because the release's difference of losses is mostly
rounding in bfloat16. Hardware is not stated. Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base


def get_config(name: str = "paper") -> ConfigDict:
    """Returns the recipe; `name`: paper or release, which are the same."""
    if name not in ("paper", "release"):
        raise ValueError(
            f"imagenet_10pct.py has no variant {name}; the variants are paper, release"
        )
    config = base.get_config()
    config.data.update(
        {
            "source": "imagenet",
            "label_offset": 1,
            "labeled_per_class": 128,
            "labeled_as_unlabeled": "rest",
        }
    )
    config.expected.update({"labeled": 128_000, "unlabeled": 1_153_167, "classes": 1000})
    config.preprocessing.update(
        {
            "image_size": 224,
            "randaugment_table": "meta_pseudo_labels",
            "randaugment_magnitude": 17.0,
            "cutout_const": 40.0,
        }
    )
    train = config.train
    train.update(
        {"steps": 700_000, "batch_size": 1024, "unlabeled_ratio": 15, "precision": "mixed_bfloat16"}
    )
    # for hard labels that are drawn; minus its moving average (Appendix C.3)
    train.feedback = "cosine"
    train.update({"weight_decay": 1e-4, "label_smoothing": 0.1, "ema_decay": 0.999})
    train.uda.update({"temperature": 0.5, "weight": 20.0, "ramp_steps": 50_000})
    for network, rate, wait in ((train.teacher, 0.15, 0), (train.student, 0.1, 20_000)):
        network.model = ConfigDict(
            {"name": "resnet50", "dropout": 0.1, "batch_norm_momentum": 0.99}
        )
        network.optimizer.clip_norm = 5.0
        network.schedule.update({"base": rate, "wait_steps": wait})
    config.finetune.steps = 2000
    base.steps_follow_the_batch(config)
    return config
