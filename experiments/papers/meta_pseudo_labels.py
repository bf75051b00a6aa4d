"""Meta Pseudo Labels: Pham et al. 2021."""

from __future__ import annotations

from experiments.papers.noisy_student_method import LARGE, NOISE
from experiments.papers.row import (
    DRY_RUN,
    IMPOSSIBLE,
    OF_OTHERS,
    READY,
    RECIPES,
    RUN,
    STAND_IN,
    Differs,
    Row,
    evaluate,
    loop,
    numbers,
    of_others,
    pair,
    study,
    supervised,
    test,
    uda,
)

APPENDIX = "the appendix could not be consulted"


CIFAR, SVHN = "--labeled=CIFAR10", "--labeled=SVHN --unlabeled=SVHN"
IMAGENET, JFT = "--labeled=IMAGENET", "--labeled=IMAGENET --unlabeled=POOL"
WRN = {"network": "wrn_28_2", "parameters": 1.45e6, "image_size": 32}
RESNET = {"network": "resnet50", "parameters": 25.5e6, "image_size": 224}
TUNING = {"optimizer_name": "sgd", "rate": 1e-5, "batch_size": 512}
SMALL_SCALE = {
    "CIFAR-10-4K": (
        "cifar10_4k.py",
        CIFAR,
        WRN,
        numbers("data", "Section 3.2", labeled=4000, unlabeled=41_000, classes=10),
        numbers("finetune", "Section 3.2", steps=1000, **TUNING),
    ),
    "SVHN-1K": (
        "svhn_1k.py",
        SVHN,
        WRN,
        numbers("data", "Section 3.2, about 603,000", labeled=1000, unlabeled=603_388),
        numbers("finetune", "Section 3.2", steps=1000, **TUNING),
    ),
    "ImageNet-10%": (
        "imagenet_10pct.py",
        IMAGENET,
        RESNET,
        numbers("data", "Section 3.2", labeled=128_000, unlabeled=1_153_167, classes=1000),
        numbers("finetune", "Section 3.2", steps=2000, **TUNING),
    ),
}
"""Data set of Table 2 -> recipe, images, network, data, fine-tuning."""

JFT_DATA = numbers("data", "Section 3.3", labeled=1_256_167, unlabeled=12_800_000)
LARGE_DATA = numbers("data", "Section 4", labeled=1_281_167, unlabeled=130_000_000)
EPOCHS = Differs(160, 1280, "500,000 steps of 32,768 images; 160 epochs are those of 4,096")
TUNED_ON_JFT = numbers("finetune", "Section 3.3", steps=10_000, rate=1e-4, optimizer_name="sgd")
ON_JFT = (
    JFT_DATA,
    *(
        numbers(
            name,
            "Section 3.3",
            batch_size=4096,
            unlabeled_batch_size=32_768,
            steps=500_000,
            unlabeled_epochs=EPOCHS,
            **RESNET,
        )
        for name in ("teacher", "student")
    ),
    TUNED_ON_JFT,
)
OF_NOISY_STUDENT = {
    **{name: NOISE[name] for name in ("randaugment_layers", "randaugment_magnitude", "dropout")},
    "rate": LARGE["rate"],
    "optimizer_name": "rmsprop",
}


def _large(name: str, parameters: object) -> tuple[Row, ...]:
    recipe = f"imagenet_jft.py:{name}"
    networks = tuple(
        numbers(
            network,
            "Section 4; its hyper-parameters: Noisy Student's, Section 3.1",
            network=name,
            parameters=parameters,
            image_size=512,
            batch_size=2048,
            unlabeled_batch_size=16_384,
            steps=1_000_000,
            **OF_NOISY_STUDENT,
        )
        for network in ("teacher", "student")
    )
    title = {"l2": "L2", "b6_wide": "B6-Wide"}[name]
    return (
        Row(
            "Table 4",
            f"`configs/meta_pseudo_labels/imagenet_jft.py:{name}`",
            DRY_RUN,
            items=(f"Meta Pseudo Labels (EfficientNet-{title})",),
            commands=(
                *pair(recipe, JFT),
                evaluate("suite=real", "data=W/data", "data_real=real.json", "model=W/finetuned"),
            ),
            numbers=(LARGE_DATA, *networks, numbers("finetune", "Section 4", steps=20_000)),
        ),
    )


