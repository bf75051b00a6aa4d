"""The settings of a whole recipe: settings of the stages, and sections of the rooms below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

import data.settings
import evaluation.settings
from cli import settings
from cli.errors import InputError
from cli.settings import Section, Setting, When
from training.settings import PRECISIONS
from workflow import methods

PSEUDO_LABEL = Section(
    "How the teacher labels the unlabeled images. `pseudo_label_1`, … are of one iteration.",
    {
        "batch_size": Setting(128, "Number of images in a batch.", at_least=1, unit="images"),
        "top_k": Setting(
            0,
            "Number of most probable classes to store; 0: the whole distribution, as float16.",
            at_least=0,
        ),
        "views": Setting(
            0,
            "Beyond the paper: number of noised copies of an image over which the teacher's "
            "probabilities are averaged. 0: the clean image, as in the paper.",
            at_least=0,
        ),
        "model_noise": Setting(
            False,
            "Whether the teacher uses dropout and stochastic depth; with views=1 as in Table 6.",
        ),
        "calibrate": Setting(
            False,
            "Beyond the paper: whether to temper the probabilities as the validation split needs "
            "it.",
        ),
        "precision": Setting(
            "float32", "Numbers in which the teacher computes, as in training.", choices=PRECISIONS
        ),
        "optimize": Setting(
            False,
            "For speed: whether to fold BatchNorm into the convolutions (`./run_benchmarks.sh "
            "pseudo_label`).",
        ),
    },
)

BALANCE = Section(
    "Which pseudo-labeled images are kept, and how often.",
    {
        "threshold": Setting(
            0.3,
            "Confidence that a kept image must exceed.",
            at_least=0,
            below=1,
            source="Xie et al. 2020, Section 3.1",
        ),
        "max_confidence": Setting(
            1.0,
            "Greatest confidence of a kept image; above threshold.",
            above=0,
            at_most=1,
        ),
        "images_per_class": Setting(
            None,
            "Number of images of each class; 130,000 in the paper.",
            type=int,
            none="the median class's number of images kept",
            at_least=1,
            unit="images",
            when=(When("balance"),),
        ),
        "balance": Setting(True, "Whether to cut and fill up each class to images_per_class."),
        "priors": Setting(
            "uniform",
            "Share of each class among the images kept. uniform: the same for all classes, as in"
            " the paper; labeled: as among the labeled images; or a weight for each class, such as"
            " cat:3,dog:1. images_per_class is then the mean.",
            when=(When("balance"),),
        ),
        "copy_images": Setting(
            True,
            "Whether to write the images once more, beside their labels. False: labels alone, which"
            " training joins with the images of the prepared data (docs/scaling.md).",
        ),
        "fraction": Setting(
            1.0,
            "Share of the unlabeled images to use, drawn by seed before every other choice.",
            above=0,
            at_most=1,
        ),
        "sample_images": Setting(
            None,
            "Number of images to draw by seed after every other choice, copies included.",
            type=int,
            none="all that are selected",
            at_least=1,
            unit="images",
            source="Xie et al. 2020, first version, Table 8",
        ),
        "share_per_class": Setting(
            1.0,
            "Beyond the paper: keep only this most confident share of each class, among the "
            "images above the threshold. So each class has its own threshold.",
            above=0,
            at_most=1,
        ),
    },
)

CROSSFIT = Section(
    "How the served model is chosen where fewer than 200 validation images are held out.",
    {
        "folds": Setting(
            0,
            "Number of parts of the labeled images. For each part the loop trains everything on "
            "the others, and the answers to the part decide. So the loop takes that many times "
            "longer. 0: off.",
            at_least=0,
        ),
    },
)

SELECTIONS = ("each_iteration", "once")

LOOP = {
    "iterations": Setting(
        3, "Number of students, one after another; with patience, the largest number.", at_least=1
    ),
    "patience": Setting(
        None,
        "Stop after this many students that are no better than an earlier one; serve the best.",
        type=int,
        none="never stop before the last iteration",
        at_least=1,
    ),
    "selection": Setting(
        "each_iteration",
        "When the unlabeled images are selected. once: by the network of the section `selector`, or"
        " else by the first teacher. Every later teacher labels that set, with its copies.",
        choices=SELECTIONS,
    ),
    "init": Setting(
        None,
        "Weights to start from, as `--init` names them: published ones, a file, a directory. Their "
        "network takes the place of the recipe's. `./run_tool.sh weights` lists the names.",
        type=str,
        none="random weights",
    ),
    "by_device": Setting(
        False,
        "Whether a GPU, if there is one, sets its own network and resolution instead of `init` "
        "and the recipe's image size (workflow/by_device.py). Only the commands that run all "
        "stages do it.",
    ),
    "student_init": Setting(
        None,
        "What a student starts from: the weights of `init`, its teacher's network, or random"
        " weights.",
        type=str,
        choices=("pretrained", "teacher", "scratch"),
        none="pretrained where `init` is set, else scratch",
    ),
    "crossfit": CROSSFIT,
    "finetune_last": Setting(
        False, "Whether to fine-tune the chosen model, then evaluate and export that."
    ),
}

SMOKE = Setting(
    False, "True: one tiny step of every training, to see all stages work (training/smoke.py)."
)

SUPERVISED = methods.settings_of("supervised")

RECIPE = Section(
    "A whole recipe. `student_2` and its like take the place of `student` in that iteration. "
    "`finetune_2` and its like fine-tune that student before it labels.",
    {
        "seed": data.settings.SEED,
        "smoke": SMOKE,
        "data": data.settings.DATA,
        "expected": data.settings.EXPECTED,
        "preprocessing": data.settings.PREPROCESSING,
        "teacher": SUPERVISED,
        "student": SUPERVISED.but(method="noisy_student", unlabeled_ratio=3),
        "finetune": SUPERVISED,
        "finetune_student": SUPERVISED,
        **LOOP,
        "pseudo_label": PSEUDO_LABEL,
        "balance": BALANCE,
        "evaluate": evaluation.settings.EVALUATE,
    },
)


def of_recipe(recipe: Mapping[str, Any]) -> Section:
    """Returns the declarations of a recipe's keys, and of the keys that it could have.

    A training may have any name. Its `method` marks it as a training and decides its settings.
    """
    chosen = {}
    for name, values in recipe.items():
        if name.startswith("pseudo_label_"):
            chosen[name] = PSEUDO_LABEL
        elif isinstance(values, (Mapping, ConfigDict)) and "method" in values:
            known = values["method"] in methods.METHODS
            chosen[name] = methods.settings_of(values["method"]) if known else UNKNOWN
    more = {} if recipe else {"train": _of_any_method(), "selector": SUPERVISED}
    return Section(RECIPE.meaning, {**RECIPE, **chosen}, more)


UNKNOWN = Section(
    "A training of an unknown method.",
    {"method": SUPERVISED["method"]},
    others="the settings of its method",
)


def _of_any_method() -> Section:
    """Returns the settings of all methods together, for `--help train.KEY`."""
    every = [methods.settings_of(name) for name in methods.METHODS]
    settings_by_name = {name: declared for section in every for name, declared in section.items()}
    return Section(
        "The section of run_train.sh; its method says which settings it has.", settings_by_name
    )


def check_recipe(recipe: ConfigDict) -> None:
    """Raises InputError for the first impossible value of a recipe."""
    settings.check_settings(recipe, of_recipe(recipe))


def require_read(
    recipe: ConfigDict, overrides: Mapping[str, str | None], sections: Iterable[str]
) -> None:
    """Checks that the run reads each section and value that the command line changes.

    Args:
      recipe: the recipe, with the overrides in it.
      overrides: key with dots -> text.
      sections: sections that some stage of the run reads.

    Raises:
      InputError: no stage reads a section; or each training has its own value instead of the
        value in the recipe's `preprocessing`.
    """
    read = set(sections)
    trainings = {
        name
        for name, value in recipe.items()
        if isinstance(value, ConfigDict) and "method" in value
    }
    of_stages = trainings | {
        name for name in recipe if name.startswith(("pseudo_label", "balance"))
    }
    for key in overrides:
        name, _, rest = key.partition(".")
        replaced_by = [
            other
            for other in sorted(read & trainings)
            if recipe[other].get("preprocessing", {}).get(rest) is not None
        ]
        if name == "preprocessing" and replaced_by and len(replaced_by) == len(read & trainings):
            those = ", ".join(f"config.{other}.{key}" for other in replaced_by)
            raise InputError(
                f"--config.{key} has no effect: each training of this run has its own value; set"
                f" {those}"
            )
        if name in of_stages - read:
            those = ", ".join(sorted(read & of_stages))
            raise InputError(
                f"--config.{key} has no effect: no stage of this run reads config.{name}; they read"
                f" {those}"
            )


def check_section(name: str, values: Mapping[str, Any]) -> None:
    """Raises InputError for the first impossible value of a recipe's section `name`."""
    settings.check_settings(values, of_recipe({name: values})[name], f"config.{name}")
