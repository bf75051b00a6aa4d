"""Meta Pseudo Labels on all of ImageNet and a large unlabeled corpus.

    ./run_prepare_data.sh --config=configs/meta_pseudo_labels/imagenet_jft.py:resnet50 \
        --labeled=IMAGENET --unlabeled=POOL --workdir=W/data
    ./run_finetune.sh --config=configs/meta_pseudo_labels/imagenet_jft.py:resnet50 --data=W/data \
        --init=W/student --workdir=W/finetuned

The variants are those of Pham et al. 2021, Sections 3.3 and 4:

`:resnet50` 83.2 % top-1 with 12.8 million images of JFT (2 days on 512 TPUv2 cores)
`:l2`       90.2 % with EfficientNet-L2 at 512 pixels and the 130 million images of Noisy Student
            (11 days on 2,048 TPUv3 cores)
`:b6_wide`  90.0 % with EfficientNet-B6-Wide (10 days)

The unlabeled images are a selection of the pool. T is an EfficientNet-B0, or another classifier of
ImageNet. The training reads the images selected, with their copies, instead of the whole pool:

    C=--config=configs/meta_pseudo_labels/imagenet_jft.py:resnet50
    ./run_pseudo_label.sh $C --data=W/data --teacher=T --workdir=W/predictions
    ./run_balance.sh $C --data=W/data --predictions=W/predictions --workdir=W/selected
    ./run_meta_pseudo_labels.sh $C --data=W/data --selection=W/selected --workdir=W/student

The selection for the ResNet-50 is the 12,800 most probable images of each class (Section 3.3). For
L2 and B6-Wide it is Noisy Student's selection (Section 4), which a run of its recipes has in
`pseudo_labeled_0`.

The main text gives network, resolution, batch sizes, steps and the steps of the fine-tuning. For
the ResNet-50 it also gives the 25,000 labeled images set aside and the learning rate of the
fine-tuning (Section 3.3). L2 and B6-Wide have the whole training set (Section 4). The batch size of
the fine-tuning, and its learning rate for L2 and B6-Wide, are this project's. The ResNet-50's
learning rates, losses and augmentation are those of `imagenet_10pct.py`.

L2 and B6-Wide have Noisy Student's hyper-parameters, as Section 4 says: RMSProp at 0.128 for 2,048
images, weight decay, label smoothing, moving average, dropout, RandAugment 2 x 27. The learning
rate falls by half a cosine: Noisy Student's factor of 0.97 every 2.4 epochs would leave 1.5e-9 of
it after these 1,599 epochs.

The feedback is the paper's: the cosine of eq. 12's gradients (Appendix C.3), for labels that are
drawn. It does not need a step that is a multiple of the gradient; a step of RMSProp is not. Two
such networks at 512 pixels do not fit one accelerator: the paper splits each replica over 16 cores.
Nothing here has been run at this size.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base, imagenet_10pct
from configs.noisy_student.base import optimizer

NAMES = ("resnet50", "l2", "b6_wide")


def get_config(name: str = "resnet50") -> ConfigDict:
    """Returns the recipe; `name`: resnet50, l2 or b6_wide."""
    if name not in NAMES:
        raise ValueError(
            f"imagenet_jft.py has no variant {name}; the variants are {', '.join(NAMES)}"
        )
    config = imagenet_10pct.get_config()
    config.data.update(
        {"labeled_per_class": None, "labeled_as_unlabeled": "nothing", "validation_size": 0}
    )
    config.expected.update({"labeled": 1_281_167, "unlabeled": 130_000_000})
    train = config.train
    train.unlabeled_ratio = 8
    config.balance.balance = True
    if name == "resnet50":
        config.data.validation_size = 25_000
        config.expected.update({"labeled": 1_256_167, "unlabeled": 12_800_000})
        train.update({"batch_size": 4096, "steps": 500_000})
        config.finetune.steps = 10_000
        config.balance.images_per_class = 12_800
    else:
        train.update({"batch_size": 2048, "steps": 1_000_000})
        train.update({"weight_decay": 1e-5, "label_smoothing": 0.1, "ema_decay": 0.9999})
        noise = {
            "randaugment_table": "noisy_student",
            "randaugment_layers": 2,
            "randaugment_magnitude": 27.0,
        }
        config.preprocessing.update({"image_size": 512, **noise})
        for network in (train.teacher, train.student):
            network.model = ConfigDict({"name": name, "batch_norm_momentum": 0.99})
            network.optimizer = optimizer()
            # a warm-up of 5 epochs
            network.schedule.update({"base": 0.016, "warmup_steps": 5 * 1_281_167 // 2048})
        config.finetune.steps = 20_000
        config.balance.update({"threshold": 0.3, "images_per_class": 130_000})
    config.finetune.batch_size = 4096 if name == "resnet50" else 2048
    # a learning rate of 1e-4 whatever the batch size
    config.finetune.schedule.base = 1e-4 * 256 / config.finetune.batch_size
    base.steps_follow_the_batch(config)
    return config
