"""Meta Pseudo Labels on a person's own folders of images.

    C=--config=configs/meta_pseudo_labels/image_folder.py
    ./run_prepare_data.sh $C --labeled=DIR --unlabeled=DIR --workdir=W/data [--test=DIR]
    ./run_meta_pseudo_labels.sh $C --data=W/data --workdir=W/student
    ./run_evaluate.sh $C --data=W/data --model=W/student --workdir=W/evaluation
    ./run_export.sh --model=W/student --evaluation=W/evaluation --workdir=W/export

Folders, splits, resolution, RandAugment and the network (B0; `:b1` ... `:b7`) are those of configs/noisy_student/image_folder.py, so the
data prepared for one method serve the other. A step has 16 labelled images and 48 others; 60 passes over the labelled images, but no
fewer than 1,000 steps. It costs two to three times a step of Noisy Student's student, and there is one training in place of three.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base
from configs.noisy_student import image_folder


def get_config(name: str = "b0") -> ConfigDict:
    """The recipe; `name`: the EfficientNet of teacher and student."""
    config, folders = base.get_config(), image_folder.get_config(name)
    config.data, config.preprocessing = folders.data, folders.preprocessing
    train = config.meta_pseudo_labels
    train.update({"epochs": 60.0, "min_steps": 1000, "batch_size": 16, "unlabeled_ratio": 3, "ema_decay": 0.99})
    # Of the digits' recipe, as the next lines: the release's values are for 300,000 steps.
    train.uda.update({"weight": 2.0, "ramp_steps": 300})
    for side, wait in (("teacher", 0), ("student", 100)):
        train[side].model.name = name
        train[side].optimizer.clip_norm = 5.0
        train[side].schedule.update({"base": 0.8, "warmup_steps": 100, "wait_steps": wait})
    config.finetune.update({"steps": 200, "batch_size": 32})
    config.finetune.schedule.base = 0.005
    return config
