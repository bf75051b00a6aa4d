"""Plans a study's runs: their scripts' calls, directories and seeds, and what they share."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cli import recipes


class Command(NamedTuple):
    """A script's call (its name, then flags), and the directory that it finishes."""

    words: list[str]
    directory: Path


def seeds(config: ConfigDict) -> range:
    """Returns the study's seeds."""
    return range(config.first_seed, config.first_seed + config.seeds)


def run_directory(workdir: Path, name: str, seed: int) -> Path:
    """Returns where one run lives."""
    return workdir / name / f"seed_{seed}"


def commands(config: ConfigDict, workdir: Path, name: str, seed: int) -> list[Command]:
    """Returns the parts of one run: its method's stages, or the study's script."""
    flags, *method = next(row[1:] for row in config.runs if row[0] == name)
    directories = {other: run_directory(workdir, other, seed) for other, *_ in config.runs}
    stages = (
        config.methods[method[0]]
        if method
        else [("", config.script, (f"--config.iterations={config.iterations}",))]
    )
    of_run = [_of_recipe(flag, config.recipe) for flag in flags]
    made = []
    for part, script, stage_flags in stages:
        directory = directories[name] / part
        stage_flags = [flag.format(run=directories[name], **directories) for flag in stage_flags]
        common = [
            f"--config={config.recipe}",
            *config.flags,
            *stage_flags,
            *of_run,
            f"--config.seed={seed}",
            f"--workdir={directory}",
        ]
        made.append(Command([script, *common], directory))
    return made


def _of_recipe(flag: str, recipe: str) -> str:
    """Returns a flag of a first iteration's own section as a flag that the recipe has.

    Where the recipe has no such section (`pseudo_label_1`), it is a flag of the general section.
    """
    first_iteration = re.fullmatch(r"--config\.(\w+)_1\.(.*)", flag)
    return (
        f"--config.{first_iteration[1]}.{first_iteration[2]}"
        if first_iteration and f"{first_iteration[1]}_1" not in _keys(recipe)
        else flag
    )


@functools.lru_cache
def _keys(recipe: str) -> frozenset[str]:
    return frozenset(recipes.load(recipe, {}))


def linked(config: ConfigDict, name: str) -> list[str]:
    """Returns the shared parts that run `name` takes from the first run.

    They are all parts that its own flags leave as they are.
    """
    if name == config.runs[0][0]:
        return []
    run_flags = next(row[1] for row in config.runs if row[0] == name)
    return [
        part
        for part in config.shared
        if not any(flag.startswith(f"--config.{part}.") for flag in run_flags)
    ]
