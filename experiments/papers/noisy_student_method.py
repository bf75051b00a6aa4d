"""Noisy Student: Xie et al. 2020, Sections 1 to 3.1, and the numbers that several rows share."""

from __future__ import annotations

from experiments.papers.row import (
    DRY_RUN,
    IMPOSSIBLE,
    READY,
    RUN,
    STAND_IN,
    Row,
    loop,
    numbers,
    study,
    test,
)

DIGITS = "on the digits, the quick start"
LARGE = {"batch_size": 2048, "epochs": 350, "rate": 0.128, "decay_rate": 0.97, "decay_epochs": 2.4}
SMALL = {**LARGE, "epochs": 700, "decay_epochs": 4.8}
NOISE = {"dropout": 0.5, "randaugment_layers": 2, "randaugment_magnitude": 27}
L2 = {"network": "l2", "parameters": 480e6, "image_size": 475, **LARGE, **NOISE}
L2_LOOP = (
    numbers(
        "loop",
        "Section 3.1",
        iterations=3,
        threshold=0.3,
        images_per_class=130_000,
        selected=130_000_000,
    ),
    numbers("data", "Section 3.1", unlabeled=300_000_000),
    numbers("teacher", "Section 3.1", network="b7", unlabeled_ratio=0, **LARGE, **NOISE),
    numbers("student_1", "Section 3.1; Table 7", unlabeled_ratio=14, **L2),
    numbers("student_2", "Section 3.1; its ratio is not stated", **L2),
    numbers("student_3", "Section 3.1", unlabeled_ratio=28, **L2),
    numbers(
        "finetune",
        "Section 3.1, FixRes; Table 7",
        epochs=1.5,
        image_size=800,
        labeled_augmentation=False,
    ),
)

METHOD = (
    Row(
        "Algorithm 1, step 1: the teacher, cross entropy on labeled images",
        "`noisy_student/model.py`, `NoisyStudent.train_step` on `(x, y)`; `run_teacher.sh`",
        RUN,
        commands=(test("noisy_student/test_model.py"),),
        ran=("tests/noisy_student/test_model.py",),
    ),
    Row(
        "Algorithm 1, step 2: pseudo-labels of an unnoised teacher",
        "`workflow/label_shards.py`, `LabelShards`; within the step: `online=True`",
        RUN,
        commands=(test("workflow/test_pseudo_label.py"),),
        ran=("tests/workflow/test_pseudo_label.py",),
    ),
    Row(
        "Algorithm 1, step 3: the student, both losses, noise",
        "`NoisyStudent.train_step`, `combine_losses`: mean + mean as in the algorithm is "
        "`algorithm_1`; the average over the joint batch of Section 3.1 is `joint`, the default",
        RUN,
        commands=(test("noisy_student/test_model.py"),),
        ran=("tests/noisy_student/test_model.py",),
    ),
    Row(
        "Algorithm 1, step 4: the student becomes the teacher",
        "`workflow/stages.py`, `trainings`",
        STAND_IN,
        commands=("./run_quickstart.sh --seeds=5",),
        ran=("docs/quickstart.md#what-it-does",),
        why=DIGITS,
    ),
    Row(
        "Figure 1: the method as a picture",
        "[the way of the data](architecture.md#the-way-of-the-data)",
        IMPOSSIBLE,
        why="a drawing without numbers",
    ),
    Row(
        "Section 2, noise: RandAugment",
        "`data/randaugment.py`, `rand_augment`; `data/image_ops.py`",
        RUN,
        commands=(test("data/test_randaugment.py"),),
        ran=("tests/data/test_randaugment.py",),
    ),
    Row(
        "Section 2, noise: dropout, stochastic depth",
        "`nets/noise.py`, `Dropout`, `StochasticDepth`",
        RUN,
        commands=(test("nets/test_noise.py"),),
        ran=("tests/nets/test_noise.py",),
    ),
    Row(
        "Section 2, filtering by confidence, balancing by duplication and by the most confident",
        "`noisy_student/selection.py`, `select`; `workflow/balance.py`",
        RUN,
        commands=(test("noisy_student/test_selection.py"), test("workflow/test_balance.py")),
        ran=("tests/noisy_student/test_selection.py",),
    ),
    Row(
        "Section 2, soft and hard pseudo-labels",
        "`noisy_student/model.py`, `pseudo_targets`",
        READY,
        commands=(study("labels.py"),),
        why="a stand-in, on the digits; docs/results.md tells its cost",
    ),
    Row(
        "Section 2, student equal or larger",
        "a recipe's `student`, `student_1`, ... sections",
        READY,
        commands=(study("sizes.py"),),
        why="a stand-in, on the digits",
    ),
)

