"""Supervised learning on a person's own folders of images: the first teacher of Noisy Student.

    ./run_train.sh --config=configs/supervised/image_folder.py \
        --labeled=DIR --workdir=W [--test=DIR]

It is what the methods that use unlabeled images must beat. The values are those of
configs/noisy_student/image_folder.py:lite0, which fine-tunes published weights of
EfficientNet-Lite0. Another `:NAME` of that recipe picks its network.
"""

from ml_collections import ConfigDict

from configs.noisy_student import image_folder


def get_config(name: str = "") -> ConfigDict:
    """Returns the recipe; `name`: as in the Noisy Student recipe, "" included."""
    config = image_folder.get_config(name)
    config.train = config.teacher.copy_and_resolve_references()
    return config
