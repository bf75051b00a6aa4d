"""Which estimator of the feedback has the most signal for its noise?

./run_experiment.sh feedback_study --config=configs/experiments/feedback_study.py --workdir=runs/feedback_study
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The study's values."""
    config = ConfigDict()
    config.seed = 0
    config.batch_sizes = (4, 16, 64, 256)  # B_u
    config.draws = 400  # of pseudo-labels, for each batch
    config.batches = 5  # of unlabelled images; reported are median and range
    config.hidden = 32  # units of teacher and student
    config.learning_rate = 0.1  # of the student
    config.labeled = 50  # images, all in every step
    config.teacher_steps = 100  # of the teacher on these, before
    config.student_steps = 100  # of the student on the teacher's labels, before
    return config
