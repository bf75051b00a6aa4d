"""Does a student profit from its teacher's weights?

./run_experiment.sh study --config=configs/studies/start.py --workdir=runs/studies/start

Xie et al. 2020 train a student from scratch: Algorithm 1, step 3.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Start of the student",
        "From fresh weights, or from the teacher's.",
        claims=(("scratch", "from_teacher", "a student from scratch is better"),),
        **base.one_student(
            scratch=("--config.student_init=scratch",),
            from_teacher=("--config.student_init=teacher",),
        ),
    )
