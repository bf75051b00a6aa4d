"""Is it the noise? (Xie et al. 2020, Section 4, Table 6)

./run_experiment.sh study --config=configs/studies/noise.py --workdir=runs/studies/noise
./run_experiment.sh study --config=configs/studies/noise.py:small --workdir=runs/studies/noise_small

Noise is removed on the unlabeled images only; another condition has a noised teacher. `:small` has
an eighth of the unlabeled images.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config(name: str = "all") -> ConfigDict:
    """Returns the study; `name`: all or small."""
    if name not in ("all", "small"):
        raise ValueError(f"noise.py has no variant {name}; the variants are all, small")
    config = base.study(
        "Noise" if name == "all" else "Noise, with an eighth of the unlabeled images",
        "Augmentation, then dropout and stochastic depth, left out on the student's unlabeled"
        " images; and a teacher with all three.",
        claims=(
            ("noisy_student", "teacher", "a noisy student is better than its teacher"),
            (
                "noisy_student",
                "without_augmentation",
                "augmentation of the unlabeled images helps",
            ),
            ("without_augmentation", "without_noise", "dropout and stochastic depth on them help"),
            ("noisy_student", "noised_teacher", "an unnoised teacher is better than a noised one"),
        ),
        **base.one_student(
            noisy_student=(),
            without_augmentation=("--config.student.unlabeled_augmentation=False",),
            without_noise=(
                "--config.student.unlabeled_augmentation=False",
                "--config.student.unlabeled_model_noise=False",
            ),
            noised_teacher=(
                "--config.pseudo_label_1.views=1",
                "--config.pseudo_label_1.model_noise=True",
            ),
        ),
    )
    if name == "small":
        config.runs = tuple(
            (run, (*flags, "--config.balance.fraction=0.125"), *more)
            for run, flags, *more in config.runs
        )
    return config