B6_WIDE = Differs(
    390e6,
    316_649_180,
    "width 5.0 and depth 2.6; docs/differences.md tells what would give 390M",
)

METHOD = (
    Row(
        "Eq. 1 to 3, the objective; Section 2, soft and hard labels",
        "`meta_pseudo_labels/feedback.py`, its docstring",
        RUN,
        commands=(test("meta_pseudo_labels/test_feedback.py"),),
        ran=("tests/meta_pseudo_labels/test_feedback.py", "docs/derivation.md#the-proof"),
    ),
    Row(
        "Figure 1: the method as a picture",
        "[the step](meta_pseudo_labels.md#the-step)",
        IMPOSSIBLE,
        why="a drawing without numbers",
    ),
    Row(
        "Section 2: the student's step and the teacher's update",
        "`meta_pseudo_labels/model.py`, `FeedbackTrainer.train_step`",
        RUN,
        commands=(test("meta_pseudo_labels/test_model.py"),),
        ran=("tests/meta_pseudo_labels/test_model.py", "docs/meta_pseudo_labels.md#the-step"),
    ),
    Row(
        "Appendix A, eq. 12: the feedback",
        "`feedback.dot_product`; without bias: `finite_difference`; of the first order as eq. 12 "
        "and with less noise: `soft`; its η_S is `training.optimizers.linear_factor`",
        RUN,
        commands=(
            test("meta_pseudo_labels/test_feedback.py"),
            (
                "./run_experiment.sh feedback_study --config=configs/experiments/feedback_study.py"
                " --workdir=W"
            ),
        ),
        ran=("docs/derivation.md#signal-and-noise",),
    ),
    Row(
        "Appendix B, Algorithm 1: UDA objective, supervised objective",
        "`FeedbackTrainer.train_step` in its order; `training/uda.py`",
        RUN,
        commands=(test("training/test_uda.py"), test("meta_pseudo_labels/test_model.py")),
        ran=("tests/training/test_uda.py",),
    ),
    Row(
        "Appendix C.3: cosine, baseline",
        "`feedback.cosine`, `feedback.center`",
        RUN,
        commands=(test("meta_pseudo_labels/test_feedback.py"),),
        ran=("tests/meta_pseudo_labels/test_feedback.py",),
        why=APPENDIX,
    ),
    Row(
        "Section 3.1, Figure 2: TwoMoon",
        "`experiments/two_moons.py`",
        RUN,
        items=("Supervised Learning", "Pseudo Labels", "Meta Pseudo Labels"),
        commands=(
            (
                "./run_experiment.sh two_moons --config=configs/experiments/two_moons.py:paper"
                " --workdir=W"
            ),
        ),
        ran=("docs/meta_pseudo_labels_results.md#two-moons",),
    ),
)

