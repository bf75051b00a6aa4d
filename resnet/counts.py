"""Counts activations and multiply-adds of the residual networks from their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from resnet.resnet50 import STAGES
from resnet.wide_resnet import parse


class _Part(NamedTuple):
    """Cost of one block for an image, or of the stem (the first part) or the end (the last).

    Attributes:
      entry: numbers of the block's input; 0 for the stem and the end.
      kept: numbers that the backward pass needs, without the input, with the output.
      multiply_adds: multiplications of the convolutions.
    """

    entry: int
    kept: int
    multiply_adds: int


def _resnet50(size: int) -> Iterator[_Part]:
    """Yields stem and blocks. A ReLU's gradient needs its output only, so a map counts twice."""
    side = -(-size // 2)
    stem = side**2 * 64
    side = -(-side // 2)
    # The pooling keeps its padded input.
    yield _Part(0, 3 * stem + side**2 * 64, stem * 7 * 7 * 3)
    channels = 64
    for stage, (blocks, filters) in enumerate(STAGES):
        for block in range(blocks):
            wide, stride = 4 * filters, 2 if stage and not block else 1
            after = -(-side // stride)
            first, inner, last = side**2 * filters, after**2 * filters, after**2 * wide
            projected = last if not block else 0
            yield _Part(
                side**2 * channels,
                2 * first + 2 * inner + last + projected + last,
                first * channels + inner * 9 * filters + last * filters + projected * channels,
            )
            side, channels = after, wide


def _wide_resnet(model: Mapping[str, Any], size: int, fused: bool) -> Iterator[_Part]:
    """Yields stem, blocks and end. The release's leaky ReLU needs its input, too."""
    depth, width = parse(model["name"])
    release = model.get("variant") == "release"
    each = 1 if fused or not release else 2  # the maps of an activation, its output included
    channels, side = 16 * width if release else 16, size
    yield _Part(0, side**2 * channels, side**2 * channels * 27)
    for group in range(3):
        filters = 16 * width << group
        for block in range((depth - 4) // 6):
            after = -(-side // 2) if group and not block else side
            entry, inner = side**2 * channels, after**2 * filters
            projected = inner * channels if after != side or channels != filters else 0
            yield _Part(
                entry,
                each * entry + (1 + each) * inner + inner,
                inner * 9 * (channels + filters) + projected,
            )
            side, channels = after, filters
    yield _Part(0, (0 if fused else each) * side**2 * channels, 0)


def _parts(model: Mapping[str, Any], size: int, fused: bool) -> list[_Part]:
    wide = model["name"].startswith("wrn_")
    return list(_wide_resnet(model, size, fused) if wide else _resnet50(size))


def activations(
    model: Mapping[str, Any],
    image_size: int,
    rematerialize: bool,
    frozen_blocks: int = 0,
    fused: bool = False,
) -> int:
    """Counts the numbers that a training step keeps of one image for the backward pass.

    They are each normalization's input, each activation's output and each sum. Copies with a
    border, which strided convolutions read, are left out.

    Args:
        model: a recipe's `model`.
        image_size: side of the square input in pixels.
        rematerialize: whether the blocks keep only their inputs. One block at a time, here the
          largest, is then computed again.
        frozen_blocks: number of first blocks that are frozen. Nothing of them and of the stem is
          kept; 0 keeps all.
        fused: whether XLA compiles the step. It computes cheap maps again where they are read.
    """
    stem, *blocks = _parts(model, image_size, fused)
    kept = blocks[frozen_blocks:]
    outside = 0 if frozen_blocks else stem.kept
    if not rematerialize:
        return outside + sum(block.kept for block in kept)
    ends = sum(part.kept for part in kept if not part.entry)
    return outside + ends + sum(block.entry for block in kept) + max(block.kept for block in kept)


def multiply_adds(model: Mapping[str, Any], image_size: int, num_classes: int) -> int:
    """Counts the multiply-adds of one image's forward pass: of convolutions and classifier.

    Args:
        model: a recipe's `model`.
        image_size: side of the square input in pixels.
        num_classes: outputs of the classifier.
    """
    convolutions = sum(part.multiply_adds for part in _parts(model, image_size, False))
    if not model["name"].startswith("wrn_"):
        return convolutions + 4 * STAGES[-1][1] * num_classes
    return convolutions + 64 * parse(model["name"])[1] * num_classes
