"""The tables and the scaling rules, without TensorFlow."""

from __future__ import annotations

import pytest

from cli.errors import InputError
from efficientnet.architectures import (
    ARCHITECTURES,
    BASELINE_STAGES,
    SMALL_IMAGE_STRIDES,
    blocks,
    round_filters,
    round_repeats,
    stage_repeats,
    stem_and_head,
)
from efficientnet.counts import count_parameters

# Stem, head, channels and repeats of the stages as the released models have them.
SHAPES = {
    "b0": (32, 1280, [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]),
    "b1": (32, 1280, [16, 24, 40, 80, 112, 192, 320], [2, 3, 3, 4, 4, 5, 2]),
    "b2": (32, 1408, [16, 24, 48, 88, 120, 208, 352], [2, 3, 3, 4, 4, 5, 2]),
    "b3": (40, 1536, [24, 32, 48, 96, 136, 232, 384], [2, 3, 3, 5, 5, 6, 2]),
    "b4": (48, 1792, [24, 32, 56, 112, 160, 272, 448], [2, 4, 4, 6, 6, 8, 2]),
    "b5": (48, 2048, [24, 40, 64, 128, 176, 304, 512], [3, 5, 5, 7, 7, 9, 3]),
    "b6": (56, 2304, [32, 40, 72, 144, 200, 344, 576], [3, 6, 6, 8, 8, 11, 3]),
    "b7": (64, 2560, [32, 48, 80, 160, 224, 384, 640], [4, 7, 7, 10, 10, 13, 4]),
    "b8": (72, 2816, [32, 56, 88, 176, 248, 424, 704], [4, 8, 8, 11, 11, 15, 4]),
    "l0": (88, 3584, [48, 64, 112, 224, 312, 536, 896], [4, 8, 8, 12, 12, 15, 4]),
    "l1": (128, 4992, [64, 96, 160, 312, 440, 752, 1248], [4, 8, 8, 12, 12, 15, 4]),
    "l2": (136, 5504, [72, 104, 176, 344, 480, 824, 1376], [6, 11, 11, 16, 16, 22, 6]),
    "l2_475": (136, 5504, [72, 104, 176, 344, 480, 824, 1376], [6, 11, 11, 16, 16, 22, 6]),
    "b6_wide": (160, 6400, [80, 120, 200, 400, 560, 960, 1600], [3, 6, 6, 8, 8, 11, 3]),
    "lite0": (32, 1280, [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]),
    "lite1": (32, 1280, [16, 24, 40, 80, 112, 192, 320], [1, 3, 3, 4, 4, 5, 1]),
    "lite2": (32, 1280, [16, 24, 48, 88, 120, 208, 352], [1, 3, 3, 4, 4, 5, 1]),
    "lite3": (32, 1280, [24, 32, 48, 96, 136, 232, 384], [1, 3, 3, 5, 5, 6, 1]),
    "lite4": (32, 1280, [24, 32, 56, 112, 160, 272, 448], [1, 4, 4, 6, 6, 8, 1]),
}

# Trainable parameters with 1000 classes, and entries of the moving averages. b0 and b7 are what
# keras.applications counts; l0, l1 and l2 round to the published 140M, 273M and 480M. lite0 to
# lite4 round to the published 4.7M, 5.4M, 6.1M, 8.2M and 13.0M.
PARAMETERS = {
    "b0": (5_288_548, 42_016),
    "b1": (7_794_184, 62_048),
    "b2": (9_109_994, 67_568),
    "b3": (12_233_232, 87_296),
    "b4": (19_341_616, 125_200),
    "b5": (30_389_784, 172_736),
    "b6": (43_040_704, 224_432),
    "b7": (66_347_960, 310_720),
    "b8": (87_413_142, 380_032),
    "l0": (140_764_664, 493_904),
    "l1": (272_630_564, 693_920),
    "l2": (480_309_308, 1_090_688),
    "l2_475": (480_309_308, 1_090_688),
    "b6_wide": (316_649_180, 626_720),
    "lite0": (4_652_008, 42_016),
    "lite1": (5_416_680, 53_664),
    "lite2": (6_092_072, 58_096),
    "lite3": (8_197_096, 76_672),
    "lite4": (13_006_568, 112_368),
}


