"""Noisy Student: Xie et al. 2020, the results and what follows them.

`ROWS` are the rows of the whole main text.
"""

from __future__ import annotations

from experiments.papers.noisy_student_method import DIGITS, L2, L2_LOOP, LARGE, METHOD, SETUP, SMALL
from experiments.papers.row import (
    DRY_RUN,
    READY,
    RUN,
    STAND_IN,
    Row,
    evaluate,
    loop,
    numbers,
    of_others,
    study,
    supervised,
    test,
)

L2_BASELINE = (
    numbers("train", "Tables 2 and 7; Section 3.1", unlabeled_ratio=0, **L2),
    numbers("finetune", "Section 3.1, FixRes; Table 7", epochs=1.5, image_size=800),
)
BASELINE = supervised("imagenet.py:l2")
MODELS = "data=W/data --model=W/supervised,W/finetuned"
STUDENTS = "data=W/data --model=W/student_3,W/finetuned"
SIZES = {
    "b0": (5.3e6, 224, 1, SMALL),
    "b1": (7.8e6, 240, 3, SMALL),
    "b2": (9.2e6, 260, 3, SMALL),
    "b3": (12e6, 300, 3, SMALL),
    "b4": (19e6, 380, 3, SMALL),
    "b5": (30e6, 456, 3, LARGE),
    "b6": (43e6, 528, 3, LARGE),
    "b7": (66e6, 600, 3, LARGE),
}
"""Figure 2: parameters, pixels, ratio, schedule.

The parameters are from Table 9 of the first version, the pixels from Tan & Le 2019. Ratio and
schedule are from Sections 3.2 and 3.1.
"""


def _of_size(name: str) -> Row:
    parameters, pixels, ratio, schedule = SIZES[name]
    network = {"network": name, "parameters": parameters, "image_size": pixels, **schedule}
    source = "Sections 3.1 and 3.2; first version, Table 9"
    teacher = numbers("teacher", source, unlabeled_ratio=0, randaugment_layers=2, **network)
    student = numbers("student_1", source, unlabeled_ratio=ratio, **network)
    return Row(
        "Figure 2",
        "`configs/noisy_student/imagenet.py`, `section`",
        DRY_RUN,
        items=(f"EfficientNet-{name.upper()}", f"NoisyStudent ({name.upper()})"),
        commands=(loop(name),),
        numbers=(numbers("loop", "Section 3.2", iterations=1), teacher, student),
    )


