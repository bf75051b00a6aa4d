"""Noisy Student on SVHN: 69,257 labeled digits, the 531,131 `extra` images unlabeled.

    ./run_noisy_student.sh --config=configs/noisy_student/svhn.py --labeled=DIR \
        --unlabeled=DIR --workdir=W

For DIR see docs/data.md. This is the released code's own demonstration. The release reports 97.9 %
for the teacher and 98.6 ± 0.1 % for the student (no number in the paper; hardware not stated).
Where the released script differs from the paper's ImageNet recipe, the value is the script's.
"""

from ml_collections import ConfigDict

from configs.noisy_student import base


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = base.get_config()
    config.iterations = 1
    config.data.update(
        {
            "source": "svhn",
            "validation_size": 4000,
            "near_duplicates": False,
        }
    )
    config.expected.update({"labeled": 69_257, "unlabeled": 531_131, "classes": 10})
    config.preprocessing.update(
        {
            "image_size": 32,
            "style": "small",
            "mean": (0.4376821 * 255, 0.4437697 * 255, 0.47280442 * 255),
            "std": (0.19803012 * 255, 0.20101562 * 255, 0.19703614 * 255),
            "flip": False,
            "pad": 4,
            "randaugment_magnitude": 5.0,
            "translate_const": 4.0,
            "cutout_const": 4.0,
            "extra_cutout": 8,
        }
    )
    for name in ("teacher", "student"):
        train = config[name]
        train.model.strides = (1, 1, 1, 2, 1, 2, 1)  # after a stem of stride 2: a map of 4x4
        train.weight_decay = 1e-4
        train.batch_size = 128
        train.steps = 109_474
        train.steps_for_batch = train.batch_size
        train.schedule.decay_epochs = 1.372  # ends at 2e-4 per 256 images
    config.student.unlabeled_ratio = 5
    config.pseudo_label.optimize = True  # the same answers, sooner
    config.balance.images_per_class = 53_113
    return config
