"""Teacher and student of different sizes.

./run_experiment.sh study --config=configs/studies/sizes.py --workdir=runs/studies/sizes

Xie et al. 2020 have equal or larger students (Section 2), and smaller ones than the teacher (first
version, A.4, Table 9). A B0 gains more from an L2 as its teacher than from one of its own size
(79.0 % of L2, 78.1 of B0, 77.3 supervised).
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    small = "--config.student.model.width=0.25"
    values = base.one_student(
        equal=("--config.student.model.width=0.5",),
        larger=("--config.student.model.width=1.0",),
        smaller=(small,),
        small_of_small=("--config.teacher.model.width=0.25", small),
        small_of_large=("--config.teacher.model.width=1.0", small),
    )
    values["readings"] += (
        ("small_teacher", "small_of_small", "teacher.top1"),
        ("large_teacher", "small_of_large", "teacher.top1"),
    )
    return base.study(
        "Sizes of teacher and student",
        "Width 0.5 of the teacher and 0.5 (equal), 1.0 (larger) or 0.25 (smaller) of the student;"
        " and students of width 0.25 whose teacher has that width, too, or 1.0.",
        claims=(
            ("larger", "equal", "a larger student is better"),
            ("equal", "smaller", "a smaller student is worse"),
            (
                "small_of_large",
                "small_of_small",
                (
                    "a small student of a large teacher is better than one of a teacher of its own"
                    " size"
                ),
            ),
            (
                "small_of_small",
                "small_teacher",
                "a small student is better than its teacher of the same size",
            ),
        ),
        **values,
    )