def test_every_variant_is_covered() -> None:
    assert set(SHAPES) == set(PARAMETERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", SHAPES)
def test_channels_and_repeats(name: str) -> None:
    stem, head, filters, repeats = SHAPES[name]
    width, depth, lite = (
        ARCHITECTURES[name].width,
        ARCHITECTURES[name].depth,
        ARCHITECTURES[name].lite,
    )
    assert stem_and_head(width, lite) == (stem, head)
    assert [round_filters(stage.filters_out, width) for stage in BASELINE_STAGES] == filters
    assert list(stage_repeats(depth, lite)) == repeats
    layout = blocks(width, depth, lite=lite)
    assert len(layout) == sum(repeats)
    assert layout[0].filters_in == stem
    assert {block.squeeze > 0 for block in layout} == {not lite}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    """Tests the closed form; test_model holds it against real models."""
    width, depth, lite = (
        ARCHITECTURES[name].width,
        ARCHITECTURES[name].depth,
        ARCHITECTURES[name].lite,
    )
    assert count_parameters(width, depth, 1000, lite) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "image_size", "dropout"),
    [
        ("b0", 224, 0.2),
        ("b4", 380, 0.4),
        ("b7", 600, 0.5),
        ("b8", 672, 0.5),
        ("l0", 380, 0.5),
        ("l2", 800, 0.5),
        ("l2_475", 475, 0.5),
        ("lite0", 224, 0.2),
        ("lite3", 280, 0.3),
        ("lite4", 300, 0.3),
    ],
)
def test_image_size_and_dropout(name: str, image_size: int, dropout: float) -> None:
    assert (ARCHITECTURES[name].image_size, ARCHITECTURES[name].dropout) == (image_size, dropout)


def test_filters_are_never_rounded_down_by_more_than_a_tenth() -> None:
    assert round_filters(24, 1.1) == 24  # 26.4 -> 24 is 9 % down
    assert round_filters(16, 0.68) == 16  # 10.9 -> 8 would be 26 % down
    assert round_filters(16, 0.1) == 8
    assert round_repeats(3, 1.1) == 4
    assert round_repeats(4, 0.5) == 2


def test_survival_probabilities_of_b0() -> None:
    # 1 - 0.2 b / 16 for b = 2, 4, 6, 7, 9, 10, 12, 13, 14, the blocks that keep both stride and
    # channels.
    survive = {
        block.name: block.survival_probability for block in blocks(1.0, 1.0) if block.has_skip
    }
    assert survive == pytest.approx(
        {
            "block2b": 0.975,
            "block3b": 0.95,
            "block4b": 0.925,
            "block4c": 0.9125,
            "block5b": 0.8875,
            "block5c": 0.875,
            "block6b": 0.85,
            "block6c": 0.8375,
            "block6d": 0.825,
        }
    )
    assert all(block.survival_probability == 1 for block in blocks(1.0, 1.0) if not block.has_skip)


def test_survival_probability_counts_the_blocks_of_the_scaled_network() -> None:
    last = blocks(4.3, 5.3, survival_probability=0.6)[-1]
    assert last.has_skip
    assert last.survival_probability == pytest.approx(1 - 0.4 * 87 / 88)


def test_only_the_first_block_of_a_stage_strides() -> None:
    layout = blocks(1.0, 1.0, SMALL_IMAGE_STRIDES)
    assert [block.name for block in layout if block.stride == 2] == ["block4a", "block6a"]


def test_names_do_not_run_out_of_letters() -> None:
    names = [block.name for block in blocks(1.0, 15.0)]
    assert names[14:17] == ["block1o", "block2a", "block2b"]
    assert names[14 + 26 : 14 + 29] == ["block2z", "block2aa", "block2ab"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0.0}, "width and depth"),
        ({"depth": -1.0}, "width and depth"),
        ({"strides": (1, 2)}, "strides must be 7"),
        ({"strides": (1, 2, 2, 3, 1, 2, 1)}, "strides must be 7"),
        ({"survival_probability": 0.0}, "survival_probability"),
        ({"survival_probability": 1.2}, "survival_probability"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        blocks(**{"width": 1.0, "depth": 1.0, **arguments})


def test_what_would_give_b6_wide_the_paper_s_parameters():
    """390M (Meta Pseudo Labels, Section 4): width 5.55 at B6's depth; no depth at width 5.0."""
    by_depth = {
        depth / 20: count_parameters(5.0, depth / 20, 1000)[0] / 1e6 for depth in range(40, 81)
    }
    assert not any(385 <= millions < 395 for millions in by_depth.values())
    assert [round(by_depth[depth], 1) for depth in (2.6, 3.0, 3.05, 3.1)] == [
        316.6,
        337.9,
        398.5,
        398.5,
    ]
    assert round(count_parameters(5.55, 2.6, 1000)[0] / 1e6, 1) == 389.3
