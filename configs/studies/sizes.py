"""Teacher and student of different sizes (Xie et al. 2020, Section 2: equal or larger; first version, A.4, Table 9: a small student)

./run_studies.sh --config=configs/studies/sizes.py --workdir=runs/studies/sizes
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """The study."""
    return base.study(
        "Student's size",
        "The width of the student; the teacher's is 0.5.",
        claims=(
            ("larger", "equal", "a larger student is better"),
            ("equal", "smaller", "a smaller student is worse"),
            ("smaller", "teacher", "a student smaller than its teacher is still better than it"),
        ),
        **base.one_student(
            equal=("--config.student.model.width=0.5",),
            larger=("--config.student.model.width=1.0",),
            smaller=("--config.student.model.width=0.25",),
        ),
    )
