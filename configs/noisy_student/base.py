"""Makes the part that every Noisy Student recipe shares.

The values are the paper's (Xie et al. 2020, Section 3.1). docs/settings.md lists each setting with
its meaning and its possible values. The defaults are declared in `settings.py` of each room. A
recipe imports this, overrides what differs, and says why.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cli.settings import make
from noisy_student.settings import TRAIN
from training.settings import OPTIMIZER
from workflow.settings import RECIPE


def optimizer(**overrides: Any) -> ConfigDict:
    """Returns the section of an optimizer: training/optimizers.py."""
    return make(OPTIMIZER, **overrides)


def train_section(**overrides: Any) -> ConfigDict:
    """Returns the section of one training: a teacher, a student, or a fine-tuning."""
    return make(TRAIN, **overrides)


SMALL = {"width": 0.5, "depth": 0.2, "stem_stride": 1, "strides": (1, 2, 2, 1, 1, 1, 1)}
"""Values of `model`: a small EfficientNet, for images of 16 to 64 pixels."""


def get_config() -> ConfigDict:
    """Returns the shared recipe."""
    config = make(RECIPE)
    # The other settings of an evaluation are those of configs/evaluation/default.py.
    evaluate = {name: config.evaluate[name] for name in ("batch_size", "split")}
    config.evaluate = ConfigDict(evaluate)
    # Fine-tuning on unaugmented labeled images, from the weights (and architecture) of --init. The
    # paper: 1.5 epochs at a larger resolution. The learning rate is about the last one of the
    # student's schedule. With labeled_augmentation=True the noise is crop and flip, without
    # RandAugment.
    config.finetune.update({"epochs": 1.5, "labeled_augmentation": False})
    config.finetune.schedule.update({"name": "constant", "base": 0.0002, "warmup_epochs": 0.0})
    config.finetune.preprocessing = ConfigDict(
        {"randaugment_layers": 0, "image_size": placeholder(int)}
    )
    config.finetune_student.epochs = 20.0  # of students with labeled=False
    config.finetune_student.schedule.update({"name": "cosine", "base": 0.004, "warmup_epochs": 0.0})
    return config
