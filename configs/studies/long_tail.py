"""Measures logit adjustment and the shares of the classes on a long-tailed cut of photographs.

./run_experiment.sh study --config=configs/studies/long_tail.py --labeled=PHOTOS \
    --workdir=runs/studies/long_tail

`PHOTOS/CLASS/*` are labeled photographs of one set. 50 images of each class are the test, the same
for every seed, so top-1 is the balanced accuracy. The largest class keeps 40 labels, the smallest
class a tenth of that. The images that become unlabeled fall in the same proportions
(`data.long_tail`, docs/data.md). `long_tail.py:20` makes the ratio 20. `long_tail.py:smoke` shows
all of it at work, in tiny trainings; their numbers mean nothing.

Every run is one teacher and one student of `image_folder.py:lite0`; no cross-fitting.

This file was written before any of its runs, and fixes what will be reported:

- Conditions: the recipe, which keeps as many pseudo-labels of each class; logit adjustment of
  teacher and student (Menon et al. 2021, τ = 1); pseudo-labels in the proportions of the labels;
  both.
- Seeds: 0 to 4. Nothing was chosen on them.
- Tests: the claims below, each two-sided and paired over the seeds (Student's t), with Holm's
  correction for their number. A claim holds where its corrected p-value is at most 0.05 and the
  difference has its sign.
"""

from ml_collections import ConfigDict

from configs.studies import base

ADJUSTED = tuple(f"--config.{section}.logit_adjustment=1.0" for section in ("teacher", "student"))
LABELED = ("--config.balance.priors=labeled",)

CLAIMS = (
    ("adjusted_teacher", "teacher", "logit adjustment makes the teacher better"),
    ("adjusted", "recipe", "logit adjustment makes the student better"),
    ("recipe", "labeled", "equal shares of pseudo-labels are better than those of the labels"),
    ("adjusted", "adjusted_labeled", "equal shares are better with logit adjustment, too"),
    ("adjusted", "adjusted_teacher", "a student is better than its teacher, both adjusted"),
)


def get_config(name: str = "10") -> ConfigDict:
    """Returns the study; `name`: how many times more labels the largest class has, or smoke."""
    smoke = name == "smoke"
    if not smoke and not name.isdecimal():
        raise ValueError(f"long_tail.py has no variant {name}; give a ratio, such as 10, or smoke")
    flags = (
        f"--config.data.labeled_per_class={4 if smoke else 40}",
        f"--config.data.long_tail={2 if smoke else int(name)}.0",
        "--config.data.labeled_as_unlabeled=rest",
        f"--config.data.test_per_class={2 if smoke else 50}",
        "--config.data.validation_size=0",
        "--config.data.on_error=skip",
        "--config.crossfit.folds=0",
    )
    if smoke:
        flags = (*flags, *base.short("teacher", "student"), "--config.balance.threshold=0.0")
    runs = {
        "recipe": (),
        "labeled": LABELED,
        "adjusted": ADJUSTED,
        "adjusted_labeled": (*ADJUSTED, *LABELED),
    }
    return base.study(
        "A long tail" if not smoke else "A long tail, smoke test",
        "Photographs, the largest class with 40 labels. Teacher and student fine-tune"
        " EfficientNet-Lite0 from published weights; the test images are equally many of each"
        " class.",
        recipe="configs/noisy_student/image_folder.py:lite0",
        flags=flags,
        runs=tuple(runs.items()),
        readings=(
            ("teacher", "recipe", "teacher.top1"),
            ("adjusted_teacher", "adjusted", "teacher.top1"),
            *((run, run, "students.-1.top1") for run in runs),
        ),
        claims=CLAIMS,
        of_photographs=True,
        correction="holm",
        first_seed=0,
        seeds=2 if smoke else 5,
    )
