"""Noisy Student on a person's own folders of images.

    ./run_noisy_student.sh --config=configs/noisy_student/image_folder.py \
        --labeled=DIR --unlabeled=DIR --workdir=W [--test=DIR]

DIR/<class>/*.jpg are the labelled images, everything below the unlabelled folder the others. Resolution, batch size and steps follow
from the data: the median image's shorter side (32 to 224 pixels), 32 to 256 labelled images a step, 60 passes over the labelled
images, but no fewer than 3,000 steps. At a resolution of up to 64 pixels images are seen whole, moved a little and mirrored, else by random
pieces.
Any value can be given: `--config.preprocessing.image_size=128`.
What it comes to is a matter of the images; `--dry_run` tells steps, memory and images. B0 at 224 pixels takes a second for a step of 32
images on 2 cores (`./run_benchmarks.sh train_step`): a folder of some thousand photographs wants a GPU, or small images.
`:lite0` fine-tunes published weights of EfficientNet-Lite0, which come with the project, at 160 pixels.
Take it for photographs on a machine without a GPU, and for few of them anywhere. With `--init=imagenet:b2`
and the like it fine-tunes other weights, with their network (docs/models.md).
`:b1` ... `:b7` picks a larger network for teacher and students; `:small` a small one, at least 600 steps, for images of up to 64 pixels,
which B0 halves five times. These begin with random weights, of which few images make no B0: try `:small` with a resolution of 64 as
well, or weights of the releases, keras.applications and timm (docs/models.md).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import fine_tuning
from configs.noisy_student import base

NAMES = ("small", "lite0", *(f"b{i}" for i in range(8)))


def get_config(name: str = "b0") -> ConfigDict:
    """The recipe; `name`: the EfficientNet, or small; lite0: pretrained."""
    if name not in NAMES:
        raise ValueError(f"image_folder.py:{name}: the names are {', '.join(NAMES)}")
    config = base.get_config()
    config.iterations = 2
    config.preprocessing.randaugment_magnitude = 9.0  # milder than the paper's 27, which was tuned on 300 million images
    config.preprocessing.randaugment_mode = "monotone"
    of_size = {"style": str, "pad": int, "translate_const": float, "cutout_const": float, "crop_padding": int}
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
    if name == "lite0":
        _start_from_published_weights(config)
    return config


def _start_from_published_weights(config: ConfigDict) -> None:
    """Makes a fine-tuning of every training: few steps, the lower blocks fixed with their BatchNorm."""
    fine_tuning.start_from_published_weights(config)
    for section in ("teacher", "student"):
        config[section].min_steps = 200
        fine_tuning.fine_tune(config[section])
        fine_tuning.move(config[section])
    # RandAugment is for the students: at a quarter of this rate and with it, the teacher underfits.
    config.teacher.preprocessing = ConfigDict({"randaugment_layers": 0})