RESULTS = (
    of_others(
        "Table 1",
        "Prev. SOTA",
    ),
    Row(
        "Table 1",
        "`imagenet.py:l2`, then the suites of Tables 2 to 5",
        DRY_RUN,
        items=("NoisyStudent",),
        commands=(loop("l2"),),
        numbers=L2_LOOP,
    ),
    of_others(
        "Table 2",
        "ResNet-50; ResNet-152; DenseNet-264; Inception-v3; Xception; Inception-v4; "
        "Inception-resnet-v2; ResNeXt-101; PolyNet; SENet; NASNet-A; AmoebaNet-A; PNASNet; "
        "AmoebaNet-C; GPipe; ResNet-50 Billion-scale; ResNeXt-101 Billion-scale; ResNeXt-101 "
        "WSL; FixRes ResNeXt-101 WSL; Big Transfer (BiT-L)",
    ),
    Row(
        "Table 2",
        "`configs/supervised/imagenet.py:b7`",
        DRY_RUN,
        items=("EfficientNet-B7",),
        commands=(supervised("imagenet.py:b7"),),
        numbers=(
            numbers("train", "Table 2; Section 3.1", parameters=66e6, image_size=600, **LARGE),
        ),
    ),
    Row(
        "Table 2",
        "`configs/supervised/imagenet.py:l2`, with Noisy Student's settings; the paper says no"
        " other",
        DRY_RUN,
        items=("EfficientNet-L2",),
        commands=(BASELINE,),
        numbers=L2_BASELINE,
    ),
    Row(
        "Table 2",
        "`imagenet.py:l2`; top-1 and top-5: `evaluation/metrics.py`, `top_k_accuracy`",
        DRY_RUN,
        items=("NoisyStudent (EfficientNet-L2)",),
        commands=(loop("l2"),),
        numbers=L2_LOOP,
    ),
    *(_of_size(name) for name in SIZES),
    of_others(
        "Table 3",
        "ResNet-101; ResNeXt-101 (32x4d); ResNet-152; ResNeXt-101 (64x4d); DPN-98; ResNeXt-101+SE"
        " (32x4d); ResNeXt-101 WSL",
    ),
    Row(
        "Table 3",
        "`evaluation/imagenet.py`, `imagenet_a`",
        STAND_IN,
        items=("EfficientNet-L2",),
        commands=(BASELINE, evaluate("suite=a", "data_a=DIR", MODELS)),
        numbers=L2_BASELINE,
        ran=("tests/evaluation/test_suites.py",),
        why="the suite on small images in -A's layout",
    ),
    Row(
        "Table 3",
        "the same suite",
        STAND_IN,
        items=("NoisyStudent (L2)",),
        commands=(loop("l2"), evaluate("suite=a", "data_a=DIR", STUDENTS)),
        numbers=L2_LOOP,
        ran=("tests/evaluation/test_suites.py",),
        why="the suite on small images in -A's layout",
    ),
    of_others(
        "Table 4",
        "ResNet-50; SIN; Patch Gaussian; ResNeXt-101 WSL",
    ),
    *(
        Row(
            "Table 4",
            f"`evaluation/robustness.py`, `corruption_errors`; -C of {pixels} pixels is --data_c",
            STAND_IN,
            items=(f"{model}, {pixels}",),
            commands=(command, evaluate("suite=c", f"data_c=C_{pixels}", models)),
            numbers=rows,
            ran=("tests/evaluation/test_suites.py", "tests/evaluation/test_robustness.py"),
            why="the suite on small images in -C's layout",
        )
        for pixels in (224, 299)
        for model, command, models, rows in (
            ("EfficientNet-L2", BASELINE, MODELS, L2_BASELINE),
            ("NoisyStudent (L2)", loop("l2"), STUDENTS, L2_LOOP),
        )
    ),
    of_others(
        "Table 5",
        "ResNet-50; Low Pass Filter Pooling; ResNeXt-101 WSL",
    ),
    *(
        Row(
            "Table 5",
            "`evaluation/robustness.py`, `flips`, `flip_rates`; top-1 is the mean accuracy over "
            f"all frames (first version, A.5); -P of {pixels} pixels is --data_p",
            STAND_IN,
            items=(f"{model}, {pixels}",),
            commands=(command, evaluate("suite=p", f"data_p=P_{pixels}", models)),
            numbers=rows,
            ran=("tests/evaluation/test_suites.py", "tests/evaluation/test_robustness.py"),
            why="the suite on small videos in -P's layout",
        )
        for pixels in (224, 299)
        for model, command, models, rows in (
            ("EfficientNet-L2", BASELINE, MODELS, L2_BASELINE),
            ("NoisyStudent (L2)", loop("l2"), STUDENTS, L2_LOOP),
        )
    ),
    Row(
        "Footnote 3: no fine-tuned model on -C and -P",
        "`evaluation/evaluate.py`, `suites_of`; `evaluate.finetuned_on_c_and_p`",
        RUN,
        commands=(test("evaluation/test_suites.py"),),
        ran=("tests/evaluation/test_suites.py",),
    ),
    Row(
        "Figure 3: images with both models' answers",
        "the report of `run_evaluate.sh`: `evaluation/pictures.py`",
        STAND_IN,
        items=("a", "b", "c"),
        commands=(evaluate("suite=a,c,p", "data_a=DIR", STUDENTS),),
        ran=("tests/evaluation/test_report.py", "docs/evaluation.md#the-report"),
        why=DIGITS,
    ),
    Row(
        "Section 3.4, Figure 4: FGSM",
        "`evaluation/adversarial.py`, `fgsm`",
        STAND_IN,
        items=("EfficientNet-L2", "NoisyStudent (L2)"),
        commands=(
            BASELINE,
            loop("l2"),
            evaluate("suite=adversarial", "data=W/data", "model=W/supervised,W/finetuned"),
        ),
        numbers=(L2_BASELINE[1], L2_LOOP[6]),
        ran=(
            "tests/evaluation/test_adversarial.py",
            "docs/evaluation.md#is-the-student-more-robust-than-its-teacher-on-the-digits",
        ),
        why=DIGITS,
    ),
    Row(
        "Section 3.4: PGD of 10 iterations at ε = 16",
        "`evaluation/adversarial.py`, `pgd`",
        STAND_IN,
        commands=(
            evaluate("suite=adversarial", "data=W/data", "model=W/supervised,W/finetuned"),
            test("evaluation/test_adversarial.py"),
        ),
        ran=("tests/evaluation/test_adversarial.py",),
        why=DIGITS,
    ),
)

