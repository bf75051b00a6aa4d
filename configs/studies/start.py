"""Does a student profit from its teacher's weights? (Xie et al. 2020 learn a student anew: Algorithm 1, step 3)

./run_experiment.sh study --config=configs/studies/start.py --workdir=runs/studies/start
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """The study."""
    return base.study(
        "Start of the student",
        "From fresh weights, or from the teacher's.",
        claims=(("scratch", "from_teacher", "a student from scratch is better"),),
        **base.one_student(
            scratch=("--config.student_init=scratch",),
            from_teacher=("--config.student_init=teacher",),
        ),
    )
