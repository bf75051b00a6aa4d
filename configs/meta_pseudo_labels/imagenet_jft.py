"""Meta Pseudo Labels on all of ImageNet and a large unlabelled corpus (Pham et al. 2021, Sections 3.3 and 4).

    ./run_prepare_data.sh --config=configs/meta_pseudo_labels/imagenet_jft.py:resnet50 --labeled=IMAGENET --unlabeled=POOL --workdir=W/data
    ./run_meta_pseudo_labels.sh --config=configs/meta_pseudo_labels/imagenet_jft.py:resnet50 --data=W/data --workdir=W/student
    ./run_finetune.sh --config=configs/meta_pseudo_labels/imagenet_jft.py:resnet50 --data=W/data --init=W/student --workdir=W/finetuned

`:resnet50` 83.2 % top-1 with 12.8 million images of JFT (2 days on 512 TPUv2 cores)
`:l2`       90.2 % with EfficientNet-L2 at 512 pixels and the 130 million images of Noisy Student (11 days on 2,048 TPUv3 cores)
`:b6_wide`  90.0 % with EfficientNet-B6-Wide (10 days)

From the main text: network, resolution, batches, steps, fine-tuning's steps; for the ResNet-50 the 25,000 labelled images set aside and
fine-tuning's rate (Section 3.3), where L2 and B6-Wide have the whole training set (Section 4). Fine-tuning's batch, and for L2 and B6-Wide
its rate, are this project's. Learning rates, losses and augmentation are those of `imagenet_10pct.py`, for
L2 and B6-Wide with Noisy Student's magnitude 27, although Section 4 says that all their hyper-parameters but the resolution are Noisy
Student's: with which optimizer two networks were trained so, it does not say. None of these is verified.
The feedback is the paper's: the cosine of eq. 12's gradients (Appendix C.3), for labels that are
drawn. Two such networks at 512 pixels do not fit one accelerator: the paper splits each replica over
16 cores. Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base, imagenet_10pct

NAMES = ("resnet50", "l2", "b6_wide")


def get_config(name: str = "resnet50") -> ConfigDict:
    """The recipe; `name`: resnet50, l2 or b6_wide."""
    if name not in NAMES:
        raise ValueError(f"imagenet_jft.py:{name}: the names are {', '.join(NAMES)}")
    config = imagenet_10pct.get_config()
    config.data.update({"labeled_per_class": None, "labeled_as_unlabeled": "nothing", "validation_size": 0})
    config.expected.update({"labeled": 1_281_167, "unlabeled": 130_000_000})
    train = config.train
    train.unlabeled_ratio = 8
    if name == "resnet50":
        config.data.validation_size = 25_000
        config.expected.update({"labeled": 1_256_167, "unlabeled": 12_800_000})
        train.update({"batch_size": 4096, "steps": 500_000})
        config.finetune.steps = 10_000
    else:
        train.update({"batch_size": 2048, "steps": 1_000_000})
        config.preprocessing.update({"image_size": 512, "randaugment_magnitude": 27.0})
        for network in (train.teacher, train.student):
            network.model = ConfigDict({"name": name, "batch_norm_momentum": 0.99})
        config.finetune.steps = 20_000
    config.finetune.batch_size = 4096 if name == "resnet50" else 2048
    config.finetune.schedule.base = 1e-4 * 256 / config.finetune.batch_size  # 1e-4 whatever the batch
    base.steps_follow_the_batch(config)
    return config
