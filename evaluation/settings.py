"""The values of `config.evaluate`, each with its default and its check; `configs/evaluation/default.py` explains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cli.errors import InputError
from data.preprocessing import STYLES
from evaluation.adversarial import NORMS


@dataclasses.dataclass(frozen=True)
class Settings:
    """See `configs/evaluation/default.py`, which a test holds to these defaults."""

    batch_size: int = 128
    split: str = "test"
    seed: int = 0
    baseline: str | None = None
    saved_model_style: str = "imagenet"
    whole_image: bool = True
    finetuned_on_c_and_p: bool = False
    difficulty: int = 1
    norm: str = "inf"
    fgsm_epsilons: tuple[float, ...] = tuple(float(epsilon) for epsilon in range(17))
    pgd_epsilon: float = 16.0
    pgd_iterations: int = 10
    pgd_step: float | None = None
    pgd_random_start: bool = True

    @property
    def step(self) -> float:
        """Of PGD, on the scale 0–255."""
        return 2.5 * self.pgd_epsilon / max(self.pgd_iterations, 1) if self.pgd_step is None else self.pgd_step

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Settings:
        """From `config.evaluate`, which may lack any of them. Raises InputError for what cannot be used."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise InputError(f"evaluate: unknown {', '.join(sorted(unknown))}; the known ones are in configs/evaluation/default.py")
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in dict(values).items()}
        settings = cls(**given)
        for name, right, wanted in (
            ("batch_size", _whole(settings.batch_size, 1), "a whole number of at least 1"),
            ("seed", _whole(settings.seed, 0), "a whole number of at least 0"),
            ("saved_model_style", settings.saved_model_style in STYLES, f"one of {', '.join(STYLES)}"),
            ("difficulty", settings.difficulty in (1, 2, 3), "1, 2 or 3"),
            ("norm", settings.norm in NORMS, f"one of {', '.join(NORMS)}"),
            ("fgsm_epsilons", bool(settings.fgsm_epsilons) and min(settings.fgsm_epsilons) >= 0, "one or more numbers of at least 0"),
            ("pgd_epsilon", settings.pgd_epsilon >= 0, "at least 0"),
            ("pgd_iterations", _whole(settings.pgd_iterations, 0), "a whole number of at least 0"),
            ("pgd_step", settings.pgd_step is None or settings.pgd_step > 0, "above 0"),
        ):
            if not right:
                raise InputError(f"evaluate.{name} must be {wanted}, not {getattr(settings, name)!r}")
        return settings


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
