"""Noisy Student on CIFAR-10 with 4,000 labeled images, the other 46,000 unlabeled.

    ./run_noisy_student.sh --config=configs/noisy_student/cifar10.py --labeled=DIR --workdir=W

For DIR see docs/data.md. Neither the paper nor its release has this experiment. The split is that
of Meta Pseudo Labels (Pham et al. 2021, Section 4). The values are those of `svhn.py` with a flip,
an EfficientNet-B0 for 32 pixels and three iterations. No result is claimed for it.
"""

from ml_collections import ConfigDict

from configs.noisy_student import svhn


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = svhn.get_config()
    config.iterations = 3
    config.data.update(
        {
            "source": "cifar10",
            "labeled_per_class": 400,
            "labeled_as_unlabeled": "rest",
            "validation_size": 0,
        }
    )
    config.expected.update({"labeled": 4000, "unlabeled": 46_000})
    config.preprocessing.flip = True
    config.preprocessing.update({"mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)})
    for name in ("teacher", "student"):
        config[name].steps = 50_000
        config[name].schedule.update({"name": "cosine", "warmup_epochs": 5.0})
    config.pseudo_label.optimize = True  # the same answers, sooner
    config.balance.threshold = 0.7
    config.balance.images_per_class = 4_600
    return config