REST = (
    Row(
        "Section 4, training losses with and without noise",
        "`labeled_loss` and `unlabeled_loss` in the `metrics.jsonl` of the study's students",
        STAND_IN,
        commands=(study("noise.py"),),
        ran=("docs/results.md#noise",),
        why="on the digits",
    ),
    Row(
        "Section 5, joint training instead of pre-training and fine-tuning (Yalniz et al. 2019)",
        "`student.labeled=False`, `finetune_student`",
        READY,
        commands=(study("joint.py"),),
        why="a stand-in, on the digits",
    ),
    Row(
        "Section 5, labels of an ensemble over transformed images (Data Distillation), unused"
        " there",
        "`pseudo_label.views`",
        STAND_IN,
        commands=(study("beyond.py"),),
        ran=("docs/results.md#beyond-the-paper",),
        why="on the digits",
    ),
    Row(
        "Appendix A.2, the iterations",
        "a loop that goes on: `--iterations=+1`",
        STAND_IN,
        commands=(study("iterations.py"),),
        ran=("docs/results.md#iterations",),
        why="on the digits; the appendix could not be consulted",
    ),
    Row(
        "Students from scratch or from the teacher's weights, on which the text is silent",
        "from scratch; `student_init=teacher`",
        READY,
        commands=(study("start.py"),),
        why="a stand-in, on the digits",
    ),
    Row(
        "Appendix A.3, Study 5: balancing (footnote 2)",
        "`balance.balance`, `balance.threshold`",
        READY,
        commands=(study("filtering.py"),),
        why="a stand-in, on the digits; the appendix could not be consulted",
    ),
)


def _ablations() -> tuple[Row, ...]:
    """Returns the rows of Table 6, a column each, and of the study on the digits."""
    ratio = "student.unlabeled_ratio=1"
    plain = "student.unlabeled_augmentation=False"
    still = "student.unlabeled_model_noise=False"
    flags = {
        "NoisyStudent (B5)": (ratio,),
        "student w/o Aug": (ratio, plain),
        "student w/o Aug, SD, Dropout": (ratio, plain, still),
        "teacher w. Aug, SD, Dropout": (
            ratio,
            "pseudo_label.views=1",
            "pseudo_label.model_noise=True",
            "pseudo_label.optimize=False",
        ),
    }
    few = (
        "teacher.preprocessing.randaugment_layers=0",
        "student.preprocessing.randaugment_layers=0",
        "balance.sample_images=1300000",
    )
    expected = {
        "130M": ((), {"randaugment_layers": 2}, {"selected": 130_000_000}),
        "1.3M": (few, {"randaugment_layers": 0}, {"sample_images": 1_300_000}),
    }
    rows = []
    for column, (more, noise, selected) in expected.items():
        teacher = numbers(
            "teacher", "Table 6; Section 3.1", network="b5", unlabeled_ratio=0, **noise, **LARGE
        )
        images = numbers("loop", "Table 6", iterations=1, **selected)
        for name, own in {"EfficientNet-B5": (ratio,), **flags}.items():
            student = {
                "network": "b5",
                "unlabeled_ratio": 1,
                "unlabeled_augmentation": plain not in own,
                "unlabeled_model_noise": still not in own,
                **noise,
            }
            rows.append(
                Row(
                    "Table 6",
                    "`unlabeled_augmentation`, `unlabeled_model_noise`; noised teacher:"
                    " `pseudo_label.views=1`, `model_noise`",
                    DRY_RUN,
                    items=(f"{name}, {column}",),
                    commands=(loop("b5", *own, *more),),
                    numbers=(
                        teacher,
                        numbers("student_1", "Table 6; Section 3.1", **student),
                        images,
                    ),
                )
            )
    return tuple(rows)


ROWS = (
    *METHOD,
    *SETUP,
    *RESULTS,
    *_ablations(),
    Row(
        "Table 6, the ablation as a study",
        "`configs/studies/noise.py`",
        STAND_IN,
        commands=(study("noise.py"), study("noise.py:small")),
        ran=("docs/results.md#noise", "docs/results.md#with-an-eighth-of-the-unlabeled-images"),
        why="on the digits, with their recipe's ratio of 4; the paper's ratio is 1",
    ),
    *REST,
)
"""Every part of the paper."""
