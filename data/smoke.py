"""The data's part of a recipe cut down to a minute (`--config.smoke=True`); `training.smoke` has the rest."""

from ml_collections import ConfigDict

IMAGE_SIZE = 32
"""Side of the images of a cut recipe, in pixels."""


def reduced(config: ConfigDict) -> ConfigDict:
    """Returns a copy of `config` with a few of the embedded digits, of 32 pixels, in place of its data."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update({"source": "digits", "labeled_per_class": 2, "out_of_domain": 8, "test_size": 20, "label_offset": 0})
        config.data.validation_size = 10 if config.data.validation_size else 0
        config.preprocessing.image_size = IMAGE_SIZE
    return config
