"""Describes in numbers what a training would do, for the methods' dry runs."""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import read_json
from data import prepare, sources, survey
from training import architectures, fixres, models, resolve, schedules
from training.method import Network

if TYPE_CHECKING:
    import tensorflow as tf

GIB = 2.0**30


PREPARED = {
    "splits": {"labeled": {"images": int}, "unlabeled?": {"images": int}},
    "label_names": [str],
    "median_height": float,
    "median_width": float,
}
"""Fields that the summary of prepared data has at least."""


def images(
    config: ConfigDict, data: Path, folders: dict[str, str] | None = None, quick: bool = False
) -> dict[str, Any]:
    """Returns how many images there are, and how large they are.

    The numbers come from the prepared data, if they exist. Otherwise the folders, lists, archives
    or TFDS data sets are looked at now. Without these, the numbers are those of a full copy, as the
    recipe expects it.

    Args:
      config: the recipe.
      data: directory of the prepared data, which may be missing.
      folders: source directories by flag name; None: they are not looked at.
      quick: look at few images only, which takes a second or two.

    Returns:
      `labeled`, `unlabeled`, `classes`, `median_height` and `median_width`. The medians are None if
      only the data could tell them.
      `test` and `validation`, if known.
      `survey`: what was found by looking at the images, or None.

    Raises:
      InputError: the run would refuse the folders. Or the data do not exist, and the recipe does
        not say how many images there will be.
    """
    if (data / "summary.json").exists():
        if "splits" not in read_json(data / "summary.json", dict):
            raise InputError(
                f"--data: {data} does not hold prepared data; prepare it with run_prepare_data.sh"
            )
        summary = read_json(data / "summary.json", PREPARED)
        counts = {name: split["images"] for name, split in summary["splits"].items()}
        sizes = {name: summary[name] for name in ("median_height", "median_width")}
        return {
            **counts,
            "unlabeled": counts.get("unlabeled", 0),
            "classes": len(summary["label_names"]),
            **sizes,
            "survey": None,
        }
    found = _surveyed(config, folders, quick) if folders is not None else None
    if found:
        sizes = {"median_height": found.median_height, "median_width": found.median_width}
        return {**found.images, "classes": found.classes, **sizes, "survey": found}
    expected = config.expected.to_dict()
    if None in expected.values():
        raise InputError(
            f"{data} does not exist yet. Run run_prepare_data.sh first, or give the numbers of "
            "images with --config.expected.labeled=N --config.expected.unlabeled=N "
            "--config.expected.classes=N"
        )
    return {**expected, "median_height": None, "median_width": None, "survey": None}


def _surveyed(config: ConfigDict, folders: dict[str, str], quick: bool) -> survey.Survey | None:
    """Looks at the images.

    Returns:
      The survey. None if the format of the images is not looked at. Also None if the images do not
      exist and the recipe says how many there will be.
    """
    known = None not in config.expected.to_dict().values()
    if config.data.source == "digits":
        return None if quick and known and not config.smoke else survey.of_digits(config)
    config = prepare.with_locations(config, folders)
    locations = [
        config.data[role] for role in ("labeled", "unlabeled", "test") if config.data[role]
    ]
    found = [sources.split_location(location, config.data.source) for location in locations]
    formats = {name for name, _ in found}
    if not formats or formats - set(survey.LISTED) or (quick and "tfds" in formats):
        return None
    if known and not (config.data.labeled and all(os.path.exists(path) for _, path in found)):
        return None
    return survey.of_images(config, survey.KEPT, 0) if quick else survey.of_images(config)


def image_size(config: ConfigDict, section: str, counts: dict[str, Any]) -> int | None:
    """Returns the side of a training's images in pixels, or None if only the data could tell.

    Args:
      config: the recipe.
      section: name of the train section.
      counts: what `images` returns.
    """
    size = (
        config[section].get("preprocessing", {}).get("image_size")
        or config.preprocessing.image_size
    )
    if size is None and counts["median_height"]:
        size = resolve.image_size(counts["median_height"], counts["median_width"])
    return size


def trainings(
    name: str,
    networks: Sequence[Network],
    train: dict[str, Any],
    counts: dict[str, Any],
    size: int | None,
) -> list[str]:
    """Describes the training of a section as lines of text, a paragraph for each network.

    Args:
      name: name of the training, for a method with one network; several networks have their own
        names.
      networks: networks of the method; the first is the one that is kept.
      train: a section as `resolve.section` returns it.
      counts: what `images` returns.
      size: side of the images in pixels, or None.
    """
    rates = schedules.of_section(train, counts["labeled"] / train["batch_size"])
    lines: list[str] = []
    for network in reversed(networks):
        settings = network.settings(train)["model"]
        rate = rates[network.name]
        lines += [
            "",
            *_network(
                network,
                network.name or name,
                dict(settings),
                train,
                counts,
                size,
                rate,
                network is networks[0],
            ),
        ]
    return lines


