"""Meta Pseudo Labels against its parts and against other methods, on 50 labeled digits.

W=runs/studies/meta_pseudo_labels
./run_experiment.sh study --config=configs/studies/meta_pseudo_labels.py --workdir=$W
# the main ones
./run_experiment.sh study --config=configs/studies/meta_pseudo_labels.py:small \
    --workdir=${W}_small
./run_experiment.sh study --config=configs/studies/meta_pseudo_labels.py:methods \
    --workdir=${W}_methods
./run_experiment.sh study --config=configs/studies/meta_pseudo_labels.py:ablations \
    --workdir=${W}_ablations
# of :small
./run_experiment.sh study --config=configs/studies/meta_pseudo_labels.py:feedback \
    --workdir=${W}_feedback

The comparison is that of Pham et al. 2021, Table 2. These studies report on the test images of
seeds 0 to 4, the second and the last of seeds 0 to 9. Nothing is chosen by them. `:methods` is the
first without other estimators, soft labels and a longer UDA; the ablations share some conditions
with it. `:feedback` has the conditions of `:small` that say what the feedback adds: Meta Pseudo
Labels, the same without feedback, and UDA. It compares Meta Pseudo Labels with each of the others.

How large the feedback should be is asked on validation images of other seeds:

./run_experiment.sh study --config=configs/studies/meta_pseudo_labels.py:weight \
    --workdir=runs/studies/meta_pseudo_labels_weight
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import digits
from configs.studies import base

RECIPE, TRAIN = "configs/meta_pseudo_labels/digits.py", "--config.train"
UDA = "--config=configs/uda/digits.py"
REDUCED = f"--config={RECIPE}:reduced"
DATA, CHECKED = ("data", "run_prepare_data.sh", ()), "--data={run}/data"


def evaluation(*models: str) -> tuple[str, str, tuple[str, ...]]:
    """Returns the last stage; `models`: directories in the run's own."""
    return (
        "evaluation",
        "run_evaluate.sh",
        (CHECKED, f"--model={','.join(f'{{run}}/{model}' for model in models)}"),
    )


METHODS = {
    "supervised": (DATA, ("trained", "run_teacher.sh", (CHECKED,)), evaluation("trained")),
    "mpl": (DATA, ("trained", "run_meta_pseudo_labels.sh", (CHECKED,)), evaluation("trained")),
    "uda": (DATA, ("trained", "run_train.sh", (CHECKED,)), evaluation("trained")),
    "mpl_finetuned": (
        DATA,
        ("trained", "run_meta_pseudo_labels.sh", (CHECKED,)),
        ("finetuned", "run_finetune.sh", (CHECKED, "--init={run}/trained")),
        evaluation("trained", "finetuned"),
    ),
    "reduced": (
        DATA,
        ("predictions", "run_pseudo_label.sh", (CHECKED, "--teacher={uda}/trained")),
        ("pseudo_labeled", "run_balance.sh", (CHECKED, "--predictions={run}/predictions")),
        (
            "trained",
            "run_meta_pseudo_labels.sh",
            (CHECKED, "--pseudo_labeled={run}/pseudo_labeled"),
        ),
        evaluation("trained"),
    ),
    "noisy_student": (("", "run_noisy_student.sh", ()),),
}

ESTIMATORS = ("finite_difference", "dot_product", "cosine", "per_example")


def by_sgd(*sections: str) -> tuple[str, ...]:
    """Returns flags that train these sections as the recipe trains Meta Pseudo Labels' teacher.

    Without them the sections are Noisy Student's, trained by RMSProp.
    """
    train = digits.get_config().train
    optimizer, schedule = train.teacher.optimizer, train.teacher.schedule
    values = {
        **{
            f"optimizer.{key}": optimizer[key]
            for key in ("name", "momentum", "nesterov", "clip_norm")
        },
        "schedule.base": schedule.base,
        "schedule.warmup_epochs": float(
            schedule.warmup_steps
        ),  # an epoch is one batch of all 50 labeled images
        **{key: train[key] for key in ("label_smoothing", "weight_decay")},
    }
    return tuple(
        f"--config.{section}.{key}={value}" for section in sections for key, value in values.items()
    )


