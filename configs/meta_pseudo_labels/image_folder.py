"""Meta Pseudo Labels on a person's own folders of images.

    ./run_train.sh --config=configs/meta_pseudo_labels/image_folder.py \
        --labeled=DIR --unlabeled=DIR --workdir=W [--test=DIR]

Folders, splits, resolution and RandAugment are those of configs/noisy_student/image_folder.py, so
the data prepared for one method serve the other. `run_teacher.sh` and `run_noisy_student.sh` run
from this recipe, too, for comparison.

Teacher and student start from published weights of EfficientNet-Lite0, each with a new classifier,
as the recipes of all methods do (configs/fine_tuning.py). A step has 32 labeled and 96 unlabeled
images. The training makes 60 passes over the labeled images, but no fewer than 300 steps. The
student is then fine-tuned on the labeled images, as in the paper (Section 3.2). The fine-tuned
model is exported; where there are validation images, the better one on these.

`:resnet50` and `:wrn_28_2` start from random weights, which need many labeled images. They are the
networks that the paper trains by SGD: a ResNet-50, and a Wide ResNet 28-2, which sees each image
whole at 32 pixels. They take no fewer than 1,000 steps, and no fine-tuning unless
`--config.finetune_last=True` asks for it.
"""

from ml_collections import ConfigDict

from configs import fine_tuning
from configs.meta_pseudo_labels import base
from configs.noisy_student import image_folder

NAMES = (fine_tuning.NETWORK, "resnet50", "wrn_28_2")


def get_config(name: str = "") -> ConfigDict:
    """Returns the recipe; `name`: the network of both; "": the one for this machine."""
    if name and name not in NAMES:
        raise ValueError(
            f"image_folder.py has no variant {name}; the variants are {', '.join(NAMES)}"
        )
    pretrained = name in ("", fine_tuning.NETWORK)
    config = image_folder.get_config(name if pretrained else "b0")
    pair = base.get_config()
    config.train, config.finetune = pair.train, pair.finetune
    if name == "wrn_28_2":
        config.preprocessing.image_size = 32
    train = config.train
    config.finetune.update({"steps": 200, "batch_size": 32})
    config.finetune.schedule.base = 0.008
    # Loss weights, warm-up and learning rate are those of the digits recipe; the release's are for
    # 300,000 steps.
    train.update(
        {
            "epochs": 60.0,
            "min_steps": 1000,
            "batch_size": 32,
            "unlabeled_ratio": 3,
            "ema_decay": 0.99,
        }
    )
    train.uda.update({"weight": 2.0, "ramp_steps": 300})
    base.steps_follow_the_batch(config)
    if pretrained:
        _start_from_published_weights(config)
        return config
    for section in (config.teacher, config.student, train.teacher, train.student):
        section.model.update({"name": name, "dropout": 0.2, "batch_norm_momentum": 0.95})
    for side, wait in (("teacher", 0), ("student", 100)):
        train[side].optimizer.clip_norm = 5.0
        train[side].schedule.update({"base": 0.4, "warmup_steps": 100, "wait_steps": wait})
    return config


def _start_from_published_weights(config: ConfigDict) -> None:
    """Makes a fine-tuning of the pair: few steps, the lower blocks of both networks fixed."""
    train = config.train
    train.update({"min_steps": 300, "weight_decay": config.student.weight_decay})
    train.uda.ramp_steps = 100
    fine_tuning.fine_tune(train)
    for side, wait in (("teacher", 0), ("student", 30)):
        train[side].model.update({"name": fine_tuning.NETWORK, "batch_norm_momentum": 0.95})
        train[side].optimizer.clip_norm = 5.0
        train[side].schedule.update({"warmup_steps": 30, "wait_steps": wait})
        fine_tuning.move(train[side])
    config.finetune_last = True
    config.finetune.steps = 100
    fine_tuning.fine_tune(config.finetune)
