"""The settings of `config.evaluate`: their declarations, and the values that an evaluation has."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from cli.settings import Section, Setting, check_settings, make
from data.settings import STYLES

NORMS = ("inf", "2")
MADRY = "Madry et al. 2018"

EVALUATE = Section(
    "How models are evaluated. A recipe may leave out any of these settings.",
    {
        "batch_size": Setting(128, "Number of images in a batch.", at_least=1, unit="images"),
        "split": Setting(
            "test",
            "Split of the data; validation for choosing hyper-parameters. The flag --split.",
            choices=("labeled", "test", "validation"),
        ),
        "seed": Setting(0, "Seed of corruptions, sequences and random starts.", at_least=0),
        "baseline": Setting(
            None,
            "Name of the model that mCE and mFR divide by.",
            type=str,
            none="the first one; AlexNet for ImageNet-C and -P",
        ),
        "probe": Setting(
            True,
            "With `--init`, the weights that the models started from: also evaluate a linear "
            "probe, logistic regression on their frozen features.",
        ),
        "saved_model_style": Setting(
            "imagenet",
            "Preprocessing of a SavedModel that does not state it: imagenet (central crop) or "
            "small.",
            choices=STYLES,
        ),
        "whole_image": Setting(
            True,
            "ImageNet-C and -P: resize the whole image to the network's input, without a crop.",
            source="Xie et al. 2020, Section 3.3",
        ),
        "finetuned_on_c_and_p": Setting(
            False,
            "ImageNet-C and -P: include networks fine-tuned at a larger resolution.",
            source="Xie et al. 2020, footnote 3",
        ),
        "difficulty": Setting(1, "Difficulty of the sequences of -P.", choices=(1, 2, 3)),
        "norm": Setting("inf", "Norm of the attacks.", choices=NORMS),
        "fgsm_epsilons": Setting(
            tuple(float(epsilon) for epsilon in range(17)),
            "Sizes of FGSM's attack, on the scale 0-255.",
            at_least=0,
            length=(1, None),
            source="Xie et al. 2020, Section 3.4: up to 16",
        ),
        "pgd_epsilon": Setting(
            16.0,
            "Size of PGD's attack, on the scale 0-255.",
            at_least=0,
            source="Xie et al. 2020, Section 3.4",
        ),
        "pgd_iterations": Setting(
            10, "Iterations of PGD.", at_least=0, source="Xie et al. 2020, Section 3.4"
        ),
        "pgd_step": Setting(
            None,
            "Step of PGD, on the scale 0-255.",
            type=float,
            none=f"2.5 epsilon / iterations ({MADRY}, Section C); the paper does not say",
            above=0,
        ),
        "pgd_random_start": Setting(
            True,
            "Whether PGD starts at a random place, which the paper does not say.",
            source=MADRY,
        ),
    },
)


class Settings(SimpleNamespace):
    """The values of `EVALUATE`, each its default unless it is given."""

    def __init__(self, **values: Any) -> None:
        check_settings(values, EVALUATE, "config.evaluate")
        super().__init__(**{**make(EVALUATE).to_dict(), **values})

    @property
    def step(self) -> float:
        """Step of PGD, on the scale 0–255."""
        if self.pgd_step is None:
            return 2.5 * self.pgd_epsilon / max(self.pgd_iterations, 1)
        return self.pgd_step

    def to_dict(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Settings:
        """Makes the settings of `config.evaluate`, which may lack any. Raises InputError."""
        return cls(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in dict(values).items()}
        )
