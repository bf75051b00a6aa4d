"""Cuts any recipe down to a run of a minute, to check all of its stages: `--config.smoke=True`."""

from __future__ import annotations

from ml_collections import ConfigDict

from training import architectures
from training.settings import FINE_TUNING, needing_weights

IMAGE_SIZE = 32
"""Side of the images of a cut recipe, in pixels."""


def reduced(config: ConfigDict) -> ConfigDict:
    """Returns `config` with one step per training, on 4 labeled images of the embedded digits.

    The images have 32×32 pixels. Each network becomes the smallest of its family (`Family.smoke`);
    a network of one size keeps it. Everything else stays: iterations, optimizers, losses,
    augmentation, precision.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(
            {
                "source": "digits",
                "labeled_per_class": 2,
                "out_of_domain": 8,
                "test_size": 20,
                "label_offset": 0,
            }
        )
        config.data.validation_size = 10 if config.data.validation_size else 0
        if "long_tail" in config.data:  # of 2 images a class
            config.data.long_tail = 1.0
        config.preprocessing.image_size = IMAGE_SIZE
        if "crossfit" in config:  # the same stages again
            config.crossfit.folds = 0
        if config.get("init"):  # published weights would bring a network of full size
            config.init = None
            if config.student_init == "pretrained":
                config.student_init = None
            for train in config.values():
                if isinstance(train, ConfigDict):  # random weights must not be frozen
                    train.update(
                        {name: FINE_TUNING[name].default for name in needing_weights(train)}
                    )
        if "balance" in config:
            config.balance.update({"threshold": 0.0, "images_per_class": 4})
            config.balance.sample_images = None
            if ":" in config.balance.get("priors", ""):  # weights of the user's classes
                config.balance.priors = "uniform"
        for train in config.values():
            if isinstance(train, ConfigDict) and "steps" in train:
                _shorten(train)
    return config


def _shorten(train: ConfigDict) -> None:
    """Cuts a train section."""
    train.update({"steps": 1, "epochs": None, "min_steps": 0, "batch_size": 4})
    if "steps_for_batch" in train:
        train.steps_for_batch = None
    train.unlabeled_ratio = min(train.unlabeled_ratio, 2)
    train.update(
        {
            key: min(train[key], most)
            for key, most in (("accumulation", 2), ("frozen_blocks", 1))
            if key in train
        }
    )
    for network in (train, train.get("teacher"), train.get("student")):
        if network and "model" in network:
            _shrink(network.model)
            network.schedule.update(
                {key: 0 for key in ("warmup_steps", "wait_steps") if key in network.schedule}
            )
    if "preprocessing" in train and "image_size" in train.preprocessing:
        train.preprocessing.image_size = IMAGE_SIZE


def _shrink(model: ConfigDict) -> None:
    """Cuts a network down to a few channels and layers."""
    model.update(architectures.find(model.name).smoke)
    if model.get("image_size"):
        model.image_size = IMAGE_SIZE
