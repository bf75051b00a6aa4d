"""The networks that a recipe can name: one table, and the contract that every network keeps.

`model.name` in a recipe is a name of `TABLE`, or `package.module:function`: a Keras builder of your
own. To add a network to the project, write the module of its builder and add one row to `TABLE`.
docs/extending.md shows both ways. Importing this module needs no TensorFlow.

**What a builder takes**, all by keyword:

- `num_classes`: K, the number of classes;
- `mean`, `std`: mean and standard deviation of each channel, 3 numbers each, in 0-255 units;
- `seed`: seed of the initial weights, a whole number;
- `sync_batch_norm`: whether BatchNorm takes its statistics over all replicas;
- every other key of `model` in the recipe that is not None. Builders of the table get `name` too.

Your own builder must take `num_classes`. It may lack the others:

- without `mean` or `std`, it gets pixels in 0-255 and must scale them itself;
- without `seed`, Keras's global generator, which each training seeds, draws the initial weights;
- without `sync_batch_norm`, training on several replicas needs `sync_batch_norm=False`.

**What it returns**: a functional or sequential `tf.keras.Model`, float32 images (B, H, W, 3) in
0-255 -> float32 logits (B, K), without softmax and without its own losses. H and W are None, or
the side of the recipe's images.

**What only some features need:**

- `rematerialize` and `frozen_blocks` read the names of layers: `block1a_…`, `block1b_…` for the
  layers of a block, `stem_…` for the layers before the first block (`nets.names.block_name`).
  `rematerialize` also needs one tensor between blocks, and noise layers of `nets.noise`.
- Fine-tuning and evaluation at another resolution need H and W that are None.
- The export needs a last Dense layer; `embed` answers with the input of that layer.
- Noise that a restart and any number of replicas repeat needs `nets.noise`'s `Dropout` and
  `StochasticDepth` instead of Keras's.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from cli.errors import InputError, one_line
from efficientnet.architectures import ARCHITECTURES
from nets import keras_cv_backbones

_REFERENCE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"


class UnfitNetwork(InputError, ValueError):
    """A network lacks what a feature needs.

    Commands print the error as one line; a library user sees a ValueError.
    """


@dataclasses.dataclass(frozen=True)
class Family:
    """A row of the table: the networks that one builder makes.

    All functions are named `module:function` and imported when used.

    Attributes:
      pattern: regular expression that matches the whole `model.name`.
      builder: the function that builds the Keras model; see the module for its arguments.
      sizes: name -> (side of the images in pixels, classes) for `benchmarks.models.card`. Messages
        list these names.
      title: model.name -> the name that the paper uses, for the model card.
      smoke: values of `model` that `--config.smoke=True` sets; empty: the network has one size.
      types: argument -> type of what `model.json` stores, as `cli.json_files.read_json` takes it.
      check: (model) raises InputError where a value of `model` is impossible.
      parameters: (model, num_classes, frozen_blocks) -> number of all parameters and number of
        trained parameters; None: counted by building the network.
      activations: (model, image_size, rematerialize, frozen_blocks, fused) -> how many numbers a
        training step keeps of one image for the backward pass; None: not known. `fused`: XLA
        compiles the step.
      multiply_adds: (model, image_size, num_classes) -> number of multiplications in the forward
        pass of one image; None: not known.
      warning: (model, image_size) -> a line of advice, or None.
      reduction: (model) -> image side / side of the last maps that a depthwise convolution reads.
        The network has no depthwise convolutions if the function returns None or is None.
    """

    pattern: str
    builder: str
    sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    title: Callable[[str], str] = str
    smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    types: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check: str | None = None
    parameters: str | None = None
    activations: str | None = None
    multiply_adds: str | None = None
    warning: str | None = None
    reduction: str | None = None

    @property
    def in_table(self) -> bool:
        """Tells whether this is a row of `TABLE`, and not a builder of the user's."""
        return self in TABLE


_NUMBER, _WHOLE, _TEXT = (float, None), (int, None), (str, None)
_COMMON_TYPES = {"dropout?": _NUMBER, "batch_norm_momentum?": _NUMBER, "image_size?": _WHOLE}
_RESNET_TYPES = {**_COMMON_TYPES, "batch_norm_epsilon?": _NUMBER}

