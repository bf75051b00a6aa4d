"""Makes a recipe of Meta Pseudo Labels train its network on all labels.

The experiment is Pham et al. 2021, Table 2, last row.
"""

from ml_collections import ConfigDict

from configs.noisy_student import base

SHARED = ("batch_size", "label_smoothing", "weight_decay", "ema_decay", "precision")
"""Settings that the supervised training takes from the pair's."""


def on_all_labels(config: ConfigDict, *, epochs: float, images: int) -> ConfigDict:
    """Returns a Meta Pseudo Labels recipe with supervised training instead of the pair's.

    The network sees every labeled image, with RandAugment as the recipe's strong view has it, and
    no unlabeled one. Optimizer and learning rate are those of the pair's teacher.

    Args:
      config: the recipe of the pair.
      epochs: length of the training, in epochs of the labeled images.
      images: labeled images of a full copy.
    """
    pair = config.train
    train = base.train_section(method="supervised", epochs=epochs)
    train.update({key: pair[key] for key in SHARED})
    train.model = pair.teacher.model.copy_and_resolve_references()
    train.optimizer = pair.teacher.optimizer.copy_and_resolve_references()
    train.schedule.update(
        {"name": "cosine", "base": pair.teacher.schedule.base, "warmup_epochs": 5.0}
    )
    config.train = train
    # Prepared data need unlabeled images; supervised learning does not read them.
    config.data.update(
        {"labeled_per_class": None, "labeled_as_unlabeled": "all", "validation_size": 0}
    )
    config.expected.update({"labeled": images, "unlabeled": images})
    return config
