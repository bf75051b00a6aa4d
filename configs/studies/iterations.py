"""Does putting the student back as the teacher help?

./run_experiment.sh study --config=configs/studies/iterations.py --workdir=runs/studies/iterations

The question is that of Xie et al. 2020, Section 3.1, "Iterative training".
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Iterations",
        "Four students of one size, each the teacher of the next; a student labels each image as"
        " the mean over eight noised copies, which goes beyond the paper. In `plain_labels` the"
        " first student labels the image itself for the second.",
        iterations=4,
        runs=(
            ("all", ()),
            ("plain_labels", ("--config.iterations=2", "--config.pseudo_label.views=0")),
        ),
        shared=("data", "teacher", "predictions_1", "pseudo_labeled_1", "student_1"),
        readings=(
            ("teacher", "all", "teacher.top1"),
            *((f"student_{i}", "all", f"students.{i - 1}.top1") for i in range(1, 5)),
            ("plain_labels", "plain_labels", "students.1.top1"),
        ),
        claims=(
            ("student_1", "teacher", "a student is better than its teacher"),
            ("student_2", "student_1", "a second iteration helps"),
            ("student_3", "student_2", "a third iteration helps"),
            ("student_4", "student_3", "a fourth iteration helps"),
            ("student_2", "plain_labels", "labels over noised copies help the second student"),
        ),
    )