RESULTS = (
    of_others(
        "Table 1",
        "Previous SOTA",
    ),
    Row(
        "Table 1",
        "`imagenet_jft.py:l2`, then the suites clean and real",
        DRY_RUN,
        items=("Ours",),
        commands=_large("l2", 480e6)[0].commands,
        numbers=_large("l2", 480e6)[0].numbers,
    ),
    of_others(
        "Table 2",
        "Temporal Ensemble; Mean Teacher; VAT + EntMin; LGA + VAT; ICT; MixMatch; ReMixMatch;"
        " EnAET; SimCLR; MOCOv2; PCL; PIRL; BYOL",
    ),
    Row(
        "Table 2",
        "`fixmatch/method.py`",
        STAND_IN,
        items=("FixMatch",),
        commands=(
            "./run_train.sh --config=configs/fixmatch/digits.py --workdir=W",
            test("fixmatch/test_method.py"),
        ),
        ran=("docs/results.md#fixmatch",),
        why=f"on the digits; {OF_OTHERS}",
    ),
    *(
        Row(
            "Table 2",
            f"`configs/uda/{recipe}`: the teacher of the pair's recipe, trained alone",
            DRY_RUN,
            items=(f"UDA, {name}",),
            commands=uda(recipe, images),
            numbers=(data, numbers("train", "Section 3.2", **network)),
        )
        for name, (recipe, images, network, data, _) in SMALL_SCALE.items()
    ),
    *(
        Row(
            "Table 2",
            f"`configs/meta_pseudo_labels/{recipe}`",
            DRY_RUN,
            items=(f"Meta Pseudo Labels, {name}",),
            commands=pair(recipe, images),
            numbers=(
                data,
                numbers("teacher", "Section 3.2", **network),
                numbers("student", "Section 3.2", **network),
                tuning,
            ),
            why=f"what the main text has; the rest is the release's: {APPENDIX}",
        )
        for name, (recipe, images, network, data, tuning) in SMALL_SCALE.items()
    ),
    *(
        Row(
            "Table 2",
            f"`configs/supervised/{recipe}`",
            DRY_RUN,
            items=(f"Supervised Learning with full dataset, {name}",),
            commands=(supervised(recipe, images),),
            numbers=(
                numbers("data", "Section 3.2", labeled=labeled),
                numbers("train", "Section 3.2", **network),
                numbers("train", "the release; the paper has it in C.2", randaugment_layers=2),
            ),
        )
        for name, recipe, images, labeled, network in (
            ("CIFAR-10", "cifar10.py", "CIFAR10", 50_000, WRN),
            ("SVHN", "svhn.py", "SVHN", 73_257, WRN),
            ("ImageNet", "imagenet.py:resnet50", "IMAGENET", 1_281_167, RESNET),
        )
    ),
    Row(
        "Table 2, as studies",
        "`configs/studies/meta_pseudo_labels.py`",
        STAND_IN,
        commands=tuple(
            study(f"meta_pseudo_labels.py{name}") for name in ("", ":small", ":methods")
        ),
        ran=("docs/meta_pseudo_labels_results.md#digits-50-labels",),
        why="on 50 labeled digits",
    ),
    Row(
        "Table 2, the ablations as a study",
        "`configs/studies/meta_pseudo_labels.py:ablations`",
        READY,
        commands=(study("meta_pseudo_labels.py:ablations"),),
        why="a stand-in, on 50 labeled digits",
    ),
    Row(
        "Section 3.3: 12,800 images a class of JFT, the most probable",
        "`imagenet_jft.py:resnet50`; the training reads the images by `--selection`",
        DRY_RUN,
        commands=(
            (
                f"./run_pseudo_label.sh {RECIPES}imagenet_jft.py:resnet50 --data=W/data"
                " --teacher=RESNET50 --workdir=W/predictions"
            ),
            (
                f"./run_balance.sh {RECIPES}imagenet_jft.py:resnet50 --data=W/data"
                " --predictions=W/predictions --workdir=W/selected"
            ),
        ),
        numbers=(
            numbers(
                "loop", "Section 3.3", images_per_class=12_800, selected=12_800_000, threshold=0
            ),
        ),
    ),
    of_others(
        "Table 3",
        "AutoAugment; DropBlock; FixRes; FixRes+CutMix; Billion-scale SSL",
    ),
    Row(
        "Table 3",
        "`configs/supervised/imagenet.py:resnet50`",
        DRY_RUN,
        items=("Supervised",),
        commands=(supervised("imagenet.py:resnet50"),),
        numbers=(numbers("train", "Section 3.3", **RESNET),),
    ),
    Row(
        "Table 3",
        "`configs/noisy_student/imagenet.py:resnet50`; its settings are not published",
        DRY_RUN,
        items=("NoisyStudent",),
        commands=(loop("resnet50"),),
        numbers=(
            numbers("teacher", "Table 3", **RESNET),
            numbers("student_1", "Table 3", **RESNET),
        ),
    ),
    Row(
        "Table 3",
        "`configs/uda/imagenet_jft.py`: the teacher of the pair's recipe, trained alone",
        DRY_RUN,
        items=("UDA",),
        commands=uda("imagenet_jft.py", JFT),
        numbers=(JFT_DATA, numbers("train", "Section 3.3", batch_size=4096, **RESNET)),
    ),
    Row(
        "Table 3",
        "`configs/meta_pseudo_labels/imagenet_jft.py:resnet50`",
        DRY_RUN,
        items=("Meta Pseudo Labels",),
        commands=pair("imagenet_jft.py:resnet50", JFT),
        numbers=ON_JFT,
    ),
    Row(
        "Section 3.3, 500,000 steps are about 160 epochs of the unlabeled set",
        "1,280 epochs of 12.8 million images at 32,768; 160 at the labeled batch of 4,096",
        DRY_RUN,
        commands=pair("imagenet_jft.py:resnet50", JFT)[1:2],
        numbers=ON_JFT[1:3],
    ),
    of_others(
        "Table 4",
        "ResNet-50; ResNet-152; DenseNet-264; Inception-v3; Xception; Inception-v4; "
        "Inception-resnet-v2; ResNeXt-101; PolyNet; SENet; NASNet-A; AmoebaNet-A; PNASNet; "
        "AmoebaNet-C + AutoAugment; GPipe; EfficientNet-B7; EfficientNet-B7 + FixRes; "
        "EfficientNet-L2; ResNet-50 Billion-scale SSL; ResNeXt-101 Billion-scale SSL; "
        "ResNeXt-101 WSL; FixRes ResNeXt-101 WSL; Big Transfer (BiT-L); Noisy Student "
        "(EfficientNet-L2); Noisy Student + FixRes; Vision Transformer (ViT-H); "
        "EfficientNet-L2-NoisyStudent + SAM",
        "models of other papers; the paper cites their numbers; Noisy Student's are above",
    ),
    *_large("b6_wide", B6_WIDE),
    *_large("l2", 480e6),
)

