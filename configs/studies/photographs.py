"""Compares methods on few labeled photographs, all from the same published weights.

./run_experiment.sh study --config=configs/studies/photographs.py --labeled=PHOTOS \
    --workdir=runs/studies/photographs

`PHOTOS/CLASS/*` are labeled photographs of one set. 50 images of each class are the test, the same
for every seed. A seed draws 20 others of each class, which keep their labels; the rest is
unlabeled. No image is on two sides, images that look alike included. Identical images that have
several classes are left out. With `--test=DIR` the images of DIR are the test, and
`--unlabeled=DIR` adds images to the rest. `photographs.py:10` keeps 10 labels a class.
`photographs.py:smoke` shows all of it at work, in tiny trainings; their numbers mean nothing.

Each method is run as its user runs it: by one command, with the defaults of its recipe
`image_folder.py:lite0`. The readings are those of the exported model on the test images. All
methods fine-tune EfficientNet-Lite0 from published weights at 160 px. What they have beside the
labels differs, and is part of the method: UDA and FixMatch make no fewer than 500 steps, Meta
Pseudo Labels fine-tunes at the end, and Noisy Student chooses among teacher and students by
cross-fitting.

This file was written before any of its runs, and fixes what will be reported:

- Conditions: the linear probe on the frozen features; supervised fine-tuning, which is Noisy
  Student's teacher; UDA; FixMatch; Meta Pseudo Labels; Noisy Student.
- Seeds: 0 to 4. Nothing was chosen on them: the recipes' values come from seed 100.
- Tests: the claims below, each two-sided and paired over the seeds (Student's t), with Holm's
  correction for their number. A claim holds where its corrected p-value is at most 0.05 and the
  difference has its sign.
- Goals besides: Noisy Student 4 points above the probe and 2 above its teacher on TrashNet.
"""

from ml_collections import ConfigDict

from configs.studies import base

NAME = "image_folder.py:lite0"
SPLIT = (
    "--config.data.labeled_as_unlabeled=rest",
    "--config.data.test_per_class=50",
    "--config.data.validation_size=0",  # it would be taken from images that count as unlabeled
    "--config.data.on_error=skip",
)
METHODS = {
    "data": (("data", "run_prepare_data.sh", ()),),
    "train": (("", "run_train.sh", ()),),
    "noisy_student": (("", "run_noisy_student.sh", ()),),
}
RUNS = (
    ("data", (), "data"),  # the other runs get a link to it
    ("noisy_student", (), "noisy_student"),
    ("uda", (f"--config=configs/uda/{NAME}",), "train"),
    ("fixmatch", (f"--config=configs/fixmatch/{NAME}",), "train"),
    ("mpl", (f"--config=configs/meta_pseudo_labels/{NAME}",), "train"),
)
READINGS = (
    ("probe", "noisy_student", "probe.top1"),
    ("supervised", "noisy_student", "teacher.top1"),
    ("noisy_student", "noisy_student", "exported.top1"),
    *((name, name, "exported.top1") for name in ("uda", "fixmatch", "mpl")),
)
SHORT = {
    "noisy_student": ("teacher", "student"),
    "uda": ("train",),
    "fixmatch": ("train",),
    "mpl": ("train",),
}
"""Run -> the sections that the smoke test makes short."""

CLAIMS = (
    ("supervised", "probe", "fine-tuning is better than the linear probe"),
    ("noisy_student", "probe", "Noisy Student is better than the linear probe"),
    ("noisy_student", "supervised", "Noisy Student is better than its teacher"),
    ("uda", "supervised", "UDA is better than supervised fine-tuning"),
    ("fixmatch", "supervised", "FixMatch is better than supervised fine-tuning"),
    ("mpl", "supervised", "Meta Pseudo Labels is better than supervised fine-tuning"),
    ("mpl", "uda", "Meta Pseudo Labels is better than UDA"),
    ("mpl", "noisy_student", "Meta Pseudo Labels is better than Noisy Student"),
)


def get_config(name: str = "20") -> ConfigDict:
    """Returns the study; `name`: labeled images a class, or smoke."""
    if name != "smoke" and not name.isdecimal():
        raise ValueError(
            f"photographs.py has no variant {name}; give a number of images a class, or smoke"
        )
    config = base.study(
        "Photographs" if name != "smoke" else "Photographs, smoke test",
        f"{2 if name == 'smoke' else name} labeled images a class; the test images are the same "
        "for all seeds. Every training fine-tunes EfficientNet-Lite0 from published weights.",
        recipe=f"configs/noisy_student/{NAME}",
        flags=(f"--config.data.labeled_per_class={2 if name == 'smoke' else name}", *SPLIT),
        runs=RUNS,
        readings=READINGS,
        claims=CLAIMS,
        shared=("data",),
        of_photographs=True,
        correction="holm",
        first_seed=0,
        seeds=5,
    )
    config.methods.update(METHODS)
    if name == "smoke":
        config.seeds = 2
        config.flags = (
            *config.flags,
            "--config.data.test_per_class=2",
            "--config.preprocessing.image_size=32",
        )
        config.runs = tuple((run, (*flags, *_short(run)), method) for run, flags, method in RUNS)
    return config


def _short(run: str) -> tuple[str, ...]:
    """Returns flags that leave one pass over the labeled images of each training."""
    values = {
        f"{section}.{key}": value
        for section in SHORT.get(run, ())
        for key, value in (("epochs", 1.0), ("min_steps", 0))
    }
    if run == "noisy_student":
        values |= {"crossfit.folds": 0, "iterations": 1, "balance.threshold": 0.0}
    if run == "mpl":
        values["finetune.steps"] = 1
        for network in ("teacher", "student"):
            values |= {f"train.{network}.schedule.{key}_steps": 0 for key in ("warmup", "wait")}
    elif "train" in SHORT.get(run, ()):
        values |= {f"train.schedule.{key}_steps": 0 for key in ("warmup", "wait")}
    return tuple(f"--config.{key}={value}" for key, value in values.items())