SETUP = (
    Row(
        "Section 3.1, labeled data: ImageNet",
        "`data/imagenet.py`",
        STAND_IN,
        commands=(test("data/test_archives.py"),),
        ran=("tests/data/test_archives.py", "docs/data.md#imagenet-2012"),
        why="on archives of the real layout with other images",
    ),
    Row(
        "Section 3.1, unlabeled data: JFT",
        "any archive, folder or TFRecords in its place: [data.md](data.md)",
        IMPOSSIBLE,
        why="JFT is not public",
    ),
    Row(
        "Section 3.1, the validation images filtered out of the unlabeled ones",
        "`data/duplicates.py`, `KnownImages`; `data/repeats.py`, `HeldOutFilter`",
        RUN,
        commands=(test("data/test_duplicates.py"), test("data/test_repeats.py")),
        ran=("tests/data/test_duplicates.py", "docs/data.md#images-that-come-again"),
    ),
    Row(
        "Section 3.1, threshold 0.3, 130,000 a class, 130M images, 81M of them different",
        "`configs/noisy_student/imagenet.py`; a run's counts: `summary.json` of `run_balance.sh`",
        DRY_RUN,
        commands=(loop("l2"),),
        numbers=L2_LOOP[:2],
        why="the 81M are a count of JFT's",
    ),
    Row(
        "Section 3.1, an EfficientNet-B0 selects the unlabeled images once; all teachers label"
        " that set",
        "`selection=once` and the section `selector` of `configs/noisy_student/imagenet.py`; "
        "`workflow/relabel.py`; `--selection` of `run_pseudo_label.sh` and `run_balance.sh`",
        DRY_RUN,
        commands=(loop("l2"),),
        numbers=L2_LOOP[:1],
    ),
    Row(
        "Section 3.1, EfficientNets, L2",
        "`efficientnet/architectures.py`, `ARCHITECTURES`",
        RUN,
        commands=(test("efficientnet/test_architectures.py"),),
        ran=("tests/efficientnet/test_architectures.py", "docs/models.md#checks"),
    ),
    Row(
        "Section 3.1, batch 2,048; 350 or 700 epochs; rate 0.128, 0.97 every 2.4 or 4.8 epochs",
        "`configs/noisy_student/imagenet.py`, `section`; `training/schedules.py`",
        DRY_RUN,
        commands=(loop("b4"),),
        numbers=(numbers("student_1", "Section 3.1", **SMALL),),
        why="larger than B4: 350 epochs, in the rows of Figure 2",
    ),
    *(
        Row(
            f"Section 3.1, batch {batch:,}, which gives the same accuracy",
            "the rate and the steps follow the batch: `training/schedules.py`, `build`",
            DRY_RUN,
            commands=(loop("b7", f"teacher.batch_size={batch}", f"student.batch_size={batch}"),),
            numbers=(
                numbers(
                    "student_1",
                    "Section 3.1",
                    batch_size=batch,
                    epochs=350,
                    rate=0.128 * batch / 2048,
                    decay_epochs=2.4,
                ),
            ),
        )
        for batch in (512, 1024)
    ),
    Row(
        "Section 3.1, one concatenated batch, unlabeled batch 14 or 28 times the labeled",
        "`NoisyStudent.train_step`; `unlabeled_ratio`",
        DRY_RUN,
        commands=(loop("l2"), study("ratio.py")),
        numbers=(L2_LOOP[3], L2_LOOP[5]),
        why="the study is a stand-in on the digits, not run yet",
    ),
    Row(
        "Section 3.1, FixRes: 1.5 epochs at a larger resolution, unaugmented, shallow layers fixed",
        "`finetune` section; `training/fixres.py`, `freeze_blocks`. How many layers are fixed is "
        "not published: the stem and the first two of seven stages, 17 of L2's 88 blocks",
        DRY_RUN,
        commands=(loop("l2"), test("training/test_fixres.py")),
        numbers=L2_LOOP[6:],
    ),
    Row(
        "Section 3.1, 6 days on a TPU v3 Pod of 2,048 cores",
        "`--strategy=tpu`; `--dry_run` for steps and memory",
        IMPOSSIBLE,
        why="there is no such machine",
    ),
    Row(
        "Section 3.1, survival probability 0.8, dropout 0.5, RandAugment 2 x 27",
        "`efficientnet/architectures.py`, `configs/noisy_student/imagenet.py`",
        DRY_RUN,
        commands=(loop("l2"), test("efficientnet/test_architectures.py")),
        numbers=(
            numbers("student_1", "Section 3.1", **NOISE),
            numbers("teacher", "Section 3.1", **NOISE),
        ),
    ),
    Row(
        "Section 3.1, three iterations: B7, L2, L2, L2",
        "`imagenet.py:l2`; iterating until a validation split says stop: `patience`",
        DRY_RUN,
        commands=(loop("l2"),),
        numbers=L2_LOOP,
    ),
)
