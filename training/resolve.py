"""Turns a recipe into a run: fills in open values from the data, and turns durations into steps.

Both happen once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from cli.errors import InputError


@functools.cache
def _say_once(line: str) -> None:
    """Logs a line once, though the settings are resolved several times in one run."""
    logging.info("%s", line)


def image_size(height: float, width: float) -> int:
    """Returns a resolution in pixels for images of this median size.

    It is the shorter side, as a multiple of 32 between 32 and 224.
    """
    return int(min(224, max(32, round(min(height, width) / 32) * 32)))


def preprocessing(
    recipe: dict[str, Any], section: dict[str, Any], *, median_height: float, median_width: float
) -> dict[str, Any]:
    """Fills in what the recipe leaves to the data: the image size and RandAugment's distances.

    The distances are parts of the image size.

    Args:
      recipe: `preprocessing` of the recipe; `image_size`, `style`, `pad`, `translate_const`,
        `cutout_const` and `crop_padding` may be None.
      section: `preprocessing` of the train section. Its values other than None replace the
        recipe's.
      median_height: median height of the labeled images, pixels.
      median_width: median width of the labeled images, pixels.

    Returns:
      The values with numbers. A translation at magnitude 10 is a third of the side. A cutout's half
      side is 40/224 of the side (the release's 40 pixels at its 224). The padding of the
      evaluation's crop is 32/224 of the side: 7/8 of the short side are seen, as in the release.
      Up to 64 pixels the style is "small", which moves images by up to an eighth of the side. A
      random piece of so small an image may show anything.
    """
    values = {**recipe, **{key: value for key, value in section.items() if value is not None}}
    size = values["image_size"] or image_size(median_height, median_width)
    style = values.get("style") or ("small" if size <= 64 else "imagenet")
    defaults = {
        "image_size": size,
        "style": style,
        "pad": size // 8 if style == "small" else 0,
        "translate_const": round(size / 3, 1),
        "cutout_const": round(size * 40 / 224, 1),
        "crop_padding": round(size * 32 / 224),
    }
    return {
        **values,
        **{
            name: value
            for name, value in defaults.items()
            if name in values and values[name] is None
        },
    }


SMALL, FAR = 64, 4
"""Largest resolution of recipes in style `small`, pixels; how many times larger photographs are."""


def shrinks(size: int, *, median_height: float, median_width: float) -> str | None:
    """Returns a warning if a recipe for at most 64 pixels gets far larger images, else None.

    Args:
      size: resolution of the training, pixels.
      median_height: median height of the labeled images, pixels.
      median_width: median width of the labeled images, pixels.
    """
    if size > SMALL or min(median_height, median_width) < FAR * size:
        return None
    return (
        f"warning: images of {median_height:g}×{median_width:g} pixels are shrunk to {size}×{size};"
        " take the method's recipe image_folder.py, or set config.preprocessing.image_size"
    )


def batch_size(labeled_examples: int) -> int:
    """Returns a labeled batch size for this number of labeled images.

    It is a power of two between 32 and 256, with at least 8 steps an epoch if possible. A smaller
    batch leaves BatchNorm little to normalize by.
    """
    return int(2 ** min(8, max(5, math.floor(math.log2(max(labeled_examples / 8, 1))))))


def _steps(epochs: float, labeled_examples: int, batch_size: int) -> int:
    return math.ceil(epochs * labeled_examples / batch_size)


IN_STEPS = ("steps", "warmup_steps", "wait_steps", "ramp_steps", "head_steps")
"""Durations that are given for the batch size `steps_for_batch`."""


def _for_batch(values: Mapping[str, Any], given_for: int, batch_size: int) -> dict[str, Any]:
    """Returns a section, and the sections in it, with as many epochs at another batch size.

    Only the durations in steps (`IN_STEPS`) change.
    """
    scaled: dict[str, Any] = dict(values)
    for key, value in values.items():
        if isinstance(value, Mapping):
            scaled[key] = _for_batch(value, given_for, batch_size)
        elif key in IN_STEPS and value:
            scaled[key] = max(1, round(value * given_for / batch_size))
    return scaled


def length(train: dict[str, Any], labeled_examples: int, batch_size: int) -> str:
    """Says what decides the number of steps of a train section.

    That is `epochs`, `min_steps` or `steps_for_batch`. Returns "" if `steps` are taken as they are
    given.

    Args:
      train: the section of the config, not resolved.
      labeled_examples: number of images in the labeled split.
      batch_size: labeled images a step.
    """
    if train["epochs"] is None:
        given_for, steps = train.get("steps_for_batch"), train["steps"]
        if not given_for or not steps or given_for == batch_size:
            return ""
        scaled = _for_batch({"steps": steps}, given_for, batch_size)["steps"]
        given = f"steps={steps:,} is for {given_for:,} labeled images a step"
        return f"{given}; with {batch_size:,} that is {scaled:,} (steps_for_batch)"
    epochs, least = train["epochs"], train["min_steps"]
    steps = _steps(epochs, labeled_examples, batch_size)
    are = f"{epochs:g} epochs are {steps:,} steps"
    if steps >= least:
        return f"{are}, no fewer than min_steps={least:,}" if least else are
    return (
        f"{are}; min_steps raises that to {least:,}, which are"
        f" {least * batch_size / labeled_examples:,.1f} epochs"
    )


def section(
    train: dict[str, Any], *, labeled_examples: int, unlabeled: bool, quiet: bool = False
) -> dict[str, Any]:
    """Resolves a train section.

    Args:
      train: the section of the config, as a plain dict; either `steps` or `epochs` (of the labeled
        set) is set.
      labeled_examples: number of images in the labeled split.
      unlabeled: whether the run has an unlabeled stream; without one `unlabeled_ratio` becomes 0.
      quiet: do not log what decides the number of steps.

    Returns:
      The section with `batch_size`, `steps` and the `..._every`s as numbers, without `epochs`,
      `min_steps` and `steps_for_batch`.

    Raises:
      InputError: both or neither of `steps` and `epochs`.
    """
    resolved = dict(train)
    epochs, min_steps = resolved.pop("epochs"), resolved.pop("min_steps")
    if (epochs is None) == (resolved["steps"] is None):
        raise InputError(
            "a train section needs either steps or epochs (of the labeled images), not both; set"
            " the other one to None"
        )
    resolved["batch_size"] = resolved["batch_size"] or batch_size(labeled_examples)
    given_for = resolved.pop("steps_for_batch", None)
    if given_for:
        resolved = _for_batch(resolved, given_for, resolved["batch_size"])
    if resolved["steps"] is None:
        resolved["steps"] = max(min_steps, _steps(epochs, labeled_examples, resolved["batch_size"]))
    said = length(train, labeled_examples, resolved["batch_size"])
    if said and not quiet:
        _say_once(said)
    if not unlabeled:
        resolved["unlabeled_ratio"] = 0
    at_once = resolved.get("steps_per_execution", 1)
    every = resolved["log_every"] or max(1, min(100, resolved["steps"] // 20))
    resolved["log_every"] = math.ceil(every / at_once) * at_once
    every = resolved["checkpoint_every"] or max(1, min(1000, resolved["steps"] // 10))
    resolved["checkpoint_every"] = math.ceil(every / resolved["log_every"]) * resolved["log_every"]
    resolved["keep_every"] = (
        math.ceil(resolved["keep_every"] / resolved["checkpoint_every"])
        * resolved["checkpoint_every"]
    )
    resolved["evaluate_every"] = (
        math.ceil((resolved["evaluate_every"] or 0) / resolved["log_every"]) * resolved["log_every"]
    )
    return resolved
