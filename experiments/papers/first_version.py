"""Noisy Student's first version, with the appendix that the second one no longer has."""

from __future__ import annotations

from experiments.papers.noisy_student import SIZES
from experiments.papers.noisy_student_method import LARGE, NOISE, SMALL
from experiments.papers.row import (
    DRY_RUN,
    IMPOSSIBLE,
    OF_OTHERS,
    READY,
    RUN,
    STAND_IN,
    Row,
    evaluate,
    loop,
    numbers,
    study,
    supervised,
    test,
)

L0 = {"network": "l0", "parameters": 140e6, "image_size": 380, "unlabeled_ratio": 3}
L1 = {"network": "l1", "parameters": 273e6, "image_size": 380, "unlabeled_ratio": 3}
L2 = {"network": "l2", "parameters": 480e6, "image_size": 475, "unlabeled_ratio": 3}
B7 = {"network": "b7", "parameters": 66e6, "image_size": 600, "unlabeled_ratio": 3}
SAME_RATIO = "student.unlabeled_ratio=1"
"""Section 3.1: models smaller than B7 take as many unlabeled images as labeled ones."""
TABLE_9 = "Table 9; Sections 3.1 and 3.2"
TUNED = {"labeled_augmentation": False, "epochs": 1.5}
CHAIN = (
    numbers("loop", "Section 3.1", iterations=5, threshold=0.3, images_per_class=130_000),
    numbers("student_1", "Section 3.1; Table 7", **B7, **LARGE, **NOISE),
    numbers("pretrain_2", "Section 3.1; Table 7", **L0, **LARGE, **NOISE),
    numbers("student_2", "Section 3.1, FixRes; Table 7", network="l0", image_size=600, **TUNED),
    numbers("pretrain_3", "Section 3.1; Table 7", **L1, **LARGE, **NOISE),
    numbers("student_3", "Section 3.1, FixRes; Table 7", network="l1", image_size=600, **TUNED),
    numbers("pretrain_4", "Section 3.1; Table 7", **L2, **LARGE, **NOISE),
    numbers("student_4", "Section 3.1, FixRes; Table 7", network="l2", image_size=800, **TUNED),
    numbers("student_5", "Section 3.1; Table 7", **L2, **LARGE, **NOISE),
    numbers("finetune", "Section 3.1, FixRes; Table 7", network="l2", image_size=800, **TUNED),
)
"""The epochs of the fine-tuning are the second version's; the first one does not tell them."""


def _of_size(name: str) -> tuple[Row, ...]:
    parameters, pixels, _, schedule = SIZES[name]
    network = {"network": name, "parameters": parameters, "image_size": pixels, **schedule}
    ratio = 3 if name == "b7" else 1
    flags = () if name in ("b0", "b7") else (SAME_RATIO,)
    large = numbers(
        "student_4", "A.4; Section 3.1", unlabeled_ratio=ratio, randaugment_layers=0, **network
    )
    return (
        Row(
            "Table 9",
            "`configs/supervised/imagenet.py`",
            DRY_RUN,
            items=(f"EfficientNet-{name.upper()}",),
            commands=(supervised(f"imagenet.py:{name}"),),
            numbers=(numbers("train", TABLE_9, randaugment_layers=2, **network),),
        ),
        Row(
            "Table 9",
            f"`imagenet.py:{name}`, with this version's ratio of {ratio}",
            DRY_RUN,
            items=(f"Noisy Student ({name.upper()})",),
            commands=(loop(name, *flags),),
            numbers=(numbers("student_1", TABLE_9, unlabeled_ratio=ratio, **network),),
        ),
        Row(
            "Table 9",
            "a small student of the second version's last teacher",
            DRY_RUN,
            items=(f"Noisy Student ({name.upper()}, L2)",),
            commands=(loop(f"l2_{name}"),),
            numbers=(large,),
        ),
    )


def _bands() -> tuple[Row, ...]:
    """Returns the bands of Figure 4."""
    rows = []
    for tenth in range(10):
        low, high = tenth / 10, (tenth + 1) / 10
        band = (
            f"balance.threshold={low}",
            f"balance.max_confidence={high}",
            "balance.balance=False",
            "balance.images_per_class=None",
            "balance.sample_images=1300000",
        )
        selected = {"threshold": low, "max_confidence": high, "sample_images": 1_300_000}
        images = numbers("loop", "A.2", iterations=1, **selected)
        for kind in ("soft", "hard"):
            student = numbers("student_1", "A.2", network="b0", pseudo_labels=kind)
            teacher = numbers("teacher", "A.2", network="b0")
            rows.append(
                Row(
                    "Figure 4",
                    "`balance.threshold`, `balance.max_confidence`, `balance.sample_images`",
                    DRY_RUN,
                    items=(f"[{low:.1f}, {high:.1f}], {kind}",),
                    commands=(loop("b0", *band, f"student.pseudo_labels={kind}"),),
                    numbers=(images, teacher, student),
                )
            )
    return tuple(rows)


def _amounts() -> tuple[Row, ...]:
    """Returns the columns of Table 8."""
    rows = []
    for part in (128, 64, 32, 16, 4, 1):
        images = 130_000_000 // part
        drawn = (f"balance.sample_images={images}",) if part > 1 else ()
        selected = {"sample_images": images if part > 1 else None, "selected": 130_000_000}
        rows.append(
            Row(
                "Table 8",
                "`balance.sample_images`: drawn from the balanced set, with its copies. "
                "`balance.fraction` is another quantity: it thins the pool before balancing",
                DRY_RUN,
                items=(f"1/{part}" if part > 1 else "1",),
                commands=(loop("b4", SAME_RATIO, *drawn),),
                numbers=(
                    numbers("loop", "A.3", iterations=1, **selected),
                    numbers("teacher", "A.3", network="b4"),
                    numbers(
                        "student_1", "A.3; Section 3.1", network="b4", unlabeled_ratio=1, **SMALL
                    ),
                ),
            )
        )
    return tuple(rows)


