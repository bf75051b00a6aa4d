"""Does the feedback mend a teacher that starts biased, where the best answer is known?

    ./run_experiment.sh biased_teacher --config=configs/experiments/biased_teacher.py \
        --workdir=runs/biased_teacher

Four classes are normal distributions in 16 dimensions with unit covariance. Their means lie
`separation` from the origin. So the best classifier is linear and known (linear discriminant
analysis). Teacher and student are linear. There are 10 labeled points a class, 2,000 unlabeled ones
and 2,000 for the test.

*Bias*: the teacher starts as the best classifier with classes 0 and 1 swapped.

*Memory*: the teacher has a logit of its own for each labeled point and class, times `memory`. No
other point has it. With a large memory the teacher fits the labeled points without changing its
answers elsewhere, as a large network can. The student has no memory, and sees pseudo-labels only.

This file was written before its run, and fixes what will be reported:

- Prediction: the supervised loss mends the teacher without a memory, and not with one. UDA's loss
  then confirms the bias. The feedback mends it in both cases: it asks what the *student* does on
  the labeled points, and the student cannot memorize them.
- Conditions: `METHODS`, each with the memories 0, 4 and 16. The number is the student's test top-1.
- Seeds: 0 to 19, for points, labels and draws. The values below come from seeds 100 to 107.
- Tests: `CLAIMS`, each two-sided and paired over the seeds (Student's t), with Holm's correction.
  Smallest effect of interest: 1 point.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.experiments import two_moons

UDA = {"consistency": 1.0}
FEEDBACK = {"feedback": 10.0}
METHODS: dict[str, dict[str, Any]] = {
    "pseudo_labels": {"supervised": 0.0, "pseudo_labels": "argmax"},
    "supervised": {},
    "uda": UDA,
    "feedback": {"supervised": 0.0, **FEEDBACK},
    "mpl": FEEDBACK,
    "mpl_uda": {**UDA, **FEEDBACK},
    "mpl_uda_eq_12": {**UDA, **FEEDBACK, "estimator": "dot_product"},
}
"""Name -> losses of the teacher. `mpl` is its supervised loss with feedback; `mpl_uda_eq_12` has
the paper's estimator, one h a step."""

CLAIMS = tuple(
    (f"{better}, memory {memory}", f"{worse}, memory {memory}", f"{text}, memory {memory}")
    for memory in (0, 4, 16)
    for better, worse, text in (
        ("mpl", "supervised", "feedback beats the supervised loss alone"),
        ("mpl_uda", "uda", "feedback beside UDA beats UDA"),
    )
)


def get_config() -> ConfigDict:
    """Returns the config."""
    config = ConfigDict()
    config.title = "A teacher that starts biased"
    config.description = (
        "Top-1 of the student in percent. Four normal classes in 16 dimensions; the teacher starts "
        "with classes 0 and 1 swapped."
    )
    config.seed = 0  # the first one
    config.seeds = 20
    config.memories = (0.0, 4.0, 16.0)
    config.bias = True  # False: the teacher starts at 0
    config.labeled_per_class = 10
    config.separation = 3.0  # length of the means; 1 is the standard deviation
    config.methods = ConfigDict(
        {
            name: two_moons.method(
                **{
                    "steps": 4_000,
                    "batch_size": 64,
                    "learning_rate": 0.1,
                    "consistency_noise": 0.5,
                    "result": "student",
                    **losses,
                }
            )
            for name, losses in METHODS.items()
        }
    )
    config.claims = CLAIMS
    return config
