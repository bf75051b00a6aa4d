"""Checks a recipe of the loop before its first stage."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from cli import recipes
from cli.errors import InputError
from workflow import balance, choice, pseudo_label, settings, train
from workflow.stages import ONCE, SELECTOR, check_baseline, plan, sections_read


def check_loop(config: ConfigDict) -> None:
    """Raises InputError where a setting of any stage but the first is impossible.

    So the error comes at once, not after hours of earlier stages.
    """
    settings.check_recipe(config)
    if config.student_init == "pretrained" and not config.init:
        raise InputError("student_init=pretrained needs the weights to start from: give --init")
    if config.patience and not config.data.validation_size:
        raise InputError("patience needs a validation split: set data.validation_size")
    if config.crossfit.folds == 1:
        raise InputError(
            "crossfit.folds is 1; it must be at least 2, or 0 to turn cross-fitting off"
        )
    if config.evaluate.split == "validation" and not config.data.validation_size:
        raise InputError(
            "config.evaluate.split=validation needs a validation split: set data.validation_size"
        )
    size = config.data.validation_size
    if config.crossfit.folds and size and size < choice.FEWEST and not config.patience:
        for name, part in config.items():
            if isinstance(part, ConfigDict) and (
                part.get("final_weights") == "best"
                or part.get("stop_after")
                or part.get("calibrate")
            ):
                raise InputError(
                    f"config.{name} chooses by the validation split, but cross-fitting uses its"
                    " own held-out images instead. Set data.validation_size to"
                    f" {choice.FEWEST} or more, or crossfit.folds to 0"
                )
    _check_selection(config)
    balance.check_balance(config.balance)
    stages = plan(config, Path(), {}, "")
    check_baseline(config, stages)
    for stage in stages:
        name = stage.arguments.get("section", stage.name)
        if stage.script == "run_pseudo_label.sh":
            pseudo_label.check_pseudo_label(name, config[name])
            if config[name].calibrate and not config.data.validation_size:
                raise InputError(
                    f"config.{name}.calibrate needs a validation split: set data.validation_size"
                )
        elif "strategy" in stage.arguments:  # a training
            train.check_training(config, name, init="init" in stage.arguments)


def require_flags_read(config: ConfigDict, config_flags: list[str]) -> None:
    """Raises InputError where a setting of the command line is for no stage of this run."""
    stages = plan(config, Path(), {}, "")
    settings.require_read(config, recipes.overrides(*config_flags), sections_read(stages))


def _check_selection(config: ConfigDict) -> None:
    """Raises InputError where the selection of unlabeled images cannot be as the recipe says."""
    once = config.get("selection") == ONCE
    if SELECTOR in config and not once:
        raise InputError(
            f"config.{SELECTOR} selects images once, for all teachers; set config.selection={ONCE}"
        )
    first = "student_1" if "student_1" in config else "student"
    if once and SELECTOR not in config and config[first].online:
        raise InputError(
            f"config.selection={ONCE}: the first teacher selects by stored labels, but "
            f"config.{first}.online=True stores none. Set --config.selection=each_iteration or "
            f"--config.{first}.online=False, or give the recipe a section {SELECTOR}"
        )
