"""Makes the part that every Meta Pseudo Labels recipe shares (Pham et al. 2021).

The paper's own tables are in an appendix that could not be consulted. Optimizers, schedules and
losses have the values of the command for CIFAR-10-4K in the release's README. The architecture is
the smallest EfficientNet. The feedback is this project's, `soft`; recipes of the paper's
experiments set the paper's, `cosine`. A recipe imports this, overrides what differs, and says why.
docs/settings.md lists each setting with its meaning.
"""

from ml_collections import ConfigDict

from cli.settings import make
from configs.noisy_student import base
from meta_pseudo_labels.settings import TRAIN

SHARED = (
    *("seed", "smoke", "data", "expected", "preprocessing"),
    *("pseudo_label", "balance", "finetune", "evaluate"),
)
"""Keys that are copied from Noisy Student's base recipe."""


def train_section() -> ConfigDict:
    """Returns the section of the pair's training."""
    return make(TRAIN)


def steps_follow_the_batch(config: ConfigDict) -> None:
    """Ties the durations in steps to the recipe's batch sizes.

    Another batch size changes the number of steps and keeps the number of epochs.
    """
    for section in (config.train, config.finetune):
        section.steps_for_batch = section.batch_size


def get_config() -> ConfigDict:
    """Returns the shared recipe.

    Data, preprocessing, fine-tuning and evaluation have the same keys as Noisy Student's recipe.
    """
    shared = base.get_config()
    config = ConfigDict({name: shared[name] for name in SHARED})
    # for `reduced`: every unlabeled image once
    config.balance.update({"threshold": 0.0, "balance": False})
    config.train = train_section()
    # Fine-tuning of the student on labeled images: SGD at a fixed learning rate of 1e-5, batch
    # size 512, 1,000 steps for CIFAR-10 and SVHN (Section 3.2).
    config.finetune.epochs = None
    config.finetune.update(
        {"steps": 1000, "batch_size": 512, "label_smoothing": 0.0, "labeled_augmentation": True}
    )
    config.finetune.optimizer.update({"name": "sgd", "momentum": 0.0})
    config.finetune.schedule.base = 1e-5 / 2  # per 256 images
    return config
