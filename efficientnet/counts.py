"""Counts parameters, activations and multiply-adds of EfficientNets from their tables.

Nothing is built, and no TensorFlow is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from efficientnet.architectures import BASELINE_STRIDES, blocks, coefficients, stem_and_head


def count_parameters(
    width: float, depth: float, num_classes: int, lite: bool = False, frozen_blocks: int = 0
) -> tuple[int, int]:
    """Counts a variant's weights from its layout, without building it (l2 alone would take 2 GB).

    Args:
        width: width coefficient, above 0.
        depth: depth coefficient, above 0.
        num_classes: outputs of the classifier.
        lite: see :class:`Architecture`.
        frozen_blocks: number of first blocks that are frozen. Their parameters and those of the
          stem are not counted; 0 counts all.

    Returns:
        Trainable parameters (the number that papers print), and entries of batch normalization's
        moving averages.
    """
    stem, head = stem_and_head(width, lite)
    layout = blocks(width, depth, lite=lite)
    weights, normalized = (0, 0) if frozen_blocks else (3 * 3 * 3 * stem, stem)
    for block in layout[frozen_blocks:]:
        inner = block.filters_in * block.expand
        if block.expand != 1:
            weights += block.filters_in * inner
            normalized += inner
        weights += block.kernel**2 * inner  # depthwise
        if block.squeeze:  # squeeze and excitation, with biases
            weights += (inner + 1) * block.squeeze + (block.squeeze + 1) * inner
        weights += inner * block.filters_out
        normalized += inner + block.filters_out
    weights += layout[-1].filters_out * head + (head + 1) * num_classes
    normalized += head
    return weights + 2 * normalized, 2 * normalized


def count_activations(
    width: float,
    depth: float,
    image_size: int,
    stem_stride: int = 2,
    strides: Sequence[int] = BASELINE_STRIDES,
    rematerialize: bool = False,
    lite: bool = False,
    frozen_blocks: int = 0,
    fused: bool = False,
) -> int:
    """Counts the numbers that a training step keeps of one image for the backward pass.

    They are the maps before and after each normalization and swish. XLA keeps fewer: it computes
    normalization, swish and gate again where the backward pass reads them.

    Args:
        width: width coefficient, above 0.
        depth: depth coefficient, above 0.
        image_size: side of the square input in pixels.
        stem_stride: 1 or 2.
        strides: stride of each of the seven stages, 1 or 2.
        rematerialize: whether the blocks keep only their inputs. One block at a time, here the
          largest, is then computed again.
        lite: see :class:`Architecture`.
        frozen_blocks: number of first blocks that are frozen. Nothing of them and of the stem is
          kept; 0 keeps all.
        fused: whether XLA compiles the step.

    Returns:
        Count of numbers, not bytes. Each entry of a map counts 3 if it is normalized and
        activated, 2 if it is only normalized, and 1 more if squeeze-and-excitation gates it.
        With `fused` each counts 2, and the last map 1.
    """
    side = -(-image_size // stem_stride)
    stem, head = stem_and_head(width, lite)
    activated = 2 if fused else 3
    outside = 0 if frozen_blocks else activated * side**2 * stem
    inputs, insides = [0], [0]
    for number, block in enumerate(blocks(width, depth, strides, lite=lite)):
        if number < frozen_blocks:
            side = -(-side // block.stride)
            continue
        inner = block.filters_in * block.expand
        inputs.append(side**2 * block.filters_in)
        expanded = activated * side**2 * inner if block.expand != 1 else 0
        side = -(-side // block.stride)
        gated = activated + (bool(block.squeeze) and not fused)
        insides.append(expanded + gated * side**2 * inner + 2 * side**2 * block.filters_out)
    outside += (1 if fused else 3) * side**2 * head
    return outside + (sum(inputs) + max(insides) if rematerialize else sum(insides))


def parameters(
    model: Mapping[str, Any], num_classes: int, frozen_blocks: int = 0
) -> tuple[int, int]:
    """Counts the parameters of a recipe's `model` with `num_classes` classes.

    Returns:
        Number of all parameters, BatchNorm's moving statistics included, and of trained ones.
    """
    width, depth, lite = coefficients(model)
    all_of_it = sum(count_parameters(width, depth, num_classes, lite))
    return all_of_it, count_parameters(width, depth, num_classes, lite, frozen_blocks)[0]


def activations(
    model: Mapping[str, Any],
    image_size: int,
    rematerialize: bool,
    frozen_blocks: int = 0,
    fused: bool = False,
) -> int:
    """Returns :func:`count_activations` of a recipe's `model` for images of `image_size` pixels."""
    strides = model.get("strides") or BASELINE_STRIDES
    width, depth, lite = coefficients(model)
    stem = model.get("stem_stride") or 2
    return count_activations(
        width, depth, image_size, stem, strides, rematerialize, lite, frozen_blocks, fused
    )


def multiply_adds(model: Mapping[str, Any], image_size: int, num_classes: int) -> int:
    """Counts the multiply-adds of one image's forward pass.

    A multiply-add is one multiplication with one addition. Convolutions, squeeze-and-excitation
    and the classifier count; normalization and activation do not.

    Args:
        model: a recipe's `model`.
        image_size: side of the square input in pixels.
        num_classes: outputs of the classifier.
    """
    width, depth, lite = coefficients(model)
    side = -(-image_size // (model.get("stem_stride") or 2))
    channels, head = stem_and_head(width, lite)
    total = side**2 * 27 * channels
    for block in blocks(width, depth, model.get("strides") or BASELINE_STRIDES, lite=lite):
        inner, channels = block.filters_in * block.expand, block.filters_out
        total += side**2 * block.filters_in * inner if block.expand != 1 else 0
        side = -(-side // block.stride)
        total += side**2 * inner * (block.kernel**2 + channels) + 2 * inner * block.squeeze
    return total + side**2 * channels * head + head * num_classes
