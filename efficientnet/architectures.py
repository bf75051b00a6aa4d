"""Tables of the EfficientNet family: variants, the baseline's seven stages, scaling rules.

This module is pure Python, without TensorFlow. :func:`blocks` returns a tuple of :class:`Block`:
all that a builder, a weight importer or a parameter count needs to know about a variant's layers.

Sources:
    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
    2019: the baseline, Table 1. The strides of stages 4 and 5 are those of the authors' code; the
    published table has them swapped.

    The authors' code, github.com/tensorflow/tpu, models/official/efficientnet: coefficients of
    b0-b8 and l2, rounding, survival probability. Its subfolder lite: lite0-lite4.

    Xie et al., "Self-training with Noisy Student improves ImageNet classification", CVPR 2020,
    first arXiv version, Table 7: l0, l1, l2.

    Pham et al., "Meta Pseudo Labels", CVPR 2021: b6_wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from cli.errors import InputError
from nets.names import repeat_letter


class Architecture(NamedTuple):
    """Coefficients that distinguish one variant from another.

    Attributes:
        width: factor of every number of channels (then :func:`round_filters`).
        depth: factor of every number of repeats (then :func:`round_repeats`).
        image_size: side of the square training image, in pixels.
        dropout: dropout rate before the classifier, in [0, 1).
        lite: whether it is an EfficientNet-Lite: no squeeze-and-excitation, and ReLU6 instead of
            swish. Stem, head and the repeats of the first and last stage are not scaled.
    """

    width: float
    depth: float
    image_size: int
    dropout: float
    lite: bool = False


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        # The authors' code, efficientnet_builder.py.
        "b0": Architecture(1.0, 1.0, 224, 0.2),
        "b1": Architecture(1.0, 1.1, 240, 0.2),
        "b2": Architecture(1.1, 1.2, 260, 0.3),
        "b3": Architecture(1.2, 1.4, 300, 0.3),
        "b4": Architecture(1.4, 1.8, 380, 0.4),
        "b5": Architecture(1.6, 2.2, 456, 0.4),
        "b6": Architecture(1.8, 2.6, 528, 0.5),
        "b7": Architecture(2.0, 3.1, 600, 0.5),
        "b8": Architecture(2.2, 3.6, 672, 0.5),
        # Noisy Student, first arXiv version, Table 7: trained at 380, tested (after fine-tuning) at
        # 600.
        "l0": Architecture(2.8, 3.7, 380, 0.5),
        "l1": Architecture(3.9, 3.7, 380, 0.5),
        # Trained at 475, then fine-tuned and tested at 800: one network, two published sets of
        # weights.
        "l2": Architecture(4.3, 5.3, 800, 0.5),
        "l2_475": Architecture(4.3, 5.3, 475, 0.5),
        # Meta Pseudo Labels: b6 with its width raised to 5.0. The paper's 390M parameters do not
        # follow from these coefficients under the family's rounding, which gives 316.6M; no public
        # code has the model.
        "b6_wide": Architecture(5.0, 2.6, 512, 0.5),
        # The authors' code, lite/efficientnet_lite_builder.py.
        "lite0": Architecture(1.0, 1.0, 224, 0.2, lite=True),
        "lite1": Architecture(1.0, 1.1, 240, 0.2, lite=True),
        "lite2": Architecture(1.1, 1.2, 260, 0.3, lite=True),
        "lite3": Architecture(1.2, 1.4, 280, 0.3, lite=True),
        "lite4": Architecture(1.4, 1.8, 300, 0.3, lite=True),
    }
)
"""The variants by name.

