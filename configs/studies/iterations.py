"""Does putting the student back as the teacher help? (Xie et al. 2020, Section 3.1, "Iterative training")

./run_studies.sh --config=configs/studies/iterations.py --workdir=runs/studies/iterations
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """The study."""
    return base.study(
        "Iterations",
        "Four students of one size, each the teacher of the next.",
        iterations=4,
        runs=(("all", ()),),
        readings=(("teacher", "all", "teacher.top1"), *((f"student_{i}", "all", f"students.{i - 1}.top1") for i in range(1, 5))),
        claims=(
            ("student_1", "teacher", "a student is better than its teacher"),
            ("student_2", "student_1", "a second iteration helps"),
            ("student_3", "student_2", "a third iteration helps"),
            ("student_4", "student_3", "a fourth iteration helps"),
        ),
    )