ROWS = (
    Row(
        "Section 3.1, Table 7: L0, L1, L2, their resolutions; FixRes for each of them",
        "`efficientnet/architectures.py`; chain B7, B7, L0, L1, L2, L2: `imagenet.py:v1`",
        DRY_RUN,
        items=("EfficientNet-B7", "EfficientNet-L0", "EfficientNet-L1", "EfficientNet-L2"),
        commands=(loop("v1"),),
        numbers=CHAIN,
    ),
    Row(
        "Section 3.1, ratio 3 for B7 and larger, 1 for the smaller ones",
        "`imagenet.py:v1`; `b1` to `b6` have the second version's 3",
        DRY_RUN,
        commands=(loop("b5", SAME_RATIO),),
        numbers=(numbers("student_1", "Section 3.1", network="b5", unlabeled_ratio=1),),
    ),
    Row(
        "Tables 1 to 5, Noisy Student (L2) of the first version: 87.4 %",
        "`imagenet.py:v1`, then the suites",
        DRY_RUN,
        commands=(loop("v1"), evaluate("suite=a,c,p", "data_a=DIR", "model=W/student_5")),
        numbers=CHAIN,
    ),
    Row(
        "Tables 1 to 5, all other rows",
        "the rows of the second version, above",
        IMPOSSIBLE,
        why=f"the same as in the second version: {OF_OTHERS}, and EfficientNet-L2",
    ),
    Row(
        "Figures 1, 2 and 3",
        "Figures 2, 3 and 4 of the second version, above",
        IMPOSSIBLE,
        why="the same figures, of the student with 87.4 %",
    ),
    Row(
        "Table 6",
        "Table 6 of the second version, above, without the noised teacher",
        DRY_RUN,
        commands=(loop("b5", SAME_RATIO),),
        numbers=(numbers("student_1", "Table 6; Section 3.1", network="b5", unlabeled_ratio=1),),
    ),
    *_bands(),
    Row(
        "Figure 4, as a study: two bands, soft against hard labels",
        "`configs/studies/bands.py`, `labels.py`",
        READY,
        commands=(study("bands.py"), study("labels.py")),
        why="a stand-in, on the digits: two bands of all their images for ten of 1.3M",
    ),
    *_amounts(),
    Row(
        "Table 8, as a study: amount of unlabeled data",
        "`configs/studies/amount.py`: `balance.fraction`, of the pool before balancing",
        READY,
        commands=(study("amount.py"),),
        why="a stand-in, on the digits: another quantity than Table 8's, see its rows",
    ),
    *(row for name in SIZES for row in _of_size(name)),
    Row(
        "Table 9, as a study: small students of a large teacher",
        "`configs/studies/sizes.py`",
        READY,
        commands=(study("sizes.py"),),
        why="a stand-in, on the digits",
    ),
    Row(
        "A.5: metrics of -A, -C, -P",
        "`evaluation/robustness.py`; the 200 classes of -A: `evaluation/imagenet.py`",
        RUN,
        commands=(test("evaluation/test_robustness.py"), test("evaluation/test_suites.py")),
        ran=("tests/evaluation/test_robustness.py", "tests/evaluation/test_suites.py"),
    ),
    Row(
        "Beyond the papers: a calibrated teacher (Guo et al. 2017, Section 4.2)",
        "`workflow/calibration.py`; `pseudo_label.calibrate`; off by default",
        STAND_IN,
        commands=(study("beyond.py"),),
        ran=("docs/results.md#beyond-the-paper",),
        why="on the digits",
    ),
    Row(
        "Beyond the papers: a teacher of averaged weights against its last ones",
        "`training/ema.py`; `teacher.ema_decay=0` are the last ones, the training is the same",
        STAND_IN,
        commands=(study("beyond.py"),),
        ran=("docs/results.md#beyond-the-paper",),
        why="on the digits",
    ),
    Row(
        "Beyond the papers: a threshold for each class (Zou et al. 2018)",
        "`noisy_student/selection.py`; `balance.share_per_class`; off by default",
        STAND_IN,
        commands=(study("beyond.py"),),
        ran=("docs/results.md#beyond-the-paper",),
        why="on the digits",
    ),
    Row(
        "Beyond the papers: the k most probable classes of a label, the rest spread evenly",
        "`data/protos.py`, `make_prediction`; `pseudo_label.top_k`; off by default",
        STAND_IN,
        commands=(study("storage.py"),),
        ran=("docs/results.md#stored-pseudo-labels",),
        why="on the digits",
    ),
    Row(
        "Beyond the papers: a teacher's mean over noised copies of an image",
        "`workflow/pseudo_label.py`; `pseudo_label.views`; in `digits.py` from the second"
        " iteration on",
        STAND_IN,
        commands=(study("beyond.py"), study("iterations.py")),
        ran=("docs/results.md#beyond-the-paper", "docs/results.md#iterations"),
        why="on the digits",
    ),
)
"""Every part of the first version that the second one lacks, and what goes beyond both."""
