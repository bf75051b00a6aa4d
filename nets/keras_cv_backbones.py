"""keras-cv's classification backbones by name, without importing keras-cv or TensorFlow.

keras-cv 0.9 itself reads a backbone's shape from a file that it downloads, so the shapes stand
here. Each has as many parameters as keras-cv's list of presets states. That list states none for
DenseNet, and other ones for MobileNetV3: 933,502 and 2,994,518 where the layers have 939,120 and
2,996,352.

Left out: its EfficientNet and EfficientNet-Lite of the first version, which the project has itself,
and backbones for detection and segmentation (CSPDarkNet, MiT, ViTDet, VGG-16).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from cli.errors import InputError

PREFIX = "keras_cv/"


class Backbone(NamedTuple):
    """A backbone of keras-cv.

    Attributes:
      kind: its class in `keras_cv.models`.
      image_size: side of the images that it is meant for, in pixels.
      options: arguments of the class.
    """

    kind: str
    image_size: int
    options: Mapping[str, Any]


def _efficientnet_v2(size: int, stages: str, width: float = 1.0, depth: float = 1.0) -> Backbone:
    """Returns an EfficientNetV2.

    `stages` has six entries a stage: repeats, channels in, channels out, expansion, stride and
    kind. The kind is f (fused) or u (unfused).
    """
    rows = [row.split() for row in stages.split(",")]
    columns = list(zip(*[[*map(int, row[:5]), row[5]] for row in rows]))
    kinds = ["fused" if kind == "f" else "unfused" for kind in columns[5]]
    options = {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "stackwise_kernel_sizes": [3] * len(rows),
        "stackwise_num_repeats": list(columns[0]),
        "stackwise_input_filters": list(columns[1]),
        "stackwise_output_filters": list(columns[2]),
        "stackwise_expansion_ratios": list(columns[3]),
        "stackwise_strides": list(columns[4]),
        "stackwise_squeeze_and_excite_ratios": [0.0 if kind == "fused" else 0.25 for kind in kinds],
        "stackwise_conv_types": kinds,
    }
    return Backbone("EfficientNetV2Backbone", size, options)


def _resnet(kind: str, blocks: tuple[int, ...], block_type: str = "block") -> Backbone:
    options = {
        "stackwise_filters": [64, 128, 256, 512],
        "stackwise_blocks": list(blocks),
        "stackwise_strides": [1, 2, 2, 2],
        "block_type": block_type,
    }
    return Backbone(kind, 224, options)


def _mobilenet_v3(
    expansion: list[float], filters: str, kernels: str, strides: str, excited: str, hard_from: int
) -> Backbone:
    """Returns a MobileNetV3.

    `excited` is 1 for a block with squeeze-and-excitation. `hard_from` is the first block with
    hard-swish instead of ReLU.
    """
    blocks = len(expansion)
    options = {
        "stackwise_expansion": expansion,
        "stackwise_filters": list(map(int, filters.split())),
        "stackwise_kernel_size": list(map(int, kernels.split())),
        "stackwise_stride": list(map(int, strides.split())),
        "stackwise_se_ratio": [0.25 if digit == "1" else None for digit in excited.split()],
        "stackwise_activation": ["relu"] * hard_from + ["hard_swish"] * (blocks - hard_from),
    }
    return Backbone("MobileNetV3Backbone", 224, options)


def _densenet(*repeats: int) -> Backbone:
    return Backbone("DenseNetBackbone", 224, {"stackwise_num_repeats": list(repeats)})


_V2_B = (
    "1 32 16 1 1 f, 2 16 32 4 2 f, 2 32 48 4 2 f, 3 48 96 4 2 u, 5 96 112 6 1 u, 8 112 192 6 2 u"
)
_V2_S = (
    "2 24 24 1 1 f, 4 24 48 4 2 f, 4 48 64 4 2 f, 6 64 128 4 2 u, 9 128 160 6 1 u, 15 160 256 6 2 u"
)
_V2_M = (
    "3 24 24 1 1 f, 5 24 48 4 2 f, 5 48 80 4 2 f, 7 80 160 4 2 u, 14 160 176 6 1 u, 18 176 304 6 2"
    " u, 5 304 512 6 1 u"
)
_V2_L = (
    "4 32 32 1 1 f, 7 32 64 4 2 f, 7 64 96 4 2 f, 10 96 192 4 2 u, 19 192 224 6 1 u, 25 224 384 6 2"
    " u, 7 384 640 6 1 u"
)

FAMILIES = {
    "EfficientNetV2": {  # Tan and Le 2021, Table 4, and its release
        "efficientnetv2_b0": _efficientnet_v2(224, _V2_B),
        "efficientnetv2_b1": _efficientnet_v2(240, _V2_B, 1.0, 1.1),
        "efficientnetv2_b2": _efficientnet_v2(260, _V2_B, 1.1, 1.2),
        "efficientnetv2_b3": _efficientnet_v2(300, _V2_B, 1.2, 1.4),
        "efficientnetv2_s": _efficientnet_v2(384, _V2_S),
        "efficientnetv2_m": _efficientnet_v2(480, _V2_M),
        "efficientnetv2_l": _efficientnet_v2(480, _V2_L),
    },
    "ResNet": {  # He et al. 2016, Table 1
        "resnet18": _resnet("ResNetBackbone", (2, 2, 2, 2), "basic_block"),
        "resnet34": _resnet("ResNetBackbone", (3, 4, 6, 3), "basic_block"),
        "resnet50": _resnet("ResNetBackbone", (3, 4, 6, 3)),
        "resnet101": _resnet("ResNetBackbone", (3, 4, 23, 3)),
        "resnet152": _resnet("ResNetBackbone", (3, 8, 36, 3)),
    },
    "ResNet v2": {
        "resnet18_v2": _resnet("ResNetV2Backbone", (2, 2, 2, 2), "basic_block"),
        "resnet34_v2": _resnet("ResNetV2Backbone", (3, 4, 6, 3), "basic_block"),
        "resnet50_v2": _resnet("ResNetV2Backbone", (3, 4, 6, 3)),
        "resnet101_v2": _resnet("ResNetV2Backbone", (3, 4, 23, 3)),
        "resnet152_v2": _resnet("ResNetV2Backbone", (3, 8, 36, 3)),
    },
    "MobileNetV3": {  # Howard et al. 2019, Tables 1 and 2
        "mobilenet_v3_small": _mobilenet_v3(
            [1, 72 / 16, 88 / 24, 4, 6, 6, 3, 3, 6, 6, 6],
            "16 24 24 40 40 40 48 48 96 96 96",
            "3 3 3 5 5 5 5 5 5 5 5",
            "2 2 1 2 1 1 1 1 2 1 1",
            "1 0 0 1 1 1 1 1 1 1 1",
            hard_from=3,
        ),
        "mobilenet_v3_large": _mobilenet_v3(
            [1, 4, 3, 3, 3, 3, 6, 2.5, 2.3, 2.3, 6, 6, 6, 6, 6],
            "16 24 24 40 40 40 80 80 80 80 112 112 160 160 160",
            "3 3 3 5 5 5 3 3 3 3 3 3 5 5 5",
            "1 2 1 2 1 1 2 1 1 1 1 1 2 1 1",
            "0 0 0 1 1 1 0 0 0 0 1 1 1 1 1",
            hard_from=6,
        ),
    },
    "DenseNet": {  # Huang et al. 2017, Table 1
        "densenet121": _densenet(6, 12, 24, 16),
        "densenet169": _densenet(6, 12, 32, 32),
        "densenet201": _densenet(6, 12, 48, 32),
    },
}
"""A family's name in its paper -> its backbones by keras-cv's names of presets, smallest first."""

BACKBONES = {PREFIX + name: row for family in FAMILIES.values() for name, row in family.items()}
"""`model.name` -> backbone."""

PRESETS = (
    *(
        f"efficientnetv2_{size}_imagenet{kind}"
        for size in ("b0", "b1", "b2", "s")
        for kind in ("", "_classifier")
    ),
    "resnet50_imagenet",
    "resnet50_v2_imagenet",
    "resnet50_v2_imagenet_classifier",
    "mobilenet_v3_small_imagenet",
    "mobilenet_v3_large_imagenet",
    "mobilenet_v3_large_imagenet_classifier",
    "densenet121_imagenet",
    "densenet169_imagenet",
    "densenet201_imagenet",
)
"""keras-cv's names of the published weights of these backbones.