def _network(
    network: Network,
    name: str,
    model: dict[str, Any],
    train: dict[str, Any],
    counts: dict[str, Any],
    size: int | None,
    schedule: Callable[[int], Any],
    kept: bool,
) -> list[str]:
    """Describes one network of a training. `kept`: whether its average is what is served."""
    steps, batch, unlabeled_images = (
        train["steps"],
        train["batch_size"],
        train["batch_size"] * train["unlabeled_ratio"],
    )
    labeled_images = batch if train.get("labeled", True) else 0
    frozen = train.get("frozen_blocks", 0)
    fixed = train.get("frozen_batch_norm", False)
    parameters = count_parameters(model, counts["classes"], size, frozen, fixed)
    what = "weights, average, slots and gradients" if kept else "weights, slot and gradient"
    at = [round(i * steps / 9) for i in range(10)]
    rates = ", ".join(f"{float(schedule(step)):.3g} at {step:,}" for step in at)
    at_once = network.images // train.get("accumulation", 1)
    bytes_each = 4 if train["precision"] == "float32" else 2
    fused = train.get("jit_compile", False)
    stored = activations(model, size, at_once, bytes_each, network.rematerialize, frozen, fused)
    pixels = f"{size} px" if size else "as many pixels as the data will suggest"
    return [
        f"{name}: {model['name']}, {parameters}, {pixels}",
        (
            f"  {steps:,} steps of {labeled_images:,} + {unlabeled_images:,} images"
            f" ({steps * batch / counts['labeled']:.1f} labeled epochs)"
        ),
        f"  learning rate: {rates}",
        f"  memory: {of_weights(parameters.trained, kept):.1f} GiB for {what} on each replica; "
        + (
            f"{stored:,.1f} GiB for activations over all replicas"
            if stored
            else "activations not known"
        ),
    ]


class Parameters(NamedTuple):
    """Number of a network's parameters, and number of its trained parameters.

    BatchNorm's moving statistics count among all parameters.
    """

    all: int
    trained: int

    def __str__(self) -> str:
        return f"{self.all:,} parameters" + (
            f" ({self.trained:,} trained)" if self.trained != self.all else ""
        )


def count_parameters(
    model: dict[str, Any],
    classes: int,
    size: int | None = None,
    frozen_blocks: int = 0,
    frozen_batch_norm: bool = False,
) -> Parameters:
    """Counts the parameters of a network.

    If the network's row of the table can calculate them, builds nothing. Otherwise builds the
    network.

    Args:
      model: a recipe's `model`.
      classes: K.
      size: side of the images in pixels, or None.
      frozen_blocks: number of first blocks that are frozen.
      frozen_batch_norm: whether every BatchNorm is frozen.

    Raises:
      InputError: the network cannot be built, or has fewer blocks than `frozen_blocks`.
    """
    count = architectures.find(model["name"]).parameters
    if count and not frozen_batch_norm:
        return Parameters(*architectures.load(count)(model, classes, frozen_blocks))
    # A user's builder may change while this process runs. The table's builders do not.
    counted = _counted.__wrapped__ if ":" in model["name"] else _counted
    return counted(
        json.dumps(model, sort_keys=True), classes, size, frozen_blocks, frozen_batch_norm
    )


@functools.cache
def _counted(
    model: str, classes: int, size: int | None, frozen_blocks: int, frozen_batch_norm: bool
) -> Parameters:
    """Counts by building, once for all networks with the same arguments.

    `model` is JSON, because the cache needs a hashable value.
    """
    network = models.build(
        json.loads(model), classes, mean=(0.0,) * 3, std=(1.0,) * 3, seed=0, image_size=size
    )
    fixres.freeze_blocks(network, frozen_blocks)
    if frozen_batch_norm:
        fixres.freeze_batch_norm(network)
    return parameters_of(network)


def parameters_of(network: tf.keras.Model) -> Parameters:
    """Counts the parameters of a network that is built."""
    return Parameters(
        network.count_params(),
        sum(int(weight.shape.num_elements()) for weight in network.trainable_weights),
    )


def of_weights(trained: int, kept: bool) -> float:
    """Returns the GiB that a network's trained parameters take on each replica.

    These are the weights, the gradients and the slots.

    Args:
      trained: number of trained parameters.
      kept: True: the network has an average, and two slots or a slot and the labeled gradient of
        the feedback. False: the network has one slot.
    """
    return 4 * (5 if kept else 3) * trained / GIB


def activations(
    model: dict[str, Any],
    size: int | None,
    images: int,
    bytes_each: int,
    rematerialize: bool,
    frozen_blocks: int = 0,
    fused: bool = False,
) -> float | None:
    """Returns the GiB that a step keeps for its backward pass; `fused`: XLA compiles it.

    None if the image size is unknown, or if the network's row of the table has no count.
    """
    count = architectures.find(model["name"]).activations
    if not count or not size:
        return None
    return (
        bytes_each
        * int(architectures.load(count)(model, size, rematerialize, frozen_blocks, fused))
        * images
        / GIB
    )


def missing(config: ConfigDict, folders: dict[str, str], data: Path) -> list[str]:
    """Returns what the first stage needs and does not find."""
    if config.data.source == "digits" or (data / "summary.json").exists():
        return []
    found = []
    for role in ("labeled", "unlabeled", "test"):
        location = folders.get(role) or config.data.get(role)
        if location:
            name, path = sources.split_location(location, config.data.source)
            folder, last = os.path.split(path)
            pattern = os.path.join(glob.escape(folder) if os.path.isdir(folder) else folder, last)
            if name not in sources.WITHOUT_PATH and not (
                os.path.exists(path) or glob.glob(pattern)
            ):
                found.append(f"--{role}: there is no {path}")
        elif role == "labeled" or (
            role == "unlabeled" and config.data.labeled_as_unlabeled == "nothing"
        ):
            found.append(f"--{role} is not given")
    return found
