"""Chooses network and resolution by the machine, if the recipe sets `by_device`.

The recipe's own network and resolution are for a machine without a GPU. The commands that run all
stages choose once. They give the choice to their stages as flags, and keep it in the work
directory's `config.json`. So a run that is continued on another machine keeps its network.
"""

from __future__ import annotations

import re
from pathlib import Path

from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import read_json
from training import gpus
from weights import pretrained

GPU = ("imagenet:b0", 224)
"""Weights and image size, in pixels, on a GPU."""

CHOSEN = r"--config\.(init|preprocessing\.image_size|(.+\.)?model\..+)="
"""Pattern of the flags by which a user chooses."""


def settle(
    config: ConfigDict,
    flags: list[str],
    workdir: Path,
    init: str | None,
    *,
    dry_run: bool = False,
) -> tuple[ConfigDict, list[str]]:
    """Chooses the network of this machine, or that of the begun run, and prints which it is.

    Args:
      config: the recipe.
      flags: the `--config` flags that the stages get.
      workdir: work directory of the run; it may exist already.
      init: the flag --init; a user who gives it has chosen.
      dry_run: download nothing.

    Returns:
      The recipe and its flags, with that network.
    """
    chosen_by_user = init or any(re.match(CHOSEN, flag) for flag in flags)
    if chosen_by_user or not (config.get("by_device") and config.init):
        return config, flags
    chosen_by_recipe = (config.init, config.preprocessing.image_size)
    if (workdir / "config.json").exists():
        begun = read_json(workdir / "config.json", dict)
        chosen = (
            begun.get("init", chosen_by_recipe[0]),
            begun.get("preprocessing", {}).get("image_size", chosen_by_recipe[1]),
        )
        why = f"as {workdir} began"
    elif gpus.count():
        chosen, why = (
            GPU,
            "since TensorFlow sees a GPU; image_folder.py:lite0 takes what a CPU gets",
        )
        if not dry_run and (problem := _problem(GPU[0])):
            chosen, why = chosen_by_recipe, f"although TensorFlow sees a GPU: {problem}"
    else:
        chosen, why = chosen_by_recipe, "since TensorFlow sees no GPU"
    print(f"network: {chosen[0]} at {chosen[1]} px, {why}", flush=True)
    if chosen == chosen_by_recipe:
        return config, flags
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.init, config.preprocessing.image_size = chosen
    return config.lock(), [
        *flags,
        f"--config.init={chosen[0]}",
        f"--config.preprocessing.image_size={chosen[1]}",
    ]


def _problem(name: str) -> str:
    """Downloads missing weights. Returns why they cannot be had; "" where they are here."""
    try:
        pretrained.find(name, {"name": name.partition(":")[2]})
    except InputError as error:
        return str(error)
    return ""
