"""Noisy Student on a person's own folders of images.

    ./run_noisy_student.sh --config=configs/noisy_student/image_folder.py \
        --labeled=DIR --unlabeled=DIR --workdir=W [--test=DIR]

DIR/<class>/*.jpg are the labeled images. Every image below the unlabeled folder is unlabeled.

By default every training fine-tunes EfficientNet-Lite0 from published weights at 160 pixels. The
weights come with the project, and a machine without a GPU is enough. Where TensorFlow sees a GPU,
the commands that run all stages take B0 from ImageNet weights at 224 pixels, which they download
(workflow/by_device.py). One line says so, and a begun run keeps its network. `:lite0` is the same
on every machine. A labeled batch is 32 to 256 images. A training makes 60 passes over the labeled
images, but no fewer than 200 steps. With `--init=imagenet:b2` and the like it fine-tunes other
weights, with their network (docs/models.md).

`:b0` ... `:b7` train that network from random weights, or from the weights of `--init`, in at least
3,000 steps. The resolution is that of the data: the median image's shorter side, 32 to 224 pixels.
`:small` is a small network from random weights, for images of up to 64 pixels, with at least 600
steps. The other networks halve an image five times. Few images are not enough to train B0 from
random weights. `./run_benchmarks.sh train_step` and `--dry_run` tell how long it takes here.

With fewer than 1,000 labeled images besides the test images, cross-fitting chooses the served
model. It trains everything two more times (docs/evaluation.md, "Which model is served").
`--config.crossfit.folds=0` turns it off.

At a resolution of up to 64 pixels images are seen whole, moved a little and mirrored. At a larger
one they are seen by random pieces. Any value can be given:
`--config.preprocessing.image_size=128`. `--dry_run` counts the images, measures a step on this
machine, and tells hours, memory and disk.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import fine_tuning
from configs.noisy_student import base

NAMES = ("lite0", "small", *(f"b{i}" for i in range(8)))


def get_config(name: str = "") -> ConfigDict:
    """Returns the recipe.

    `name`: lite0, which starts from published weights; another EfficientNet; or small. Without a
    name it is lite0, or on a GPU what `workflow.by_device` puts in its place.
    """
    config = base.get_config()
    config.by_device = not name
    name = name or fine_tuning.NETWORK
    if name not in NAMES:
        raise ValueError(
            f"image_folder.py has no variant {name}; the variants are {', '.join(NAMES)}"
        )
    config.iterations = 2
    # Images to choose the served model by: a fifth of the labeled ones, or cross-fitting where
    # that is less than 200.
    del config.data.validation_size
    config.data.validation_size = placeholder(int)
    config.crossfit.folds = 2
    # milder than the paper's 27, which was tuned on 300 million images
    config.preprocessing.randaugment_magnitude = 9.0
    config.preprocessing.randaugment_mode = "monotone"
    of_size = {
        "style": str,
        "pad": int,
        "translate_const": float,
        "cutout_const": float,
        "crop_padding": int,
    }
    for key, kind in of_size.items():  # None: from the image size, see training/resolve.py
        del config.preprocessing[key]
        config.preprocessing[key] = placeholder(kind)
    for section in ("teacher", "student"):
        train = config[section]
        if name == "small":
            train.model.update(base.SMALL)
        else:
            train.model.name = name
        train.model.batch_norm_momentum = 0.95  # few steps
        train.min_steps = 600 if name == "small" else 3000
        train.epochs = 60.0
        train.schedule.update({"name": "cosine", "base": 0.064, "warmup_epochs": 5.0})
        train.ema_decay = 0.999
    config.student.unlabeled_ratio = 3
    config.pseudo_label.optimize = True  # the same answers, sooner
    if name == "lite0":
        _start_from_published_weights(config)
    return config


def _start_from_published_weights(config: ConfigDict) -> None:
    """Makes every training a fine-tuning: few steps, the lower blocks and their BatchNorm fixed."""
    fine_tuning.start_from_published_weights(config)
    for section in ("teacher", "student"):
        config[section].min_steps = 200
        fine_tuning.fine_tune(config[section])
        fine_tuning.move(config[section])
    # RandAugment is for the students: with it, and at a quarter of this learning rate, the teacher
    # underfits.
    config.teacher.preprocessing = ConfigDict({"randaugment_layers": 0})