WEIGHTS = {
    f"h_times_{factor}": ((f"{TRAIN}.feedback_weight={factor}.0",), "mpl")
    for factor in (10, 30, 100)
}
MAIN = {
    "supervised_randaugment": ((), "supervised"),
    "supervised_sgd": (by_sgd("teacher"), "supervised"),
    "uda": ((UDA,), "uda"),
    "mpl": ((), "mpl_finetuned"),
    "h_0": ((f"{TRAIN}.feedback=none",), "mpl"),
    "noisy_student": (("--config.iterations=3",), "noisy_student"),
}
MORE = {
    "h_times_10": WEIGHTS["h_times_10"],
    "supervised": (("--config.preprocessing.randaugment_layers=0",), "supervised"),
    "mpl_without_uda": ((f"{TRAIN}.uda.weight=0.0",), "mpl"),
    "fixed_teacher": ((REDUCED, f"{TRAIN}.feedback=none"), "reduced"),
    "reduced_mpl": ((REDUCED,), "reduced"),
    "noisy_student_sgd": (
        ("--config.iterations=3", *by_sgd("teacher", "student")),
        "noisy_student",
    ),
}
REST = {
    "uda_twice_as_long": ((UDA, f"{TRAIN}.steps=2000"), "uda"),
    **{name: ((f"{TRAIN}.feedback={name}",), "mpl") for name in ESTIMATORS},
    "soft_labels": ((f"{TRAIN}.pseudo_labels=soft",), "mpl"),
}
EVERYTHING = {**MAIN, **MORE, **REST}
ABLATIONS = {
    **{
        name: EVERYTHING[name]
        for name in ("mpl", "h_0", "uda", "mpl_without_uda", *ESTIMATORS, "soft_labels")
    },
    "other_sign": ((f"{TRAIN}.feedback_weight=-1.0",), "mpl"),
    "argmax": ((f"{TRAIN}.pseudo_labels=argmax", f"{TRAIN}.feedback=per_example"), "mpl"),
    "per_example_no_baseline": (
        (f"{TRAIN}.feedback=per_example", f"{TRAIN}.baseline_decay=1.0"),
        "mpl",
    ),
    "uda_half": ((f"{TRAIN}.uda.weight=1.0",), "mpl"),
    "uda_released": ((f"{TRAIN}.uda.weight=8.0",), "mpl"),
    "uda_no_label_smoothing": ((UDA, f"{TRAIN}.label_smoothing=0.0"), "uda"),
    "no_uda_no_h": ((f"{TRAIN}.uda.weight=0.0", f"{TRAIN}.feedback=none"), "mpl"),
    "no_label_smoothing": ((f"{TRAIN}.label_smoothing=0.0",), "mpl"),
    "ratio_1": ((f"{TRAIN}.unlabeled_ratio=1",), "mpl"),
    "ratio_4": ((f"{TRAIN}.unlabeled_ratio=4",), "mpl"),
}


NAMES = {
    "all": EVERYTHING,
    "methods": {**MAIN, **MORE},
    "small": MAIN,
    "feedback": {name: MAIN[name] for name in ("mpl", "h_0", "uda")},
    "ablations": ABLATIONS,
    "weight": {"mpl": ((), "mpl"), **WEIGHTS},
}