`..._classifier` has ImageNet's 1,000 classes.
"""


def of_preset(preset: str) -> str:
    """Returns the `model.name` that the published weights `preset` are for.

    Raises:
      InputError: there are no such weights. The message has the nearest name.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(PRESETS)}"
        raise InputError(f"keras-cv has no published weights {preset!r}; {hint}")
    return PREFIX + preset.partition("_imagenet")[0]


def find(name: str, key: str = "name") -> Backbone:
    """Returns the backbone of `model.name`.

    Raises:
      InputError: there is none. The message is about `key` and has the nearest name.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(
            name[len(PREFIX) :], [known[len(PREFIX) :] for known in BACKBONES], n=1
        )
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"known: {', '.join(BACKBONES)}"
        raise InputError(f"{key}: keras-cv has no backbone {name!r} for classification; {hint}")
    return BACKBONES[name]


def title(name: str) -> str:
    """Returns what a model card calls the network of `model.name`."""
    preset = name[len(PREFIX) :]
    family = next(title for title, rows in FAMILIES.items() if preset in rows)
    return f"{family} ({preset} of keras-cv)"


def reduction(model: Mapping[str, Any]) -> int | None:
    """Returns image side / side of the last maps of a network's depthwise convolutions.

    None if the network has no depthwise convolutions.
    """
    return 32 if find(model["name"]).kind.startswith(("EfficientNetV2", "MobileNetV3")) else None


def check_settings(model: Mapping[str, Any]) -> None:
    """Raises InputError where a setting of a recipe's `model` cannot be kept by its backbone."""
    if (
        find(model["name"]).kind != "EfficientNetV2Backbone"
        and model.get("survival_probability") is not None
    ):
        raise InputError(
            f"survival_probability: {model['name']} has no stochastic depth; set"
            " model.survival_probability to None"
        )