TABLE = (
    Family(
        pattern="|".join(ARCHITECTURES),
        builder="efficientnet.model:EfficientNet",
        sizes={name: (row.image_size, 1000) for name, row in ARCHITECTURES.items()},
        title=lambda name: f"EfficientNet-{name.replace('_', '-').title()}",
        smoke={"width": 0.2, "depth": 0.1},
        types={
            **_COMMON_TYPES,
            **dict.fromkeys(("width?", "depth?", "survival_probability?"), _NUMBER),
            "stem_stride?": _WHOLE,
            "strides?": ([int], None),
        },
        check="efficientnet.architectures:check_settings",
        parameters="efficientnet.counts:parameters",
        activations="efficientnet.counts:activations",
        multiply_adds="efficientnet.counts:multiply_adds",
        warning="efficientnet.architectures:warning",
        reduction="efficientnet.architectures:reduction",
    ),
    Family(
        pattern="resnet50",
        builder="resnet.resnet50:ResNet50",
        sizes={"resnet50": (224, 1000)},
        title=lambda name: "ResNet-50",
        types=_RESNET_TYPES,
        activations="resnet.counts:activations",
        multiply_adds="resnet.counts:multiply_adds",
    ),
    Family(
        pattern="wrn_.*",
        builder="resnet.wide_resnet:WideResNet",
        sizes={"wrn_28_2": (32, 10)},
        title=lambda name: f"Wide ResNet {name[4:].replace('_', '-')}",
        smoke={"name": "wrn_10_1"},
        types={**_RESNET_TYPES, "variant?": _TEXT},
        check="resnet.wide_resnet:check_settings",
        activations="resnet.counts:activations",
        multiply_adds="resnet.counts:multiply_adds",
    ),
    *(
        Family(
            pattern="|".join(keras_cv_backbones.PREFIX + name for name in rows),
            builder="nets.keras_cv_networks:KerasCVNetwork",
            sizes={
                keras_cv_backbones.PREFIX + name: (row.image_size, 1000)
                for name, row in rows.items()
            },
            title=keras_cv_backbones.title,
            smoke={"name": keras_cv_backbones.PREFIX + next(iter(rows))},
            types={**_COMMON_TYPES, "survival_probability?": _NUMBER},
            check="nets.keras_cv_backbones:check_settings",
            reduction="nets.keras_cv_backbones:reduction",
        )
        for rows in keras_cv_backbones.FAMILIES.values()
    ),
)
"""Rows of the project's own networks, then one row for each family of keras-cv's backbones."""


def find(name: str) -> Family:
    """Returns the row of `model.name`; for `package.module:function`, a row with that builder.

    Raises:
      InputError: no row matches.
    """
    for family in TABLE:
        if re.fullmatch(family.pattern, name):
            return family
    if re.fullmatch(_REFERENCE, name):
        return Family(pattern=re.escape(name), builder=name)
    if name.startswith(keras_cv_backbones.PREFIX):
        keras_cv_backbones.find(name, "model.name")
    known = ", ".join(
        name
        for family in TABLE
        for name in family.sizes
        if not name.startswith(keras_cv_backbones.PREFIX)
    )
    raise InputError(
        f"model.name: there is no architecture {name!r}; known: {known} (or another depth and "
        f"width), {keras_cv_backbones.PREFIX}NAME for a backbone of keras-cv (docs/models.md), or "
        "package.module:function for your own builder"
    )


def load(reference: str) -> Callable[..., Any]:
    """Imports the function of `module:function`.

    Raises:
      InputError: the module cannot be found or imported, or has no such function.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            raise InputError(
                f"model.name={reference}: there is no module {error.name}; install it into the "
                'environment (docs/extending.md, "An architecture")'
            ) from error
        raise InputError(f"model.name={reference}: its module fails, {place(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"model.name={reference}: {module_name} has no function {attribute}")
    return function


def place(error: Exception) -> str:
    """Returns the error in one line, with the file and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{one_line(error)} (line {last.lineno} of {last.filename})"