def get_config(name: str = "all") -> ConfigDict:
    """Returns the study; `name`: all, methods, small, feedback, ablations or weight."""
    if name not in NAMES:
        raise ValueError(
            f"meta_pseudo_labels.py has no variant {name}; the variants are {', '.join(NAMES)}"
        )
    runs = NAMES[name]
    readings = [
        (run, run, "students.-1.top1" if method == "noisy_student" else "models.trained.top1")
        for run, (_, method) in runs.items()
    ]
    if runs.get("mpl") == MAIN["mpl"]:
        readings.append(("mpl_finetuned", "mpl", "models.finetuned.top1"))
    config = base.study(
        f"Meta Pseudo Labels, {name}",
        "A training has 1,000 steps of 50 labeled images and, where it learns from unlabeled"
        " ones, 100 of these, unless its name says otherwise. Supervised learning and Noisy Student"
        " train by RMSProp, as Noisy Student's recipe does; UDA, Meta Pseudo Labels, and what is"
        " called sgd, by SGD with Nesterov's momentum.",
        recipe=RECIPE,
        shared=("data",),
        runs=tuple((run, *row) for run, row in runs.items()),
        readings=tuple(readings),
        claims=tuple(
            claim
            for claim in CLAIMS
            if {claim[0], claim[1]} <= {reading[0] for reading in readings}
        ),
    )
    if name == "weight":
        config.update({"first_seed": 200, "seeds": 4})
    else:
        config.update(
            {"flags": (), "first_seed": 0, "seeds": 10 if name in ("small", "feedback") else 5}
        )
    config.methods.update(
        {method: METHODS[method] for method in sorted({method for _, method in runs.values()})}
    )
    return config


CLAIMS = (
    ("supervised_randaugment", "supervised", "RandAugment helps supervised learning"),
    (
        "supervised_sgd",
        "supervised_randaugment",
        "SGD is better than RMSProp for supervised learning",
    ),
    ("uda", "supervised_randaugment", "UDA is better than supervised learning"),
    ("uda", "supervised_sgd", "UDA is better than supervised learning trained with SGD"),
    ("mpl", "supervised_randaugment", "Meta Pseudo Labels is better than supervised learning"),
    (
        "mpl",
        "supervised_sgd",
        "Meta Pseudo Labels is better than supervised learning trained with SGD",
    ),
    ("mpl", "uda", "Meta Pseudo Labels is better than UDA"),
    (
        "mpl",
        "uda_twice_as_long",
        "Meta Pseudo Labels is better than UDA of twice the steps, which takes about as long",
    ),
    ("mpl", "noisy_student", "Meta Pseudo Labels is better than Noisy Student"),
    (
        "mpl",
        "noisy_student_sgd",
        "Meta Pseudo Labels is better than Noisy Student trained with SGD",
    ),
    ("uda", "uda_no_label_smoothing", "label smoothing helps UDA"),
    *(
        ("mpl", name, f"feedback for each image and class is better than {name}")
        for name in ESTIMATORS
    ),
    ("mpl", "soft_labels", "drawn labels are better than soft ones"),
    ("mpl", "fixed_teacher", "a teacher that learns is better than stored labels"),
    ("mpl", "h_0", "the feedback helps"),
    ("h_times_10", "uda", "Meta Pseudo Labels with ten times the feedback is better than UDA"),
    (
        "h_times_10",
        "noisy_student",
        "Meta Pseudo Labels with ten times the feedback is better than Noisy Student",
    ),
    ("h_times_10", "h_0", "ten times the feedback helps"),
    ("mpl", "other_sign", "with the other sign it hurts"),
    *(
        (f"h_times_{factor}", "mpl", f"{factor} times the feedback helps more")
        for factor in (10, 30, 100)
    ),
    ("mpl_finetuned", "mpl", "fine-tuning helps"),
    ("mpl", "mpl_without_uda", "UDA helps"),
    ("uda", "fixed_teacher", "a student of UDA's stored labels is worse than UDA"),
    ("reduced_mpl", "fixed_teacher", "correcting the stored labels by feedback helps"),
    ("mpl", "reduced_mpl", "Reduced Meta Pseudo Labels is worse than the full one"),
    ("per_example", "argmax", "drawn labels are better than the most probable ones"),
    ("per_example", "per_example_no_baseline", "a baseline helps"),
    ("mpl", "uda_half", "the full weight of UDA is better than half"),
    ("mpl", "uda_released", "the recipe's weight of UDA is better than the release's 8"),
    ("mpl_without_uda", "no_uda_no_h", "without UDA the feedback helps"),
    ("mpl", "no_label_smoothing", "label smoothing helps"),
    ("mpl", "ratio_1", "two unlabeled images to a labeled one are better than one"),
    ("ratio_4", "mpl", "four are better than two"),
)