Sources: b0-b8, l2, l2_475: the authors' code (``efficientnet_builder.py``). l0, l1: Noisy Student,
first arXiv version, Table 7. b6_wide: Meta Pseudo Labels, section on large-scale experiments;
under-specified, see the comment beside it. lite0-lite4: the authors' code
(``lite/efficientnet_lite_builder.py``).
"""


class Stage(NamedTuple):
    """One stage of the baseline: ``repeats`` blocks.

    The first block applies the stride and changes the channels.
    """

    repeats: int
    kernel: int  # side of the depthwise convolution
    stride: int
    expand: int  # channels inside a block over channels at its input
    filters_in: int
    filters_out: int


BASELINE_STAGES: tuple[Stage, ...] = (
    Stage(repeats=1, kernel=3, stride=1, expand=1, filters_in=32, filters_out=16),
    Stage(repeats=2, kernel=3, stride=2, expand=6, filters_in=16, filters_out=24),
    Stage(repeats=2, kernel=5, stride=2, expand=6, filters_in=24, filters_out=40),
    Stage(repeats=3, kernel=3, stride=2, expand=6, filters_in=40, filters_out=80),
    Stage(repeats=3, kernel=5, stride=1, expand=6, filters_in=80, filters_out=112),
    Stage(repeats=4, kernel=5, stride=2, expand=6, filters_in=112, filters_out=192),
    Stage(repeats=1, kernel=3, stride=1, expand=6, filters_in=192, filters_out=320),
)
"""Stages of EfficientNet-B0, without stem and head.

Source: the block strings in the authors' code, ``efficientnet_builder.py``.
"""

BASELINE_STRIDES: tuple[int, ...] = tuple(stage.stride for stage in BASELINE_STAGES)

SMALL_IMAGE_STRIDES: tuple[int, ...] = (1, 1, 1, 2, 1, 2, 1)
"""Stage strides for 32-pixel images.

Stages 2 and 3 keep the resolution. The stem still halves it (32 px -> 4x4 map).

