"""Any recipe cut down to a run of a minute, to see that all of its stages work: `--config.smoke=True`."""

from ml_collections import ConfigDict


def reduced(config: ConfigDict) -> ConfigDict:
    """`config` with one step a training, of 4 labelled images of 32 pixels, on the embedded digits, with a network a few channels wide.

    Everything else stays: iterations, optimizers, losses, augmentation, precision.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update({"source": "digits", "labeled_per_class": 2, "out_of_domain": 8, "test_size": 20, "label_offset": 0})
        config.data.validation_size = 10 if config.data.validation_size else 0
        config.preprocessing.image_size = 32
        if "balance" in config:
            config.balance.update({"threshold": 0.0, "images_per_class": 4})
        for train in config.values():
            if not (isinstance(train, ConfigDict) and "steps" in train):
                continue
            train.update({"steps": 1, "epochs": None, "min_steps": 0, "batch_size": 4})
            train.unlabeled_ratio = min(train.unlabeled_ratio, 2)
            train.update({key: min(train[key], most) for key, most in (("accumulation", 2), ("frozen_blocks", 1)) if key in train})
            for network in (train, train.get("teacher"), train.get("student")):
                if network and "model" in network:
                    _shrink(network.model)
                    network.schedule.update({key: 0 for key in ("warmup_steps", "wait_steps") if key in network.schedule})
            if "preprocessing" in train and "image_size" in train.preprocessing:
                train.preprocessing.image_size = 32
    return config


def _shrink(model: ConfigDict) -> None:
    """A few channels and layers, of the same family; a ResNet-50 has one size only."""
    if model.name.startswith("wrn"):
        model.name = "wrn_10_1"
    elif model.name != "resnet50":
        model.update({"width": 0.2, "depth": 0.1})