REST = (
    Row(
        "Section 4: each replica on 16 cores, weights and images split",
        "[scaling.md](scaling.md#one-replica-on-several-cores) has what TensorFlow offers",
        IMPOSSIBLE,
        why="there is no TPU to try it on",
    ),
    Row(
        "Tables 1 and 4, ImageNet-ReaL",
        "`run_evaluate.sh` with the suite `real`",
        STAND_IN,
        commands=(
            evaluate("suite=real", "data=W/data", "data_real=real.json", "model=W/finetuned"),
        ),
        ran=("tests/evaluation/test_suites.py",),
        why="on small images in the validation set's layout",
    ),
    Row(
        "Appendices C.2, C.4 (values) and D (further experiments)",
        "what a recipe has in their place, its head says",
        IMPOSSIBLE,
        why=APPENDIX,
    ),
    Row(
        "Sections 2 and 3.2: fine-tuning after Meta Pseudo Labels",
        "`run_finetune.sh` on its student",
        STAND_IN,
        commands=pair("digits.py", "")[2:],
        ran=("docs/meta_pseudo_labels_results.md#digits-50-labels",),
        why="on 50 labeled digits",
    ),
    Row(
        "Appendix E: Reduced Meta Pseudo Labels",
        "`meta_pseudo_labels/reduced.py`",
        STAND_IN,
        commands=(test("meta_pseudo_labels/test_reduced.py"),),
        ran=("docs/meta_pseudo_labels.md#reduced-meta-pseudo-labels",),
        why=f"on the digits; {APPENDIX}",
    ),
)

ROWS = (*METHOD, *RESULTS, *REST)
"""Every part of the paper."""