Source: the Noisy Student release's SVHN model (github.com/google-research/noisystudent).
"""

STEM_FILTERS = 32
HEAD_FILTERS = 1280
SQUEEZE_RATIO = 0.25


def round_filters(filters: int, width: float) -> int:
    """Scales a number of channels and rounds it to a multiple of 8, never more than 10 % down.

    Source: the authors' code, ``efficientnet_model.py``, ``round_filters`` with its default
    divisor 8.

    Args:
        filters: channels of the baseline.
        width: the variant's width coefficient, above 0.

    Returns:
        The channels of the variant; at least 8.
    """
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def round_repeats(repeats: int, depth: float) -> int:
    """Scales a number of repeats, rounding up: ceil(depth * repeats).

    Source: the authors' code, ``efficientnet_model.py``, ``round_repeats``.
    """
    return math.ceil(depth * repeats)


def stem_and_head(width: float, lite: bool = False) -> tuple[int, int]:
    """Returns the channels of the stem and of the head; a Lite variant does not scale them."""
    return (
        (STEM_FILTERS, HEAD_FILTERS)
        if lite
        else (round_filters(STEM_FILTERS, width), round_filters(HEAD_FILTERS, width))
    )


def stage_repeats(depth: float, lite: bool = False) -> tuple[int, ...]:
    """Returns the blocks of each stage; a Lite variant does not scale the first and the last stage.

    Source: the authors' code, ``efficientnet_model.py``, ``fix_head_stem``.
    """
    ends = (0, len(BASELINE_STAGES) - 1) if lite else ()
    return tuple(
        stage.repeats if i in ends else round_repeats(stage.repeats, depth)
        for i, stage in enumerate(BASELINE_STAGES)
    )


class Block(NamedTuple):
    """One inverted residual block of a variant, with all numbers final.

    Attributes:
        name: Keras's name, ``block1a`` and on (stage from 1, repeat from ``a``).
        kernel: side of the depthwise convolution.
        stride: stride of the depthwise convolution.
        expand: expansion ratio; at 1 there is no expansion convolution.
        filters_in: channels at the input.
        filters_out: channels at the output.
        squeeze: channels of the squeeze-and-excitation bottleneck; 0 if the block has none.
        has_skip: whether the input is added to the output.
        survival_probability: probability that the residual branch is kept, in (0, 1]; 1 without a
            skip.
    """

    name: str
    kernel: int
    stride: int
    expand: int
    filters_in: int
    filters_out: int
    squeeze: int
    has_skip: bool
    survival_probability: float


def blocks(
    width: float,
    depth: float,
    strides: Sequence[int] = BASELINE_STRIDES,
    survival_probability: float = 0.8,
    lite: bool = False,
) -> tuple[Block, ...]:
    """Lays out every block of a variant.

    Block b of N (b from 0) survives with probability ``p_b = 1 - (1 - survival_probability) * b /
    N``. So the first block always survives, and the last almost as rarely as
    ``survival_probability`` says. N is the number of blocks of the *scaled* network. With the
    baseline's 16 instead, the deep variants' last blocks would be dropped far too often. A block
    has a skip if its stride is 1 and the channels stay the same; only such a block is dropped.

    Sources: stage table and rounding as above; survival probability: Huang et al., "Deep Networks
    with Stochastic Depth", ECCV 2016, eq. 4, in the form of the authors' ``efficientnet_model.py``.
    The squeeze is a quarter of the block's *input* channels, before expansion (same file).

    Args:
        width: width coefficient, above 0.
        depth: depth coefficient, above 0.
        strides: stride of each of the seven stages, 1 or 2.
        survival_probability: survival probability at the far end of the depth, in (0, 1].
        lite: see :class:`Architecture`.

    Returns:
        The blocks in order.

    Raises:
        InputError: an argument out of its range.
    """
    if not (width > 0 and depth > 0):
        raise InputError(f"EfficientNet width and depth must be above 0, not {width} and {depth}")
    if len(strides) != len(BASELINE_STAGES) or any(stride not in (1, 2) for stride in strides):
        raise InputError(
            f"EfficientNet strides must be {len(BASELINE_STAGES)} numbers out of 1 and 2, not"
            f" {tuple(strides)}"
        )
    if not 0 < survival_probability <= 1:
        raise InputError(
            f"survival_probability must be above 0 and at most 1, not {survival_probability}"
        )

    repeats = stage_repeats(depth, lite)
    laid_out: list[Block] = []
    for number, (stage, stage_stride) in enumerate(zip(BASELINE_STAGES, strides), start=1):
        filters_in = (
            round_filters(stage.filters_in, width) if laid_out else stem_and_head(width, lite)[0]
        )
        filters_out = round_filters(stage.filters_out, width)
        for repeat in range(repeats[number - 1]):
            stride = stage_stride if repeat == 0 else 1
            channels = filters_in if repeat == 0 else filters_out
            has_skip = stride == 1 and channels == filters_out
            survives = (
                1.0 - (1.0 - survival_probability) * len(laid_out) / sum(repeats)
                if has_skip
                else 1.0
            )
            laid_out.append(
                Block(
                    name=f"block{number}{repeat_letter(repeat)}",
                    kernel=stage.kernel,
                    stride=stride,
                    expand=stage.expand,
                    filters_in=channels,
                    filters_out=filters_out,
                    squeeze=0 if lite else max(1, int(channels * SQUEEZE_RATIO)),
                    has_skip=has_skip,
                    survival_probability=survives,
                )
            )
    return tuple(laid_out)


def coefficients(model: Mapping[str, Any]) -> tuple[float, float, bool]:
    """Returns width, depth and `lite` of a recipe's `model`.

    Width and depth are the recipe's own where it gives them, else the variant's.
    """
    variant = ARCHITECTURES[model["name"]]
    width, depth = model.get("width"), model.get("depth")
    return (
        variant.width if width is None else width,
        variant.depth if depth is None else depth,
        variant.lite,
    )


def check_settings(model: Mapping[str, Any]) -> None:
    """Raises InputError for an impossible width, depth, stride or survival probability."""
    survival = model.get("survival_probability")
    width, depth, lite = coefficients(model)
    blocks(
        width,
        depth,
        model.get("strides") or BASELINE_STRIDES,
        1.0 if survival is None else survival,
        lite,
    )


def reduction(model: Mapping[str, Any]) -> int:
    """Returns the side of the image divided by the side of the last maps of `model`."""
    return math.prod([model.get("stem_stride") or 2, *(model.get("strides") or BASELINE_STRIDES)])


def warning(model: Mapping[str, Any], image_size: int) -> str | None:
    """Returns a line of advice if `model` reduces `image_size` pixels to nearly nothing."""
    if image_size > 64 or (model.get("stem_stride") or 2) != 2 or model.get("strides"):
        return None
    return (
        f"note: {model['name']} halves images of {image_size} pixels five times, so few pixels are "
        "left; set model.strides to keep more, as image_folder.py:small does"
    )
