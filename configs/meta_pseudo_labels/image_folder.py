"""Meta Pseudo Labels on a person's own folders of images.

    C=--config=configs/meta_pseudo_labels/image_folder.py
    ./run_prepare_data.sh $C --labeled=DIR --unlabeled=DIR --workdir=W/data [--test=DIR]
    ./run_meta_pseudo_labels.sh $C --data=W/data --workdir=W/student
    ./run_finetune.sh $C --data=W/data --init=W/student --workdir=W/finetuned                      # may help
    ./run_evaluate.sh $C --data=W/data --model=W/student,W/finetuned --workdir=W/evaluation
    ./run_export.sh --model=W/student --evaluation=W/evaluation --workdir=W/export

Folders, splits, resolution and RandAugment are those of configs/noisy_student/image_folder.py, so the data prepared for one method serve
the other, and `run_teacher.sh` and `run_noisy_student.sh` run from this recipe, too, for comparison. The networks are those that the paper
trains by SGD: a ResNet-50, or with `:wrn_28_2`, for small images or a machine without a GPU, a Wide ResNet 28-2 at 32 pixels, which sees
each image whole. A step has 32 labelled images and 96 others; 60 passes over the labelled images, but no fewer than 1,000 steps.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base
from configs.noisy_student import image_folder

NAMES = ("resnet50", "wrn_28_2")


def get_config(name: str = "resnet50") -> ConfigDict:
    """The recipe; `name`: the network of teacher and student."""
    if name not in NAMES:
        raise ValueError(f"image_folder.py:{name}: the names are {', '.join(NAMES)}")
    config, own = image_folder.get_config("b0"), base.get_config()
    config.train, config.finetune = own.train, own.finetune
    if name == "wrn_28_2":
        config.preprocessing.image_size = 32
    train = config.train
    # Loss weights, warm-up and rate are the digits' recipe's: the release's are for 300,000 steps.
    train.update({"epochs": 60.0, "min_steps": 1000, "batch_size": 32, "unlabeled_ratio": 3, "ema_decay": 0.99})
    train.uda.update({"weight": 2.0, "ramp_steps": 300})
    for section in (config.teacher, config.student, train.teacher, train.student):
        section.model.update({"name": name, "dropout": 0.2, "batch_norm_momentum": 0.95})
    for side, wait in (("teacher", 0), ("student", 100)):
        train[side].optimizer.clip_norm = 5.0
        train[side].schedule.update({"base": 0.4, "warmup_steps": 100, "wait_steps": wait})
    config.finetune.update({"steps": 200, "batch_size": 32})
    config.finetune.schedule.base = 0.008
    return config
